"""Tasks of lm-eval (EleutherAI's harness) from local files, through any engine."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from isoflop.corpus import end_token, tokenizer
from isoflop.engines import Engine
from isoflop.engines.reading import continued, log_probabilities, token_nats
from isoflop.errors import ProjectError
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record, digest

LOCAL = ("arrow", "csv", "json", "pandas", "parquet", "text")  # readers of files that datasets has
MOST_NEW = 256  # tokens that a task's answer has when it does not say
BOOTSTRAP = 1000  # resamples for the errors of metrics that are no means
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature"}  # what a task may ask of an answer
STAGE = "tasks"


class TaskScore(Record):
    """One metric of one task."""

    task: str
    metric: str
    filter: str  # of the answers; "none" where there is none
    value: float
    se: float | None  # over documents; None where lm-eval knows none
    documents: int


class Tasks(Record):
    """What lm-eval says."""

    scores: tuple[TaskScore, ...]
    version: str  # of lm-eval


class Loaded:
    """Tasks read from files: `items` by name; `id` names all that their scores depend on.

    `path` is a task's YAML file, or a folder of them. Paths of data files (`data_files`) are relative to the
    YAML file; nothing is taken from a hub. Raises ProjectError when lm-eval is not installed, when there is
    no task, when one cannot be read, or when its data are not in local files.
    """

    def __init__(self, path: Path) -> None:
        path = path.absolute()  # tasks are read from within their folders
        manager = _manager(path)
        self.items: dict[str, Any] = {}
        for file, name in _named(manager, path):
            with _reading(file):
                self.items |= manager.load([name])["tasks"]
        self.id = digest([version("lm_eval"), *(_content(task) for task in self.items.values())])


def evaluate_tasks(
    engine: Engine, corpus: Corpus, loaded: Loaded, *, seed: int = 0, progress: Progress | None = None
) -> Tasks:
    """Scores of tasks by lm-eval's own rules; the engine answers. `seed` is of the examples and of sampling.

    Raises ProjectError for an answer that does not fit into the engine's context, or options of sampling that
    are not among `until`, `max_gen_toks`, `do_sample` and `temperature`.
    """
    from lm_eval.evaluator import evaluate

    for task in loaded.items.values():
        task.set_fewshot_seed(seed)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval's resamples: a fork would copy the engine
    answering = answerer(engine, tokenizer(corpus), end_token(corpus), seed, progress or Silent())
    with contextlib.redirect_stdout(sys.stderr):  # where it says what it does
        tasks = {"tasks": loaded.items, "groups": {}, "group_map": {}}
        found = evaluate(answering, tasks, bootstrap_iters=BOOTSTRAP, log_samples=False)
    assert found is not None  # as it is on every rank but the first
    scores = [
        score
        for task, values in found["results"].items()
        for score in _scores(task, values, found["n-samples"][task]["effective"])
    ]
    return Tasks(scores=tuple(scores), version=version("lm_eval"))


def answerer(engine: Engine, decoder: Tokenizer, end: int, seed: int, progress: Progress) -> Any:
    """An engine as lm-eval's language model, which is a class that only an installed lm-eval has."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows

    class Answerer(TemplateLM):  # type: ignore[misc]
        """Each text begins after the end token of another."""

        eot_token_id = end

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
            return engine.encode(string)

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: object) -> list[tuple[float, bool]]:
            return [self._pair(before, after) for _, before, after in _counted(requests, progress)]

        def _pair(self, before: list[int], after: list[int]) -> tuple[float, bool]:
            """Log-probability of `after`, and whether each of its tokens is the likeliest."""
            if len(after) > engine.context:
                raise ProjectError(
                    f"an answer of {len(after)} tokens does not fit into a context of {engine.context}",
                    hint="score the task with a model of a longer context",
                )
            ids = [*before, *after][-engine.context - 1 :]
            found = log_probabilities(engine, ids[:-1])[-len(after) :]
            likeliest = bool((found.argmax(1) == after).all())
            return float(found[np.arange(len(after)), after].sum()), likeliest

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
            return [self._rolling(request.args[0]) for request in _counted(requests, progress)]

        def _rolling(self, text: str) -> float:
            """As lm-eval cuts a text: each token once, the last window full of context."""
            pairs = get_rolling_token_windows(engine.encode(text), end, engine.context, context_len=1)
            return -sum(
                float(token_nats(engine, [*read, predicted[-1]])[-len(predicted) :].sum())
                for read, predicted in pairs
            )

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
            rng = np.random.default_rng(seed)
            asked = (request.args for request in _counted(requests, progress))
            return [_answer(engine, decoder, end, prompt, options, rng) for prompt, options in asked]

    return Answerer()


