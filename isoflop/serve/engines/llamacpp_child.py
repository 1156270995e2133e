"""The process that llama.cpp's server runs in: `python -m isoflop.serve.engines.llamacpp_child`.

One line of JSON comes on its standard input, with what to serve and the key, so that neither is in the list
of processes; one goes out with the address, or with why there is none. It ends when its input does: with its
parent, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from isoflop.engines.llamacpp import described
from isoflop.errors import CorruptError, IsoflopError

MOST_CONTEXT = 8192  # unless more is asked for: each slot has its own memory for it
ERRORS = 1  # what llama.cpp writes of itself: no more than these
MEAN = 1  # llama.cpp's number for the mean of the token vectors


def main() -> None:
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what llama.cpp prints is none of the answer
    os.environ["GGML_NO_BACKTRACE"] = "1"  # by a debugger that looks into this process
    asked = json.loads(sys.stdin.readline())
    try:
        parameters = _parameters(asked)
        server = _server(parameters)
    except IsoflopError as error:
        kind = type(error).__name__
        line = json.dumps({"error": kind, "message": error.message, "hint": error.hint})
        print(line, file=told, flush=True)
        os._exit(1)
    at_once = parameters.n_batch if asked["embedding"] else parameters.n_ctx
    print(json.dumps({"url": server.listening_address, "at_once": at_once}), file=told, flush=True)
    sys.stdin.read()
    os._exit(0)


def _parameters(asked: dict[str, Any]) -> Any:
    file = described(Path(asked["path"]))

    from xllamacpp import CommonParams

    parameters = CommonParams()
    parameters.model.path = asked["path"]
    context = asked["context"] or min(file.context, MOST_CONTEXT)
    parameters.n_parallel, parameters.n_ctx = asked["slots"], asked["slots"] * context
    for threads in (parameters.cpuparams, parameters.cpuparams_batch):
        threads.n_threads = asked["threads"]
    parameters.fit_params = False  # to the memory of a GPU, by a smaller context
    parameters.cache_ram_mib = 0  # else it keeps the prompts of the past, 8 GB of them
    parameters.ui, parameters.endpoint_slots, parameters.verbosity = False, True, ERRORS
    parameters.api_keys, parameters.n_threads_http = [asked["key"]], asked["connections"] + 2
    if asked["embedding"]:
        parameters.embedding = True
        slots = parameters.n_parallel
        whole = -(-context // slots) * slots  # llama.cpp's graph of means asks for it
        parameters.n_batch = parameters.n_ubatch = whole  # a text is computed at once
        parameters.kv_unified = True  # else it computes long texts in parts, and pools the last one alone
        if file.pooling is None:
            parameters.pooling_type = MEAN
    return parameters


def _server(parameters: Any) -> Any:
    from xllamacpp import Server

    try:
        return Server(parameters)
    except RuntimeError:
        raise CorruptError(
            f"llama.cpp cannot serve {parameters.model.path} with {parameters.n_ctx} tokens of context in all",
            hint="look for a lack of memory, or export it again",
        ) from None


if __name__ == "__main__":
    main()
