"""All questions to one artifact, in one go: those that the ledger answers are not asked again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.evaluate import HeldOut
from isoflop.progress import Progress
from isoflop.records import Corpus
from isoflop.scoring import evaluated
from isoflop.scoring.completions import NEW_TOKENS, Completions, completions
from isoflop.scoring.documents import Documents, by_document
from isoflop.scoring.ensemble import Comparison, compare
from isoflop.scoring.harness import Loaded, Tasks, evaluate_tasks
from isoflop.scoring.robustness import RATES, Robustness, check_rates, robustness
from isoflop.store import Project
from isoflop.using import evaluate_model, reading


class Questions(NamedTuple):
    """What is asked of each artifact beside its loss."""

    eval_tokens: int
    threads: int = 1
    by_document: bool = False
    completions: int = 0
    new_tokens: int = NEW_TOKENS
    temperature: float = 0.0
    robust: bool = False
    rates: tuple[float, ...] = RATES
    tasks: Path | None = None
    seed: int = 0


class Answers(NamedTuple):
    """What an artifact answered; None to what was not asked."""

    loss: HeldOut | None = None
    documents: Documents | None = None
    completions: Completions | None = None
    robustness: Robustness | None = None
    tasks: Tasks | None = None


class Asking:
    """Questions to artifacts of one corpus's tokenizer.

    Raises ProjectError for tasks that cannot be read and rates that cannot be, before anything is asked.
    """

    def __init__(self, project: Project, corpus: Corpus, asked: Questions, progress: Progress) -> None:
        self._project, self._corpus, self._asked, self._progress = project, corpus, asked, progress
        check_rates(asked.rates)
        self._tasks = None if asked.tasks is None else Loaded(asked.tasks)

    def loss(self, path: Path) -> HeldOut:
        """As `using.evaluate_model`."""
        asked = self._asked
        return evaluated(
            self._project, "loss", (path,), self._corpus, {"eval_tokens": asked.eval_tokens}, HeldOut,
            lambda: evaluate_model(
                path, self._corpus, eval_tokens=asked.eval_tokens, threads=asked.threads
            ), progress=self._progress,
        )  # fmt: skip

    def comparison(self, paths: list[Path], *, ensemble: bool) -> Comparison:
        """As `ensemble.compare`."""
        asked, options = self._asked, {"eval_tokens": self._asked.eval_tokens, "ensemble": ensemble}
        return evaluated(
            self._project, "comparison", paths, self._corpus, options, Comparison,
            lambda: compare(
                paths, self._corpus, eval_tokens=asked.eval_tokens, ensemble=ensemble, threads=asked.threads,
                progress=self._progress,
            ), progress=self._progress,
        )  # fmt: skip

    def rest(self, path: Path) -> Answers:
        """To all that was asked beside the loss."""
        asked = self._asked
        tokens, seed = {"eval_tokens": asked.eval_tokens}, {"seed": asked.seed}
        found: dict[str, Any] = {}
        if asked.by_document:
            found["documents"] = self._answer("documents", path, tokens | seed, Documents, by_document)
        if asked.completions:
            options: dict[str, Any] = {
                "number": asked.completions, "new_tokens": asked.new_tokens,
                "temperature": asked.temperature, **seed,
            }  # fmt: skip
            found["completions"] = self._answer("completions", path, options, Completions, completions)
        if asked.robust:
            options = {"rates": list(asked.rates), **tokens, **seed}
            found["robustness"] = self._answer("robustness", path, options, Robustness, robustness)
        if self._tasks is not None:
            loaded = self._tasks
            found["tasks"] = self._answer(
                "tasks", path, {"tasks": loaded.id, **seed}, Tasks,
                lambda engine, corpus, tasks, **rest: evaluate_tasks(engine, corpus, loaded, **rest),
            )  # fmt: skip
        return Answers(**found)

    def _answer(self, part: str, path: Path, options: Mapping[str, Any], answer: type[Any], ask: Any) -> Any:
        """`ask` of the engine, called with the options."""

        def measured() -> Any:
            with reading(path, self._corpus, threads=self._asked.threads) as engine:
                return ask(engine, self._corpus, **options, progress=self._progress)

        return evaluated(
            self._project, part, (path,), self._corpus, options, answer, measured, progress=self._progress
        )
