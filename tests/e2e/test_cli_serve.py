"""isoflop serve, as typed, with a real model in its engine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from e2e.commands import refused
from isoflop.cli.serve import named
from isoflop.engines.speed import measure
from isoflop.errors import ServeError
from isoflop.served import KIND, Served, now
from isoflop.store import HASH_DIGITS, Project, content_hash


def test_a_model_of_the_project_is_served(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    from gguf_models import written

    folder, artifact = tmp_path / "project", written(tmp_path / "model.gguf")
    scopes = ("--scope", "infer", "--scope", "metrics")
    key = isoflop("keys", "new", "tester", *scopes, "--project", folder).out.strip()
    known = Served(
        id="a", path="model.gguf", hash=content_hash(artifact)[:HASH_DIGITS], kind="f32", corpus_id="b",
        eval_tokens=1, machine="c", loss=2.0, loss_se=0.1, bpb=1.2345, bpb_se=0.1, windows=(2.0,),
        speed=measure(artifact), measured_at=now(),
    )  # fmt: skip
    Project(folder).put(KIND, known)
    audit = tmp_path / "audit.jsonl"
    typed = ("serve", f"mine={artifact}", "--project", folder, "--port", 0, "--threads", 1, "--audit", audit,
             "--audit-text", "--vllm-names")  # fmt: skip
    words = [sys.executable, "-m", "isoflop", *map(str, typed)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            screen = [process.stdout.readline()]
            while not screen[-1].startswith("python -c"):
                screen.append(process.stdout.readline())
            url, shown, size = screen[0].split()[-1], screen[1], artifact.stat().st_size
            assert f"mine, 1.2345 bits per byte, {size:,} bytes, llama.cpp" in shown
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
                answer = client.completions.create(model="mine", prompt="the day", max_tokens=8)
                assert answer.usage
                assert answer.usage.completion_tokens == 8
                mail = "write to ann@example.org"
                told = client.completions.with_raw_response.create(
                    model="mine", prompt=mail, max_tokens=4, temperature=0
                )
                rated = {
                    "request_id": told.headers["x-request-id"],
                    "rating": "up",
                    "prompt": mail,
                    "answer": told.parse().choices[0].text,
                }
                client.post("/feedback", body=rated, cast_to=object)
                metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
                assert "vllm:generation_tokens_total{" in metrics
                page = httpx.get(f"{url}/", headers={"Authorization": f"Bearer {key}"})
                assert page.headers["content-type"].startswith("text/html")
            stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="isk_x_y")
            with stranger, pytest.raises(openai.AuthenticationError):
                stranger.models.list()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert any(line.get("model") == "mine" and line.get("completion_tokens") == 8 for line in lines)
    asked = [line.get("asked") for line in lines]
    assert ["the day"] in asked
    assert ["write to [EMAIL]"] in asked
    data = tmp_path / "liked.jsonl"
    assert isoflop("feedback", "export", "--out", data, "--project", folder).code == 0
    (liked,) = map(json.loads, data.read_text().splitlines())
    assert (liked["prompt"], liked["response"]) == (mail, rated["answer"])


def test_a_model_in_a_process_of_its_own_is_served(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for package, extra in (("xllamacpp", "gguf"), ("ray", "replicas"), ("grpc_reflection", "replicas")):
        pytest.importorskip(package, reason=f"the extra isoflop[{extra}] is not installed")
    from gguf_models import TEXT, VOCABULARY, untrained, written

    from isoflop.corpus.bpe import train_bpe
    from isoflop.export.gguf import write_gguf

    folder, artifact, audit = tmp_path / "project", written(tmp_path / "model.gguf"), tmp_path / "audit.jsonl"
    other = tmp_path / "other.gguf"
    write_gguf(untrained().eval(), train_bpe(iter([TEXT]), VOCABULARY), 0, other, kind="f32")
    temporary = tmp_path / "t"
    temporary.mkdir()
    key = isoflop("keys", "new", "tester", "--project", folder).out.strip()
    typed = ("serve", f"mine={artifact}", "--project", folder, "--port", 0, "--replicas", "1:1",
             "--threads", 1, "--audit", audit)  # fmt: skip
    words = [sys.executable, "-m", "isoflop", *map(str, typed)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(temporary)},
    ) as process:
        try:
            assert process.stdout
            screen = [process.stdout.readline()]
            while not screen[-1].startswith("python -c"):
                screen.append(process.stdout.readline())
            assert "replicas 1 to 1 of each model, as requests wait\n" in screen
            assert "llama.cpp, 8 at once" in screen[1]
            with openai.OpenAI(base_url=f"{screen[0].split()[-1]}/v1", api_key=key) as client:
                pieces = list(client.completions.create(model="mine", prompt="a", max_tokens=8, stream=True))
                assert pieces[-1].choices[0].finish_reason in ("stop", "length")
                schema: Any = {
                    "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}
                }  # fmt: skip
                asked: Any = [{"role": "user", "content": "Is it?"}]
                told = client.chat.completions.create(model="mine", messages=asked, response_format=schema)
                assert told.choices[0].message.content in ("true", "false")
                likely = {"model": "mine", "prompt": TEXT[:20], "echo": True, "max_tokens": 0, "logprobs": 0}
                before: Any = client.post("/completions", body=likely, cast_to=object)
                deployed = isoflop("deploy", f"mine={other}", "--force", "--project", folder)
                assert deployed.code == 0, deployed.err
                after: Any = client.post("/completions", body=likely, cast_to=object)
                sums = [sum(each["choices"][0]["logprobs"]["token_logprobs"][1:]) for each in (before, after)]
                assert sums[1] < sums[0]  # it has learned nothing
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert list(temporary.iterdir()) == []  # no socket is left
    assert [line for line in err.splitlines() if "starting Ray" not in line and "audit" not in line] == []
    calls = [line for line in map(json.loads, audit.read_text().splitlines()) if line["event"] == "call"]
    assert [call.get("completion_tokens", 0) > 0 for call in calls] == [True, True, False, False]
    assert len({call["model_hash"] for call in calls[:3]}) == 1
    assert calls[3]["model_hash"] != calls[0]["model_hash"]


def test_what_cannot_be_is_told(  # type: ignore[no-untyped-def]
    isoflop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project(tmp_path / "project")
    at = ("--project", tmp_path / "project")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(isoflop("serve", tmp_path, *at, "--port", port), f"port {port} cannot be served at")
    refused(isoflop("serve", "/none", *at, "--port", 0), "/none")
    refused(isoflop("serve", tmp_path, *at, "--open", "--host", "0.0.0.0"), "0.0.0.0 cannot be open")
    refused(isoflop("serve", tmp_path, *at, "--mask", "smell"), "'smell'")
    refused(isoflop("serve", "a/m", "b/m", *at), "two models are named 'm'")
    refused(isoflop("serve", tmp_path, *at, "--audit-full", "maybe"), "'maybe'")
    refused(isoflop("serve", tmp_path, *at, "--objective", "fame=1"), "'fame'")
    refused(isoflop("serve", tmp_path, *at, "--engine", "warp"), "--engine is 'warp'")
    refused(isoflop("serve", tmp_path, *at, "--port", 0, "--engine", "vllm"), "is not what vLLM serves")
    refused(
        isoflop("serve", tmp_path, *at, "--engine", "vllm", "--replicas", "1:1"), "--replicas and --engine"
    )
    for wrong in ("3:1", "0:2", "a:b"):
        refused(isoflop("serve", tmp_path, *at, "--replicas", wrong), "--replicas")
    refused(isoflop("serve", tmp_path, *at, "--replicas", "1:9000"), "9000 replicas, and this machine has")
    refused(isoflop("serve", "a=http://host", *at, "--replicas", "1:1"), "no model of this machine")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ray", None)
        answer = isoflop("serve", tmp_path, *at, "--port", 0, "--replicas", "1:1")
    refused(answer, "ray is not installed")
    assert "isoflop[replicas]" in answer.err
    answer = isoflop("serve", tmp_path, *at, "--rate-storage", "redis://:secret@host:1")
    refused(answer, "--rate-storage has a password")
    assert "secret" not in answer.err
    monkeypatch.setenv("ISOFLOP_RATE_STORAGE", "nowhere://:secret@host")
    answer = isoflop("serve", tmp_path, *at, "--port", 0)
    refused(answer, "cannot be kept in nowhere://host")
    assert "secret" not in answer.err
    monkeypatch.delenv("ISOFLOP_RATE_STORAGE")
    artifact = tmp_path / "project" / "artifacts" / "model.gguf"
    artifact.parent.mkdir(exist_ok=True)
    artifact.write_bytes(b"GGUF")
    refused(isoflop("serve", artifact, *at, "--port", 0), "would have passed a gate")
    monkeypatch.setenv("ISOFLOP_ALERTS_WEBHOOK", "nowhere/secret")
    answer = isoflop("serve", tmp_path, *at, "--port", 0)
    refused(answer, "the URL for alerts cannot be read")
    assert "secret" not in answer.err


WITHOUT = """
import sys
for package in (
    "aiohttp", "fastapi", "httptools", "limits", "llguidance", "phonenumbers", "prometheus_client",
    "python_multipart", "starlette", "stdnum", "uvicorn",
):
    sys.modules[package] = None