def _answer(
    engine: Engine, decoder: Tokenizer, end: int, prompt: str, options: dict[str, Any],
    rng: np.random.Generator,
) -> str:  # fmt: skip
    """Text after a prompt, up to the first of the strings at which the task wants it to stop."""
    if unknown := options.keys() - KNOWN:
        raise ProjectError(
            f"a task asks for {', '.join(sorted(unknown))} in its generation_kwargs",
            hint=f"leave in {', '.join(sorted(KNOWN))} alone",
        )
    until = options.get("until") or []
    until = [until] if isinstance(until, str) else until
    most = min(int(options.get("max_gen_toks", MOST_NEW)), engine.context - 1)
    temperature = float(options.get("temperature", 0)) if options.get("do_sample", False) else 0.0
    ids = [end, *engine.encode(prompt)][-(engine.context - most) :]
    new: list[int] = []
    text = ""
    for token in islice(continued(engine, ids, temperature=temperature, rng=rng, ends={end}), most):
        new.append(token)
        text = decoder.decode(new, skip_special_tokens=False)
        places = [text.find(stop) for stop in until if stop and stop in text]
        if places:
            return text[: min(places)]
    return text


def _manager(path: Path) -> Any:
    """lm-eval's index of the tasks beside `path`. Raises ProjectError."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ProjectError("lm-eval is not installed", hint="pip install 'isoflop[lm-eval]'") from None
    if not path.exists():
        raise ProjectError(
            f"there are no tasks at {path}", hint="give a task's YAML file, or a folder of them"
        )
    return TaskManager(include_path=path if path.is_dir() else path.parent, include_defaults=False)


def _named(manager: Any, path: Path) -> list[tuple[Path, str]]:
    """YAML files with the names of the tasks in them; of a folder those that do not begin with "_".

    Raises ProjectError for a file that is no task, or whose data are not local.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.yaml") if not file.name.startswith("_"))
    else:
        files = [path]
    if not files:
        raise ProjectError(f"{path} holds no task", hint="a task is a .yaml file in lm-eval's form")
    known = {entry.yaml_path.resolve(): entry for entry in manager.task_index.values() if entry.yaml_path}
    found = []
    for file in files:
        if file.resolve() not in known:
            with _reading(file):
                manager.load([str(file)])
            raise ProjectError(f"{file} names a task that another file has", hint="give it a name of its own")
        entry = known[file.resolve()]
        data = entry.cfg.get("dataset_path")
        if data not in LOCAL and data is not None and not (file.parent / data).exists():
            raise ProjectError(
                f"{file} takes its data from {data!r}, which is no local file",
                hint="say dataset_path: json, and dataset_kwargs: {data_files: {test: FILE.jsonl}}",
            )
        found.append((file, entry.name))
    return found


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Paths are relative to the file's folder, and what goes wrong names the file."""
    try:
        with contextlib.chdir(file.parent):
            yield
    except Exception as error:  # of YAML, datasets and lm-eval, which have many classes
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ProjectError(
            f"lm-eval cannot read the task {file}: {why}", hint="mend the file; lm-eval's docs tell its form"
        ) from error


def _content(task: Any) -> str:
    """What a task's scores depend on: its settings, documents and examples."""
    shots = task.fewshot_docs() if task.config.num_fewshot else []
    parts = [task.dump_config(), list(task.eval_docs), list(shots or [])]
    return json.dumps(parts, sort_keys=True, default=str)


def _scores(task: str, values: dict[str, Any], documents: int) -> Iterator[TaskScore]:
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            se = values.get(f"{metric}_stderr,{kept}")
            yield TaskScore(
                task=task, metric=metric, filter=kept, value=float(value),
                se=se if isinstance(se, float) else None, documents=documents,
            )  # fmt: skip


def _counted(requests: Sequence[Any], progress: Progress) -> Iterator[Any]:
    progress.start(STAGE, len(requests), "requests")
    for i, request in enumerate(requests):
        yield request
        progress.update(STAGE, i + 1)
    progress.finish(STAGE, f"{len(requests):,} requests")
