"""Models in several processes, through Ray Serve: how many there are, how they end, and who gets in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from isoflop.errors import ServeError
from isoflop.serve.keys import Keys
from isoflop.serve.replicas.counts import Replicas, replicas, threads_of
from isoflop.serve.settings import LOOPBACK, Settings
from isoflop.store import Project

SCRIPT = Path(__file__).with_name("replicating.py")
SECONDS = 90  # until something must be so, on a machine that is busy
COUNTS = Replicas(fewest=1, most=2, up_seconds=0.5, down_seconds=1.0)
LONG = "word " * 200  # takes four seconds
FOLDER = re.compile(r"(/[^\s=]*/isoflop-[^/]+)/ray/session_")  # of what Ray writes
ANY = "::ffff:"  # before an address of the old form at a socket of the new


def test_counts() -> None:
    assert replicas("1:4") == Replicas(fewest=1, most=4)
    for wrong in ("3:1", "0:2", "a:b", "2", "1:2:3", "-1:2", ""):
        with pytest.raises(ServeError, match="--replicas"):
            replicas(wrong)
    assert [threads_of(most, 8, None) for most in (1, 3, 8)] == [8, 2, 1]
    assert threads_of(2, 8, 4) == 4
    with pytest.raises(ServeError, match="9 replicas, and this machine has 8 cores"):
        threads_of(9, 8, None)
    with pytest.raises(ServeError, match="3 replicas of 4 threads, and this machine has 8 cores"):
        threads_of(3, 8, 4)


@dataclass
class Server:
    process: psutil.Process
    screen: list[str]
    key: str
    asked: Counter[int] = field(default_factory=Counter)  # requests, by the status of their answers
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        (url,) = (line.split()[-1] for line in self.screen if line.startswith("url"))
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {self.key}"}, timeout=SECONDS,
            limits=httpx.Limits(max_connections=64),
        )  # fmt: skip

    def ask(self, prompt: str, **more: Any) -> httpx.Response:
        document = {"model": "echo", "prompt": prompt, "max_tokens": 500} | more
        answer = self.http.post("/v1/completions", json=document)
        with self.lock:
            self.asked[answer.status_code] += 1
        return answer

    def who(self) -> tuple[int, int, int]:
        """The process that answers, how many answers it makes, and how many were left unfinished."""
        number, running, cancelled = map(int, _text(self.ask("who")).split())
        return number, running, cancelled

    def metric(self, name: str, *labels: str) -> float:
        """The sum of the values with these labels."""
        lines = self.http.get("/metrics").raise_for_status().text.splitlines()
        found = [line for line in lines if line.startswith(f"{name}{{") and all(x in line for x in labels)]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def answers(self) -> float:
        return self.metric("isoflop:requests_total", 'route="/v1/completions"', 'status="200"')

    @contextmanager
    def load(self, answered: Callable[[httpx.Response], None]) -> Iterator[None]:
        """Twice as many at once as two replicas can take."""
        enough = threading.Event()

        def ask() -> None:
            while not enough.is_set():
                answered(self.ask("word " * 20))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            enough.set()
            for thread in threads:
                thread.join()


def _text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def _until(so: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not so():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


@contextmanager
def launched(folder: Path) -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip("ray", reason="the extra isoflop[replicas] is not installed")
    pytest.importorskip("grpc_reflection", reason="the extra isoflop[replicas] is not installed")
    typed = [sys.executable, str(SCRIPT), Settings(port=0, replicas=COUNTS).to_json(), str(folder)]
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])])
    with subprocess.Popen(
        typed, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@contextmanager
def started(folder: Path) -> Iterator[Server]:
    key, _ = Keys(Project(folder)).new("tester", scopes=("infer", "metrics"))
    with launched(folder) as process:
        assert process.stdout
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("python -c"):
                break
        yield Server(psutil.Process(process.pid), lines, key)


def _of(process: psutil.Process) -> tuple[list[psutil.Process], Path]:
    """The server's processes, and the folder where Ray writes."""
    processes = [process, *process.children(recursive=True)]
    (folder,) = {found[0] for p in processes if (found := FOLDER.findall(" ".join(p.cmdline())))}
    return processes, Path(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("project")) as server:
        yield server


