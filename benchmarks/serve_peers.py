"""Servers of one model for the benchmarks of serving: the gateway, llama.cpp's own, and what people write.

Each is a process of its own at a free port of loopback, asked with a key.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

HERE = Path(__file__).resolve().parent
NAME, KEY = "model", "none"
START_SECONDS = 120.0
END_SECONDS = 20.0


class Peer(NamedTuple):
    """A server that answers."""

    name: str
    url: str
    key: str
    model: str  # as a request names it
    process: subprocess.Popen[str]

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time so far: of the server's own process, and of its children."""
        process = psutil.Process(self.process.pid)
        children = process.children(recursive=True)
        return {"own": _seconds(process), "children": sum(map(_seconds, children))}

    def resident(self) -> int:
        """Bytes of memory, its children's too."""
        process = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])


def _seconds(process: psutil.Process) -> float:
    """Of all its threads that still run, to the nanosecond where Linux tells it."""
    threads = Path(f"/proc/{process.pid}/task")
    if threads.is_dir():
        return sum(int(each.read_text().split()[0]) for each in threads.glob("*/schedstat")) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def gateway(
    model: str | Path, project: Path, *, slots: int, threads: int, name: str = "gateway",
    more: Sequence[str] = (), key: str | None = None,
) -> Iterator[Peer]:  # fmt: skip
    """`isoflop serve`, closed as it is by default; `key` None: a new one is made."""
    key = key or new_key(project)
    line = [
        sys.executable, "-m", "isoflop", "serve", f"{NAME}={model}", "--project", str(project), "--port", "0",
        "--slots", str(slots), "--threads", str(threads), *more,
    ]  # fmt: skip
    with started(line) as process:
        url = first_match(process, r"^url +(\S+)$")
        yield Peer(name, url, key, NAME, process)


def new_key(project: Path) -> str:
    """An API key of a project, made with it."""
    line = [
        sys.executable,
        "-m",
        "isoflop",
        "keys",
        "new",
        f"load-{time.monotonic_ns()}",
        "--project",
        str(project),
    ]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    found = re.search(r"isk_\S+", done.stdout)
    assert found, done.stdout
    return found[0]


@contextmanager
def bare(file: Path, *, slots: int, threads: int) -> Iterator[Peer]:
    """llama.cpp's own server, set up as the gateway's engine is, but on a port of loopback."""
    asked = {
        "path": str(file), "slots": slots, "context": None, "threads": threads, "key": KEY,
        "connections": slots + 8, "embedding": False, "socket": None,
    }  # fmt: skip
    code = "from isoflop.serve.engines.llamacpp_child import main; main()"
    with started([sys.executable, "-c", code], stdin=json.dumps(asked)) as process:
        url = first_match(process, r'"url": "([^"]+)"')
        yield Peer("llama.cpp", url, KEY, NAME, process)


@contextmanager
def wrapper(folder: Path, *, threads: int, locked: bool) -> Iterator[Peer]:
    """FastAPI around `generate` (serve_wrapper.py)."""
    port = free_port()
    line = [
        sys.executable,
        str(HERE / "serve_wrapper.py"),
        str(folder),
        str(port),
        str(threads),
        str(int(locked)),
    ]
    with started(line) as process:
        peer = Peer(
            f"FastAPI, {'lock' if locked else 'no lock'}", f"http://127.0.0.1:{port}", KEY, NAME, process
        )
        wait_for(peer, "/health")
        yield peer


@contextmanager
def transformers_serve(folder: Path, *, threads: int, batching: bool) -> Iterator[Peer]:
    """`transformers serve` with the model loaded before."""
    port = free_port()
    line = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port),
        "--host", "127.0.0.1", "--device", "cpu", *(["--continuous-batching"] if batching else []),
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with started(line, environment) as process:
        name = "transformers serve" + (", continuous batching" if batching else "")
        peer = Peer(name, f"http://127.0.0.1:{port}", KEY, str(folder), process)
        wait_for(peer, "/health")
        yield peer


@contextmanager
def started(
    line: Sequence[str], environment: dict[str, str] | None = None, *, stdin: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process, ended with this block."""
    process = subprocess.Popen(
        line,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
        start_new_session=True,  # as the gateway's engine is: the scheduler shares by session
    )
    try:
        assert process.stdin is not None
        if stdin is not None:
            process.stdin.write(stdin + "\n")
            process.stdin.flush()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()


def first_match(process: subprocess.Popen[str], pattern: str) -> str:
    """What a pattern finds in a line that the process prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[1]
    raise RuntimeError(f"the server ended with {process.wait()} before it listened")


def wait_for(peer: Peer, path: str) -> None:
    """Returns when the server answers."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and peer.process.poll() is None:
        try:
            with urllib.request.urlopen(peer.url + path, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{peer.name} does not answer")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Client:
    """The process of serve_client.py."""

    def __init__(self, ends: ExitStack) -> None:
        self._process = ends.enter_context(started([sys.executable, str(HERE / "serve_client.py")]))

    def ask(
        self, peer: Peer, bodies: Sequence[dict[str, Any]], streams: int, path: str = "/v1/completions"
    ) -> Any:
        """A round: see serve_client.answers."""
        named = [{"model": peer.model, **body} for body in bodies]
        asked = {"url": peer.url, "key": peer.key, "path": path, "bodies": named, "streams": streams}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())
