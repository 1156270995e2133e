"""isoflop serve, as typed, with a real model in its engine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from e2e.commands import refused
from isoflop.cli.serve import named
from isoflop.errors import ServeError
from isoflop.export.gated import export
from isoflop.pipeline import corpus_of
from isoflop.records import Result
from isoflop.served import serve as measured
from isoflop.store import Project


def test_a_model_of_the_project_is_served(project: tuple[Path, Result], isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    folder, result = project
    home = Project(folder)
    artifact = folder / export(home, corpus_of(home), Path(result.model), to="gguf", kind="q8_0").path
    known = measured(home, corpus_of(home), artifact, eval_tokens=2048)
    key = isoflop("keys", "new", "tester", "--project", folder).out.strip()
    audit = tmp_path / "audit.jsonl"
    typed = ("serve", f"mine={artifact}", "--project", folder, "--port", 0, "--threads", 1, "--audit", audit)
    words = [sys.executable, "-m", "isoflop", *map(str, typed)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().split()[-1]
            shown = process.stdout.readline()
            assert f"mine, {known.bpb:.4f} bits per byte, {known.bytes:,} bytes, llama.cpp" in shown
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
                answer = client.completions.create(model="mine", prompt="def ", max_tokens=8, temperature=0)
                assert answer.usage
                assert answer.usage.completion_tokens == 8
            with openai.OpenAI(base_url=f"{url}/v1", api_key="isk_x_y") as client:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            assert re.search(r"^curl -s http", rest, re.MULTILINE)
        finally:
            process.kill()
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert any(line.get("model") == "mine" and line.get("completion_tokens") == 8 for line in lines)


def test_what_cannot_be_is_told(project: tuple[Path, Result], isoflop) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    at = ("--project", folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(isoflop("serve", result.model, *at, "--port", port), f"port {port} cannot be served at")
    refused(isoflop("serve", "/none", *at, "--port", 0), "/none")
    refused(isoflop("serve", result.model, *at, "--open", "--host", "0.0.0.0"), "0.0.0.0 cannot be open")
    refused(isoflop("serve", result.model, *at, "--mask", "smell"), "'smell'")
    refused(isoflop("serve", "a/m", "b/m", *at), "two models are named 'm'")


def test_names() -> None:
    assert named(["a/b.gguf", "x=a/b=c", "a/b=c", "y=http://host:1"]) == {
        "b": "a/b.gguf", "x": "a/b=c", "b=c": "a/b=c", "y": "http://host:1",
    }  # fmt: skip
    with pytest.raises(ServeError, match="has no name"):
        named(["http://host:1"])