from isoflop.cli import main
for words in (
    "keys new ada --project home", "keys list --project home", "dashboard --out files",
    "feedback export --project home", "mask", "serve . --project home",
):
    sys.argv = ["isoflop", *words.split()]
    try:
        main()
    except SystemExit as end:
        print(words, end.code, file=sys.stderr, flush=True)
"""


def test_without_the_extra(tmp_path: Path) -> None:
    """Those that need it say so; keys, dashboards and exports do not."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    typed = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(typed, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    said = done.stderr.splitlines()
    assert {"keys new ada --project home 0", "keys list --project home 0", "dashboard --out files 0"} < {
        *said
    }
    assert "Traceback" not in done.stderr
    hint = "hint: pip install 'isoflop[serve]'"
    for words in ("mask 2", "serve . --project home 2"):
        at = said.index(words)
        assert said[at - 1] == hint
        assert said[at - 2].endswith(" is not installed")
    exported = said.index("feedback export --project home 2")
    assert "no answers to export" in said[exported - 2]


def test_names() -> None:
    assert named(["a/b.gguf", "x=a/b=c", "a/b=c", "y=http://host:1"]) == {
        "b": "a/b.gguf", "x": "a/b=c", "b=c": "a/b=c", "y": "http://host:1",
    }  # fmt: skip
    with pytest.raises(ServeError, match="has no name"):
        named(["http://host:1"])
