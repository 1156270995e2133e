"""isoflop deploy, as typed, beside a server that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployed import Home

from e2e.commands import Answer, refused

Isoflop = Callable[..., Answer]


@contextmanager
def served(*words: object) -> Iterator[str]:
    """The URL of `isoflop serve`, with these words."""
    typed = [sys.executable, "-m", "isoflop", "serve", *map(str, words), "--port", "0", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(typed, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            first = process.stdout.readline()
            assert first.startswith("url "), first
            while not process.stdout.readline().startswith("python -c"):
                pass
            yield first.split()[-1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    from gguf_models import TEXT, VOCABULARY, untrained, written

    from isoflop.corpus.bpe import train_bpe
    from isoflop.export.gguf import write_gguf

    made = Home(tmp_path / "project")
    written(made.project.folder / "good.gguf")
    model, tokenizer = untrained().eval(), train_bpe(iter([TEXT]), VOCABULARY)
    write_gguf(model, tokenizer, 0, made.project.folder / "bad.gguf", kind="f32")
    made.bits("good.gguf", 1.0)
    made.bits("bad.gguf", 3.0)
    made.artifact("damaged.gguf", "GGUF and no more")
    return made


def test_a_model_is_changed_while_it_serves(isoflop: Isoflop, home: Home) -> None:
    folder = home.project.folder
    at = ("--project", folder)
    scopes = ("--scope", "infer", "--scope", "admin")
    key = isoflop("keys", "new", "tester", *scopes, *at).out.strip()
    infer = isoflop("keys", "new", "other", *at).out.strip()
    headers = {"Authorization": f"Bearer {key}"}
    with served(f"mine={folder / 'good.gguf'}", *at) as url, httpx.Client(headers=headers) as client:

        def says() -> str:
            document = {"model": "mine", "prompt": "the day", "max_tokens": 12, "temperature": 0}
            answer = client.post(f"{url}/v1/completions", json=document, timeout=60)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["choices"][0]["text"])

        def runs() -> Any:
            (model,) = client.get(f"{url}/admin/deployment").json()["models"]
            return model

        good = says()
        assert (runs()["version"], runs()["main"]["path"]) == (0, "good.gguf")
        refused(
            isoflop("deploy", folder / "bad.gguf", *at),
            "bad.gguf is worse than what serves: bits per byte 3.0000", "1.0000 (+200.00%)",
        )  # fmt: skip
        refused(isoflop("deploy", folder / "damaged.gguf", *at), "how good damaged.gguf is was not measured")
        answer = isoflop("deploy", folder / "bad.gguf", "--force", "--json", *at)
        assert answer.code == 0, answer.err
        done = json.loads(answer.out)
        assert done["deployment"]["before"]["path"] == "good.gguf"
        assert [server["url"] for server in done["servers"]] == [url]
        assert says() != good
        assert runs()["main"]["path"] == "bad.gguf"

        refused(
            isoflop("deploy", folder / "damaged.gguf", "--force", *at),
            "1 of 1 servers could not swap, and go on as before", url,
        )  # fmt: skip
        assert runs()["main"]["path"] == "bad.gguf"
        shown = isoflop("deploy", *at).out
        assert "back to bad.gguf, as version 2 failed: " in shown  # so that a server that starts can
        assert "damaged.gguf is no .gguf file that opens" in shown

        answer = isoflop("deploy", folder / "good.gguf", "--canary", "100%", "--force", *at)
        assert answer.out.startswith("mine: good.gguf answers 100.00%; http://"), answer.err
        assert says() == good
        assert isoflop("deploy", "--promote", "--force", *at).code == 0
        assert says() == good
        assert isoflop("deploy", folder / "bad.gguf", "--shadow", "0.5", *at).code == 0
        assert runs()["shadow"]["share"] == 0.5
        assert isoflop("deploy", "--end-shadow", *at).code == 0
        assert isoflop("deploy", "--rollback", "--name", "mine", *at).code == 0
        assert (runs()["main"]["path"], says() == good) == ("bad.gguf", False)
        assert isoflop("deploy", "--rollback", *at).code == 0
        assert says() == good
        refusal = httpx.get(f"{url}/admin/deployment", headers={"Authorization": f"Bearer {infer}"})
        assert refusal.status_code == 403

    answer = isoflop("deploy", folder / "bad.gguf", "--force", *at)
    assert "no server runs, and the next isoflop serve will do it" in answer.out
    (status,) = json.loads(isoflop("deploy", "--status", "--json", *at).out)
    assert status["deployment"]["main"]["path"] == "bad.gguf"
    assert status["followers"] == []
    for words in ((), (f"mine={folder / 'good.gguf'}",)):
        with served(*words, *at) as url:
            (model,) = httpx.get(f"{url}/admin/deployment", headers=headers).json()["models"]
            assert (model["name"], model["main"]["path"]) == ("mine", "bad.gguf")


def test_what_cannot_be_is_told(isoflop: Isoflop, tmp_path: Path) -> None:
    home = Home(tmp_path / "project", "one", "two")
    folder = home.project.folder
    at = ("--project", folder)
    one, two = folder / "one", folder / "two"
    assert "Nothing is deployed" in isoflop("deploy", *at).out
    assert json.loads(isoflop("deploy", "--status", "--json", *at).out) == []
    refused(isoflop("serve", *at, "--port", 0), "has nothing deployed to serve")
    refused(isoflop("deploy", one, "--canary", "10%", *at), "would be beside nothing")
    refused(isoflop("deploy", "--rollback", *at), "nothing is deployed in")
    assert isoflop("deploy", one, "--name", "mine", *at).code == 0
    refused(isoflop("deploy", folder / "none", *at), "there is no artifact")
    refused(isoflop("deploy", two, *at), "how good two is was not measured")
    for share in ("0", "0%", "1.5", "150%", "-0.1", "abc", "nan"):
        refused(isoflop("deploy", two, "--canary", share, "--force", *at), "--canary is", share)
        refused(isoflop("deploy", two, "--shadow", share, "--force", *at), "--shadow is", share)
    refused(isoflop("deploy", two, "--tolerance", "much", *at), "--tolerance is 'much'")
    refused(isoflop("deploy", two, "--tolerance=-1%", *at), "--tolerance is -1%, below zero")
    refused(isoflop("deploy", "--rollback", *at), "mine was not deployed over anything")
    refused(isoflop("deploy", "--promote", *at), "mine has no canary")
    refused(isoflop("deploy", "--end-shadow", *at), "mine has no shadow")
    refused(isoflop("deploy", "--rollback", "--name", "other", *at), "no model is served as 'other'")
    refused(
        isoflop("deploy", "--status", "--name", "other", *at), "no model is deployed or served as 'other'"
    )
    for words in (("--rollback", "--promote"), (two, "--rollback"), ("--canary", "10%"),
                  (two, "--canary", "10%", "--shadow", "10%"), ("--status", "--promote")):  # fmt: skip
        refused(isoflop("deploy", *words, *at), "one thing at a time")
    refused(isoflop("deploy", "http://127.0.0.1:1", "--project", tmp_path / "new"), "no project here")
    assert json.loads(isoflop("deploy", "--json", *at).out)[0]["deployment"]["version"] == 1


def test_who_stops_waiting_is_told_that_it_stays(
    isoflop: Isoflop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed again, a rollback would undo itself."""
    home = Home(tmp_path / "project", "one", "two")
    home.deploy("one")
    home.deploy("two")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isoflop.serve.deploying.waiting.wait", interrupted)
    answer = isoflop("deploy", "--rollback", "--project", home.project.folder)
    assert answer.code == 130
    assert "it stays deployed" in answer.err
    assert "the same command" not in answer.err
