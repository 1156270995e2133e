"""The process between isoflop's and vLLM's, which ends vLLM and all that it has begun when its input ends:
with its parent, however that ends.

One line of JSON comes on its standard input, with the command and the variables that are only for vLLM: the
list of processes shows neither. One goes out, with the number of vLLM's process and group. What vLLM says
goes to its standard error. It needs Python alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

END_SECONDS = 10.0  # that vLLM has to end by itself


def main() -> int:
    asked = json.loads(sys.stdin.readline())
    vllm = subprocess.Popen(
        asked["command"], env=os.environ | asked["environment"], stdin=subprocess.DEVNULL,
        stdout=sys.stderr, start_new_session=True,
    )  # fmt: skip
    print(vllm.pid, flush=True)
    threading.Thread(target=_ends_with_input, args=(vllm,), daemon=True).start()
    status = vllm.wait()
    _signal(vllm, signal.SIGKILL)  # what it left behind
    return status if status >= 0 else 128 - status


def _ends_with_input(vllm: subprocess.Popen[bytes]) -> None:
    sys.stdin.read()
    _signal(vllm, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        vllm.wait(END_SECONDS)
    _signal(vllm, signal.SIGKILL)


def _signal(vllm: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To its whole group."""
    with suppress(ProcessLookupError):
        os.killpg(vllm.pid, number)


if __name__ == "__main__":
    sys.exit(main())
