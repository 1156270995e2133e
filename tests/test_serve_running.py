"""A server from its start to its end, in a process of its own: the screen, signals, TLS, a port in use."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving import Echo, on_a_socket

from isoflop.errors import ServeError
from isoflop.serve.app import build_app
from isoflop.serve.chats import Template
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.keys import Keys
from isoflop.serve.running import check_certificate, listening, serve
from isoflop.serve.screen import KEY, screen
from isoflop.serve.settings import Settings
from isoflop.store import Project

TESTS = Path(__file__).parent
SERVER = """
import sys
from serving import Echo
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.running import serve
from isoflop.serve.settings import Settings

async def models():
    return {"echo": Model("echo", Echo(float(sys.argv[2])))}

serve(Gateway({}, Settings.from_json(sys.argv[1])), models, lambda url: print(url, flush=True))
print("closed", flush=True)
"""


@contextmanager
def running(settings: Settings, pause: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process, and its URL once it has told it."""
    typed = [sys.executable, "-c", SERVER, settings.to_json(), str(pause)]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    with subprocess.Popen(
        typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_end_before_the_server_does(number: signal.Signals) -> None:
    with running(Settings(open=True, port=0), pause=0.01) as (process, url):
        document = {"model": "echo", "prompt": "word " * 50, "max_tokens": 50, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=document) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(number)
            assert list(lines)[-2] == "data: [DONE]"
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "closed\n", "")


def test_what_does_not_end_is_ended() -> None:
    with running(Settings(open=True, port=0, drain_seconds=1), pause=60.0) as (process, url):
        body = json.dumps({"model": "echo", "prompt": "word"})
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sent:
            head = f"Host: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            sent.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}Expect: 100-continue\r\n\r\n".encode())
            assert b"100 Continue" in sent.recv(64)  # it is being answered
            sent.sendall(body.encode())
            process.terminate()
            out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, "closed\n")


def test_by_tls(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    settings = Settings(open=True, port=0, certificate=certificate, certificate_key=key)
    with running(settings) as (_, url):
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.get(f"{url}/v1/models", verify=trusted)
        assert answer.json()["data"][0]["id"] == "echo"
        assert "server" not in answer.headers
        # Lines to paste trust a certificate that nobody else has signed.
        gateway = Gateway({"echo": Model("echo", Echo())}, settings)
        path = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        for line in screen(gateway, url).splitlines()[-3::2]:
            if shutil.which(line.split()[0]) or "python" in line:
                done = subprocess.run(line, shell=True, capture_output=True, text=True, env=path)
                assert "Once upon a time" in done.stdout, done.stderr
    key.write_text("no key")
    with pytest.raises(ServeError, match=r"certificate\.pem cannot be used"):
        check_certificate(settings)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServeError, match=f"port {port} cannot be served at"),
            listening(Settings(port=port)),
        ):
            pass


def test_nothing_is_opened_where_others_could_use_it() -> None:
    async def models() -> dict[str, Model]:
        raise AssertionError

    for settings in (Settings(open=True, host="0.0.0.0"), Settings()):
        with pytest.raises(ServeError):
            serve(Gateway({}, settings), models, print)


class Embedder:
    name, context, slots = "embedder", 8, 1
    embed, start, alive, close = Echo.embed, Echo.start, Echo.alive, Echo.close


class Classifier:
    name, context, slots = "classifier", 8, 1
    classify, start, alive, close = Echo.classify, Echo.start, Echo.alive, Echo.close


class Tagger:
    name, context, slots = "tagger", 8, 1
    tag, start, alive, close = Echo.tag, Echo.start, Echo.alive, Echo.close


class Listener:
    name, context, slots = "listener", 8, 1
    transcribe, start, alive, close = Echo.transcribe, Echo.start, Echo.alive, Echo.close


TEMPLATE = Template("{{ messages[0].content }}")
MODELS = [
    (Model("it's", Echo(), bits_per_byte=1.25, bytes=1234), "Once upon a time"),
    (Model("b", Echo(), template=TEMPLATE), "Hello!"),
    (Model("c", Embedder()), "16.0"),
    (Model("d", Classifier()), "long"),
    (Model("e", Tagger()), "FIRST"),
    (Model("f", Listener()), "3 bytes"),
]


@pytest.mark.parametrize(("model", "told"), MODELS, ids=[model.engine.name for model, _ in MODELS])
@pytest.mark.parametrize("open", [False, True])
def test_what_the_screen_says_works_when_pasted(
    model: Model, told: str, open: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    keys = Keys(Project(tmp_path / "my project"))
    monkeypatch.setenv(KEY, keys.new("somebody")[0])
    monkeypatch.chdir(tmp_path)
    Path("sound.wav").write_bytes(b"abc")
    gateway = Gateway({model.name: model}, Settings(open=open), keys)
    with on_a_socket(build_app(gateway)) as url:
        *facts, curl, _, python = screen(gateway, url).splitlines()
        assert f"model    {model.name}, " in "\n".join(facts)
        made = f"isoflop keys new NAME --project '{tmp_path}/my project'; "
        assert open or made in "\n".join(facts)
        exec(shlex.split(python)[2], {})
        assert told in capsys.readouterr().out
        if shutil.which("curl"):
            answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True).stdout
            assert told in json.dumps(json.loads(answer))
    if model.bytes:
        assert "it's, 1.2500 bits per byte, 1,234 bytes, echo, 4 at once, 1,024 tokens each" in "\n".join(
            facts
        )
