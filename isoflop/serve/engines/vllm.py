"""vLLM's server, started here for a model folder: `isoflop serve FOLDER --engine vllm`.

It listens on loopback with a key that nobody else knows, which is in its environment and not among its
words. vLLM asks for it at /v1 alone: what else it answers, such as /tokenize, others on this machine can ask.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from isoflop.errors import ProjectError
from isoflop.serve.engines import vllm_child
from isoflop.serve.engines.http import LOOK_SECONDS, Http
from isoflop.serve.protocol import EngineError, RequestError

COMMAND = "vllm"
LOAD_SECONDS = 1800.0  # in which it answers, or is given up: large models take many minutes
TOLD_SECONDS = 15.0  # between two words on how it goes
END_SECONDS = vllm_child.END_SECONDS + 5.0
HEARD_SECONDS = 2.0  # in which its last words are read
LINE = 200  # characters of its last words that are told

log = logging.getLogger(__name__)


def command() -> str:
    """Where vLLM is: on the path, or beside this Python. Raises ProjectError where it is not."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    found = shutil.which(COMMAND, path=places)
    if found is None:
        raise ProjectError(
            "vllm is not installed here, and --engine vllm starts it",
            hint="pip install vllm, on a machine with a GPU, or name a server that runs: NAME=http://HOST:PORT",
        )
    return found


class VllmProcess:
    """A process of vLLM, which is begun and ended as a `Remote` asks for it. `context`: tokens at most."""

    def __init__(self, folder: Path, *, context: int | None = None) -> None:
        self._folder, self._context = folder, context
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._group = 0  # of vLLM's processes
        self._last = ""  # line that it wrote

    async def begin(self) -> tuple[str, str]:
        """Returns when it answers, with its address and key. Raises ProjectError where it ends before."""
        key, port = secrets.token_urlsafe(32), _free_port()
        words = [command(), "serve", str(self._folder.absolute()), "--host", "127.0.0.1", "--port", str(port)]
        if self._context is not None:
            words += ["--max-model-len", str(self._context)]
        environment = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", vllm_child.__file__, start_new_session=True,  # Ctrl-C is not for it
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        self._listening = asyncio.create_task(self._listen(process))
        process.stdin.write(json.dumps({"command": words, "environment": environment}).encode() + b"\n")
        self._group = int(await process.stdout.readline() or 0)
        address = f"http://127.0.0.1:{port}"
        await self._answers(process, address)
        return address, key

    def ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def end(self) -> None:
        """End it with all that it has begun."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        if not await _exited(process):
            process.kill()
            await _exited(process)
        if (process.returncode is None or process.returncode < 0) and self._group:  # it ended nothing
            with suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
        await self._heard()

    async def _heard(self) -> None:
        """Returns when all is read that was said; others than vLLM's own processes may hold its end."""
        if self._listening is not None:
            await asyncio.wait([self._listening], timeout=HEARD_SECONDS)
            self._listening.cancel()

    async def _answers(self, process: asyncio.subprocess.Process, address: str) -> None:
        """Waits until it does."""
        http = Http(address, "vLLM", key=None, connections=1)
        began, told = time.monotonic(), 0.0
        try:
            while not await _healthy(http):
                seconds = time.monotonic() - began
                if process.returncode is not None or seconds > LOAD_SECONDS:
                    raise await self._failed(process, seconds)
                if seconds - told > TOLD_SECONDS:
                    told = seconds
                    log.warning("vLLM loads %s, for %.0f s by now: %s", self._folder, seconds, self._last)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await http.close()

    async def _failed(self, process: asyncio.subprocess.Process, seconds: float) -> ProjectError:
        if process.returncode is None:
            return ProjectError(
                f"vLLM does not answer {seconds:.0f} s after it began to load {self._folder}",
                hint=f"start it by hand: vllm serve {self._folder}",
            )
        await self._heard()
        said = self._last or f"status {process.returncode}"
        return ProjectError(
            f"vLLM ended as it opened {self._folder}: {said}", hint=f"see it all: vllm serve {self._folder}"
        )

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Reads what it says, so that it never waits for a reader."""
        assert process.stderr is not None
        rest = b""
        while part := await process.stderr.read(1 << 16):
            *lines, rest = (rest + part).split(b"\n")
            for line in filter(None, (line.decode(errors="replace").strip() for line in lines)):
                self._last = line[:LINE]
                log.debug("vLLM: %s", line)


async def _exited(process: asyncio.subprocess.Process) -> bool:
    """Whether it has, after some time. asyncio's own wait() waits for whoever has its standard error, too."""
    deadline = time.monotonic() + END_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
    return process.returncode is not None


async def _healthy(http: Http) -> bool:
    try:
        await http.touch("/health")
    except (EngineError, RequestError):
        return False
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
