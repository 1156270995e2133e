"""Our side of the benchmarks: a run as `isoflop train` does it, in a fresh process whose every step is timed.

Its clock starts when the process does, so that interpreter, imports, worker processes and a compilation
without torch's cache are inside; `isoflop train` adds only reading its options.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from comparing import SETTLE_STEPS, ask, score, steady
from torch import Tensor

from isoflop import plan
from isoflop.corpus import load_corpus
from isoflop.devices import whole_machine
from isoflop.evaluate import heldout
from isoflop.export import load_pretrained, save_pretrained
from isoflop.interrupt import Interrupted
from isoflop.model import LanguageModel
from isoflop.places import here
from isoflop.progress import Silent
from isoflop.records import Corpus, Run, RunConfig
from isoflop.store import Project
from isoflop.train import train_trunk

ENDLESS_TOKENS = 10**10  # of a run that is stopped once its speed is known


class Clock(Silent):
    """Progress that notes when each step ended."""

    def __init__(self, born: float) -> None:
        self.born = born
        self.marks: list[tuple[float, float]] = []

    def update(self, stage: str, done: float, note: str = "") -> None:
        self.marks.append((time.time() - self.born, done))

    def steady_for(self, seconds: float) -> bool:
        settled = len(self.marks) > SETTLE_STEPS
        return settled and self.marks[-1][0] - self.marks[SETTLE_STEPS - 1][0] >= seconds


def as_trained(config: RunConfig, corpus: Corpus, project: Project, seconds: float) -> RunConfig:
    """With the whole machine, and compiled where a plan of a run of that length would compile it.

    The speeds that decide it are measured here, before any clock starts, and kept in the project. `isoflop
    train` measures them as well, once a machine and shape, inside the time of its first run.
    """
    config = whole_machine(config)
    pays = plan.compiling_pays(project, corpus, config, seconds, Silent(), here()) is not None
    return config.model_copy(update={"compile": pays})


def _trained(config: RunConfig, corpus: Corpus, folder: Path, seconds: float | None) -> dict[str, Any]:
    asked = {
        "born": time.time(), "config": config.model_dump(mode="json"), "seconds": seconds,
        "corpus": str(corpus.folder.absolute()), "folder": str(folder.absolute()),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        cold = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        answer: dict[str, Any] = ask([sys.executable, __file__], input=json.dumps(asked), env=cold)
    return answer


def how(config: RunConfig) -> dict[str, Any]:
    """The columns of a row that say how a run used the machine."""
    return {
        "ranks": config.ranks, "threads": config.threads, "compile": config.compile,
        "precision": config.precision,
    }  # fmt: skip


def speed(config: RunConfig, corpus: Corpus, seconds: float) -> dict[str, Any]:
    """Start-up and steady speed of a run that is stopped after `seconds` of steady state."""
    with tempfile.TemporaryDirectory() as folder:
        endless = config.model_copy(update={"tokens": ENDLESS_TOKENS})
        return steady(_trained(endless, corpus, Path(folder), seconds)["marks"]) | how(config)


def whole_run(config: RunConfig, corpus: Corpus, context: int) -> dict[str, Any]:
    """A complete run: seconds from the start of the process to its last step, and its held-out score."""
    with tempfile.TemporaryDirectory() as folder:
        answer = _trained(config, corpus, Path(folder), None)
        model = load_pretrained(Path(folder) / "model")

        def nats(x: Tensor, y: Tensor) -> Tensor:
            return model.token_losses(x, y).double().sum()

        scored = score(nats, corpus, context)
    run = Run.from_json(json.dumps(answer["run"]))
    return {
        **scored, "wall_seconds": answer["marks"][-1][0], "start_seconds": answer["marks"][0][0],
        "compile_seconds": run.seconds_compile, "tokens": run.tokens, "params": run.params_matmul,
        **how(config),
    }  # fmt: skip


def whole_job(project: Path, budget: str, seed: int, peers: Corpus) -> dict[str, Any]:
    """`isoflop run` with its defaults in an empty folder; its model scored on the whole held-out part."""
    line = [sys.executable, "-m", "isoflop", "run", "--budget", budget, "--seed", str(seed)]
    start = time.perf_counter()
    result: dict[str, Any] = ask([*line, "--project", str(project), "--json"])
    wall = time.perf_counter() - start
    corpus = load_corpus(project / "corpora" / result["corpus_id"])
    assert (corpus.heldout_documents, corpus.heldout_bytes) == (peers.heldout_documents, peers.heldout_bytes)
    scored = heldout(load_pretrained(Path(result["model"])), corpus, eval_tokens=1 << 30)
    kept = ("loss", "bpb", "predicted", "interval", "within_interval", "params", "tokens", "flops",
            "flops_total", "seconds", "doublings")  # fmt: skip
    return {
        "command": shlex.join(["isoflop", *line[3:]]), "bpb": scored.bpb, "wall_seconds": wall,
        "vocabulary": corpus.vocab_size, "result": {key: result[key] for key in kept},
    }  # fmt: skip


def _keep(corpus: Corpus, folder: Path, model: LanguageModel, run: Run) -> None:
    save_pretrained(model, corpus, folder)


def main() -> None:
    """The fresh process: what is asked on stdin, what came of it on stdout."""
    asked = json.load(sys.stdin)
    clock, seconds = Clock(asked["born"]), asked["seconds"]
    config, corpus = RunConfig.model_validate(asked["config"]), load_corpus(Path(asked["corpus"]))
    runs: list[Run] = []
    with suppress(Interrupted):
        runs = train_trunk(
            config, [config.tokens], corpus, Path(asked["folder"]), role="train", progress=clock,
            keep=partial(_keep, corpus, Path(asked["folder"], "model")),
            stopping=None if seconds is None else partial(clock.steady_for, seconds),
        )  # fmt: skip
    print(json.dumps({"marks": clock.marks, "run": runs[0].model_dump(mode="json") if runs else None}))


if __name__ == "__main__":
    main()