def test_nothing_is_open_beyond_this_machine_or_without_a_key(server: Server) -> None:
    import grpc

    found = [server.process, *server.process.children(recursive=True)]
    sockets = {
        each.laddr: process
        for process in found
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert len(sockets) > 4
    assert {address.ip.removeprefix(ANY) for address in sockets} <= set(LOOPBACK)
    ports = [address.port for address, process in sockets.items() if "gcs_server" in process.name()]
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        nodes = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        with pytest.raises(grpc.RpcError) as refused:
            nodes(b"", timeout=SECONDS)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    token = next(filter(None, (process.environ().get("RAY_AUTH_TOKEN") for process in found)))
    assert not any(token in " ".join(process.cmdline()) for process in found)
    for path in ("/v1/models", "/-/routes", "/-/healthz", "/metrics"):
        assert httpx.get(f"{server.http.base_url}{path}").status_code == 401
    assert server.http.get("/-/routes").status_code == 404
    assert server.http.get("/v1/models").headers["x-frame-options"] == "DENY"


def test_the_screen_tells_of_them(server: Server) -> None:
    assert "replicas 1 to 2 of each model, as requests wait" in server.screen
    assert "refused  the file is torn; export it again" in server.screen  # its engine's own words


def test_a_stream_comes_as_it_is_made_and_ends_with_its_client(server: Server) -> None:
    _, _, before = server.who()
    document = {"model": "echo", "prompt": LONG, "max_tokens": 500, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=document) as answer:
        next(answer.iter_lines())
    server.asked[200] += 1
    _until(lambda: server.who()[1:] == (0, before + 1))


def test_an_engine_that_fails_says_so(server: Server) -> None:
    answer = server.ask("break")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "engine_failed"
    assert server.ask("w" * 2000).status_code == 400  # an error of the request keeps its status


def test_load_brings_a_replica_and_its_end_takes_it(server: Server) -> None:
    seen: set[str] = set()
    with server.load(lambda answer: seen.add(_text(answer).split()[0])):
        _until(lambda: len(seen) == 2)
        _until(lambda: server.metric("isoflop:slots") == 4)
    _until(lambda: server.answers() == server.asked[200])  # both are in the metrics, each answer once
    _until(lambda: server.metric("isoflop:slots") == 2)
    _until(lambda: sum(psutil.pid_exists(int(number)) for number in seen) == 1)
    assert server.http.get("/health/ready").status_code == 200
    assert psutil.pid_exists(server.who()[0])


def test_no_request_is_lost_with_a_replica(server: Server) -> None:
    answers: list[httpx.Response] = []
    with ExitStack() as ends:
        ends.enter_context(server.load(answers.append))
        _until(lambda: len({_text(answer).split()[0] for answer in answers}) == 2)
        victim = int(_text(answers[-1]).split()[0])
        os.kill(victim, signal.SIGKILL)
        count = len(answers)
        _until(lambda: len(answers) > count + 30)
    for answer in answers:
        if answer.status_code != 200:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "engine_failed"
        else:
            assert len(_text(answer).split()) == 3 + 20
    assert victim not in {int(_text(a).split()[0]) for a in answers[-8:] if a.status_code == 200}


def test_a_stream_that_has_begun_ends_with_an_error(server: Server) -> None:
    document = {"model": "echo", "prompt": LONG, "max_tokens": 500, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=document) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        victim = int(first.split('"text":"')[1].split()[0].split('"')[0])
        os.kill(victim, signal.SIGKILL)
        assert "engine_failed" in list(filter(None, lines))[-1]
    server.asked[200] += 1
    assert server.who()[0] != victim  # waits for the one that takes its place


def test_the_end(tmp_path: Path) -> None:
    """Streams finish, and nothing is left of any process, also where the terminal tells all of them."""
    with started(tmp_path) as server:
        processes, folder = _of(server.process)
        assert folder.stat().st_mode & 0o077 == 0  # this user's alone
        document = {"model": "echo", "prompt": LONG, "max_tokens": 500, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=document) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.killpg(server.process.pid, signal.SIGINT)
            assert list(lines)[-2] == "data: [DONE]"
        assert psutil.wait_procs(processes, timeout=SECONDS)[1] == []
        assert not folder.exists()


def test_the_end_before_the_start(tmp_path: Path) -> None:
    with launched(tmp_path) as process:
        server = psutil.Process(process.pid)
        _until(lambda: any("ServeReplica" in "".join(p.cmdline()) for p in server.children(recursive=True)))
        processes, folder = _of(server)
        os.killpg(process.pid, signal.SIGINT)
        assert psutil.wait_procs(processes, timeout=SECONDS)[1] == []
        assert not folder.exists()
