"""Ray of this machine alone, as `--ray local` starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from isoflop.ray_alone import ray_alone

pytest.importorskip("ray", reason="the extra isoflop[ray] is not installed")
psutil = pytest.importorskip("psutil")

STARTED = """
import json, os, psutil
from isoflop.places import place_at
from isoflop.progress import Silent

with place_at("local", Silent()) as place:
    import ray

    answered = ray.get(ray.remote(lambda: 42).remote())
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    heard = {
        one.laddr.ip
        for process in processes if process.status() != psutil.STATUS_ZOMBIE
        for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN
    }
print(json.dumps([answered, place.cores, sorted(heard), "RAY_AUTH_TOKEN" in os.environ]))
"""


def test_it_listens_on_loopback_alone() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, check=True)
    answered, cores, heard, left = json.loads(done.stdout.splitlines()[-1])
    assert answered == 42
    assert cores >= 1
    assert heard
    assert set(heard) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not left  # of the token in what comes later


def test_every_cluster_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before, tokens = dict(os.environ), set()
    for _ in range(2):
        with ray_alone():
            assert os.environ["RAY_AUTH_MODE"] == "token"
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert dict(os.environ) == before
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 64
