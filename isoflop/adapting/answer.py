"""A base model and examples in, the best adapted model that a budget buys out.

    examples -> base as it is (baseline) -> search -> training of the winner -> scores on test examples -> law

What is chosen is chosen by validation examples; test examples are scored by the chosen model, by the baseline
and by the runs of the task's law. It can be killed at any moment: the same call goes on.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.adapting.bases import check_scratch, folder_of, from_scratch, with_image
from isoflop.adapting.candidates import Facts, candidates
from isoflop.adapting.inputs import (
    MEDIA,
    TEST,
    TRAIN,
    VALIDATION,
    Sources,
    some,
    tell_unreadable,
    tell_unseen,
)
from isoflop.adapting.joined import save_peer
from isoflop.adapting.lawful import law_is_paid, law_of_task
from isoflop.adapting.methods import FULL, method_of
from isoflop.adapting.pace import Pace, Seen, length_for, look
from isoflop.adapting.peer_law import law_of_peer
from isoflop.adapting.peers import Learned, beside, best_step, learned
from isoflop.adapting.prompting import prompted, takes_shots
from isoflop.adapting.records import AdaptConfig, Adapted, Peer
from isoflop.adapting.search import SHARE, Search, trial_seconds
from isoflop.adapting.smaller import smaller
from isoflop.adapting.taught import learned_from
from isoflop.adapting.work import BASE, BEST, FINAL, KIND, Adapting, Work
from isoflop.devices import preferred_precision
from isoflop.errors import AdaptError, BudgetError
from isoflop.metrics import Score
from isoflop.progress import Progress, Silent
from isoflop.records import digest
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.tasks import load_base, task_of
from isoflop.tasks.protocol import Base
from isoflop.tasks.text import check_kind

ADAPTED = "adapted"
# Shares of the budget. The long training has what the others leave, and the law's where there is none.
BASELINE, LAW, SCORING = 0.03, 0.2, 0.08  # the first again where it takes prompts
PEER, PEER_LAW = 0.1, 0.05  # at most: few seconds are enough for most examples
LEAST_TEST, LEAST_VALIDATION = 100, 32  # examples that are scored in any case
MOST_VALIDATION = 1000  # in the search
SCORED = 0.06  # share of a trial's time that one score of it may take
TIMED = 16  # examples from which the time of the baseline is known
SHOTS = 4  # training examples that the second baseline is shown
AMONG_ALL = ("mrr",)  # metrics that fewer examples make easier


def adapt(
    project: Project, base: Path, task: str, data: Sequence[Path], *, budget_seconds: float,
    method: str | None = None, columns: Mapping[str, str] | None = None, validation: Sequence[Path] = (),
    test: Sequence[Path] = (), set: Mapping[str, Any] | None = None, max_length: int | None = None,
    also: Sequence[Path] = (), image_model: Path | None = None, law: bool = True,
    teacher: Path | None = None, keep_layers: int | None = None, peer: bool = True, seed: int = 0,
    progress: Progress | None = None,
) -> Adapted:  # fmt: skip
    """Adapt a base to a task within a budget; the answer is also in the ledger.

    `method` None: methods and learning rates are searched. `columns` are role -> column where guesses fail;
    `validation` and `test` examples are parts of `data` where they are not given. `set` holds values of
    `AdaptConfig` for all that is tried. `also` are further bases, which the law compares by their size;
    `image_model` is the second base of a task that reads images with texts. Names of `tasks.scratch.SCRATCH`
    stand for image models from scratch. `teacher` is an adapted model of the same labels, from which the new
    one learns; `keep_layers` of the base's layers are taken, evenly spread, where it shall be smaller.

    Where no method is named, a base that answers the task without training is kept as it is unless a training
    is better on the validation examples; and where there is no teacher either, the model answers together
    with its `peer` (a linear model, or a memory of the examples: `peers`) if that is better on them.

    Raises AdaptError for data, a base, a method or a value that does not fit; BudgetError where there is no
    time for one trial, with the time that it needs; Interrupted, saved, at Ctrl-C.
    """
    began, progress = time.monotonic(), progress or Silent()
    if not data:
        raise AdaptError("there are no examples", hint="name files or folders: --data FILE")
    found, given, sources = task_of(task), dict(set or {}), Sources(data, validation, test)
    if method is not None:
        method_of(method)
    if teacher is not None and also:
        raise AdaptError(
            "a law of sizes compares models without a teacher", hint="leave --also or --teacher out"
        )
    for model in (base, *also):
        check_scratch(model, found, method)
    digests, notes = sources.digests(), list[str]()
    read = cache(lambda: sources.read(found, columns or {}, seed, notes, progress))

    def folder(model: Path) -> Path:
        return folder_of(project, model, read()[0][TRAIN]) if from_scratch(model) else model

    start = folder(base) if keep_layers is None else smaller(project, folder(base), keep_layers)
    opened, others = load_base(start, max_length=max_length), [load_base(folder(m)) for m in also]
    for one in (opened, *others):
        check_kind(found, one)
    image = None if image_model is None else folder(image_model)
    hash, *hashes = (_hash(path) for path in (opened.folder, *(o.folder for o in others), image) if path)
    id = digest([
        hash, hashes, task, digests, dict(columns or {}), budget_seconds, method, given, opened.max_length,
        law, seed, *([_hash(teacher)] if teacher is not None else []), *([] if peer else ["alone"]),
    ])  # fmt: skip
    done = project.get(ADAPTED, id, Adapted)
    if done is not None:
        progress.log("this was adapted before; nothing to do")
        return done
    rows, names = read()
    spec = with_image(found, found.spec(rows[TRAIN], opened), image)
    tell_unseen(rows, spec, notes)
    tell_unreadable(spec, notes)
    record = project.get(KIND, id, Adapting) or Adapting(id=id, max_length=max_length)
    work = Work(project, record, found, opened, spec, rows, budget_seconds, seed, notes, progress)
    work.count("read", time.monotonic() - began)
    answer = _answer(work, others, method, given, law, teacher, joins=peer and not (method or teacher))
    done = answer.model_copy(update={
        "base": hash, "base_path": str(opened.folder), "data": digests, "columns": names,
    })  # fmt: skip
    project.put(ADAPTED, done)
    project.delete(KIND, id)
    shutil.rmtree(work.folder, ignore_errors=True)
    return done


def _hash(folder: Path) -> str:
    return content_hash(folder)[:HASH_DIGITS]


def _answer(
    work: Work, others: Sequence[Base], method: str | None, given: Mapping[str, Any], law: bool,
    teacher: Path | None, *, joins: bool,
) -> Adapted:  # fmt: skip
    """All but what the answer says of its inputs. `joins`: its peer may answer with the model."""
    seen = _opened(work)
    if method is not None:
        seen = seen._replace(ready=False)  # whoever names a method wants what it makes
    _cap_scored(work, seen)
    simple = learned(work, PEER * work.budget)
    curve = law_of_peer(work, simple, PEER_LAW * work.budget) if law and simple is not None else None
    lesson = learned_from(work, teacher) if teacher is not None else None
    work.encode()
    _baseline(work)
    best = work.record.best or _search(work, seen, method, given)
    work.change(best=best)
    alone = not work.record.trials  # there was no time for a search, nor is there for a law
    if alone:
        work.notes.append("the time is too short to compare: the likeliest configuration has all of it")
    held = len(work.rows[TEST]) + ((1 if alone else 2) + seen.ready) * len(work.rows[VALIDATION])
    after = seen.pace.predicting * held + 2 * seen.pace.opening
    if law and not alone and law_is_paid(work, best, others, seen, LAW * work.budget):
        after += LAW * work.budget
    needed = seen.pace.needed(len(work.rows[TRAIN]), best.batch, len(work.rows[VALIDATION]))
    if work.record.final is None and (alone or work.left - after > needed):
        try:
            work.train(best, work.left - after)
        except (AdaptError, BudgetError) as error:
            if alone:
                raise
            work.notes.append(f"the long training failed, and a trial is kept: {error.message}")
    chosen = _chosen(work, seen)
    with work.part("score"):
        taught = None if lesson is None else lesson.beside(work, chosen.made)
        peer = None
        if simple is not None:
            chosen, peer = _with_peer(work, chosen, simple, joins)
            peer = peer.model_copy(update={"law": curve})
    if chosen.name == BASE:
        best, law = work.as_is, False  # it has learned from no examples
    found = law_of_task(work, best, chosen.name, others, seen, chosen.seconds) if law else None
    model = work.project.add_artifact(
        f"{ADAPTED}-{work.task.name}",
        lambda folder: shutil.copytree(work.folder / chosen.name, folder, dirs_exist_ok=True),
    )
    trials = (*work.record.trials, *([work.record.final] if work.record.final else []))
    return Adapted(
        id=work.record.id, task=work.task.name, base="", base_path="", data={}, columns={},
        examples={split: len(rows) for split, rows in work.rows.items()}, spec=work.spec, config=best,
        cut=work.record.cut, trials=trials, validation=chosen.validation, test=chosen.test,
        baseline=work.record.baseline, baseline_says=work.record.baseline_says,
        few_shot=work.record.few_shot, few_shot_says=work.record.few_shot_says,
        seconds=work.record.seconds, model=model, notes=tuple(work.notes), law=found,
        flops=sum(trial.flops for trial in trials) + (taught.flops if taught else 0.0),
        taught=taught, peer=peer,
    )  # fmt: skip


def _opened(work: Work) -> Seen:
    """The base under its head and how fast it is; inputs are cut where nobody has said how long they are and
    the budget has no time for them."""
    known = work.record.max_length
    with work.part("open"):
        if known is not None:
            work.read_to(known)
        seen = look(work.task, work.base, work.spec, work.rows[TRAIN])
        if known is None:
            passes = _passes(work, seen.pace)
            length = length_for(work.task, work.base, work.spec, work.rows[TRAIN], passes)
            shorter = length < work.base.max_length
            work.read_to(length)
            seen = look(work.task, work.base, work.spec, work.rows[TRAIN]) if shorter else seen
    return seen


def _passes(work: Work, pace: Pace) -> float:
    """Over the training examples, that a trial has time for."""
    return trial_seconds(SHARE * work.budget) / (pace.training * len(work.rows[TRAIN]))


def _cap_scored(work: Work, seen: Seen) -> None:
    """As many test examples as can be scored in their share of the budget, and half as many of validation,
    which are scored twice."""
    tested = work.record.tested or max(LEAST_TEST, int(SCORING * work.budget / seen.pace.predicting))
    work.change(tested=tested)
    for split, most in ((VALIDATION, max(LEAST_TEST, tested // 2)), (TEST, tested)):
        there = len(work.rows[split])
        work.rows[split] = some(work.rows[split], most, work.seed)
        if most < there:
            work.notes.append(f"{most:,} of {there:,} {split} examples are scored, for want of time")


def _baseline(work: Work) -> None:
    """The base as it is, and after some training examples where it takes prompts."""
    if not work.record.baseline:
        scores, says = _answers(work, 0)
        work.change(baseline=scores, baseline_says=says)
    if not work.record.few_shot and takes_shots(work.task, work.base):
        scores, says = _answers(work, SHOTS)
        work.change(few_shot=scores, few_shot_says=says)


def _answers(work: Work, shots: int) -> tuple[tuple[Score, ...], str]:
    """Of the base, on as many test examples as a share of the budget lets; and how they were made."""

    def asked(rows: Any) -> tuple[list[Any], str]:
        return prompted(work.task, work.base, work.spec, work.rows[TRAIN], rows, shots=shots, seed=work.seed)

    with work.part("baseline"):
        rows, began = work.rows[TEST], time.monotonic()
        found, says = asked(some(rows, TIMED, work.seed))
        each = (time.monotonic() - began) / len(found)
        paid = len(rows) if work.metric.name in AMONG_ALL else int(BASELINE * work.budget / each)
        most = some(rows, max(TIMED, paid), work.seed)
        if len(most) > len(found):
            found, says = asked(most)
        if len(most) < len(rows):
            says += f"; {len(most):,} of the {len(rows):,} test examples"
        return work.scores(found, most), says


def _search(work: Work, seen: Seen, method: str | None, given: Mapping[str, Any]) -> AdaptConfig:
    """The best of the trials, those of the ledger first; or the likeliest, where there is no time for any.

    Raises BudgetError where that has no time either.
    """
    n, pace = len(work.rows[TRAIN]), seen.pace
    spent = work.record.seconds.get("search", 0.0)
    seconds = max(0.0, SHARE * (work.left + spent))  # a teacher may have had much
    facts = Facts(
        examples=n, labels=len(work.spec.labels), params=seen.params, scratch=seen.scratch,
        text_out=work.task.soft and not work.spec.labels, passes=_passes(work, pace),
        reads=next((r.holds for r in work.task.roles if r.holds in MEDIA), "text"),
        precision=preferred_precision(),
    )  # fmt: skip
    rates = {name: method_of(name).lr for name in seen.methods | {method or FULL}}
    tried = candidates(work.task.name, facts, rates, method=method, given=given, seed=work.seed)
    needed = pace.needed(n, tried[0][0].batch, LEAST_VALIDATION)
    if work.left < needed and not work.record.trials:
        raise BudgetError(
            f"{max(0.0, work.left):.1f} s are left, and one trial needs about {needed:.1f} s",
            hint=f"give a budget of {math.ceil(work.budget - work.left + 2 * needed)} s or more (--budget), "
            "or shorter inputs (--max-length)",
        )
    if not work.record.each and (seconds < needed or (facts.scarce and sum(map(len, tried)) == 1)):
        return tried[0][0]
    each = work.record.each or trial_seconds(seconds, needed)
    most = min(MOST_VALIDATION, max(LEAST_VALIDATION, int(SCORED * each / pace.predicting)))
    most = work.record.validated or most
    work.change(
        each=each, validated=most, trials=tuple(t for t in work.record.trials if t.curve)
    )  # what failed is tried again
    validation = some(work.rows[VALIDATION], most, work.seed)
    search = Search(
        tried, given, seconds=seconds, each=each, higher=work.metric.higher_is_better,
        done=work.record.trials,
    )  # fmt: skip
    try:
        search.run(
            lambda config, seconds, report: work.attempt(config, validation, seconds, report),
            lambda trial: work.change(trials=(*work.record.trials, trial)), work.progress,
        )  # fmt: skip
    except BudgetError:  # the machine is slower than it was when it was timed
        work.change(trials=())
        return tried[0][0]
    return search.best.config


class _Chosen(NamedTuple):
    """The model that is kept."""

    name: str
    validation: tuple[Score, ...]
    test: tuple[Score, ...]
    held: list[Any]  # its predictions of the validation examples
    made: list[Any]  # of the test examples
    seconds: float  # that they and their scores took


def _chosen(work: Work, seen: Seen) -> _Chosen:
    """Which model is better on the validation examples; the base is one where it needs no training."""
    with work.part("score"):
        models = {BASE: work.save_base()} if seen.ready else {}
        models |= {name: model for name in (FINAL, BEST) if (model := work.saved(name)) is not None}
        rows = work.rows[VALIDATION]
        held = {name: work.predicted(model, rows) for name, model in models.items()}
        scores = {name: work.scores(predictions, rows) for name, predictions in held.items()}
        sign = 1 if work.metric.higher_is_better else -1
        best = max(scores, key=lambda name: sign * scores[name][0].value)
        if best == BASE:
            work.notes.append("no training was better than the base as it is, which is kept")
        elif best == BEST and FINAL in scores:
            work.notes.append("the long training was no better than the trial of the search, which is kept")
        began = time.monotonic()
        made = work.predicted(models[best], work.rows[TEST])
        test = work.scores(made, work.rows[TEST])
    return _Chosen(best, scores[best], test, held[best], made, time.monotonic() - began)


def _with_peer(work: Work, chosen: _Chosen, found: Learned, joins: bool) -> tuple[_Chosen, Peer]:
    """The model with its peer, which answers with it where that is better on the validation examples."""
    least = found.peer.steps[0]
    step = best_step(work, found, chosen.held) if joins else least
    peer = beside(work, found, chosen.made, step)
    if step == least:
        return chosen, peer
    save_peer(work.folder / chosen.name, found.peer, step)
    work.notes.append(f"{found.peer.says} answers with the model, which is better on the validation examples")
    work.notes.append("trials and the law of the task are of the model alone")
    validation = work.scores(found.together(VALIDATION, chosen.held, step), work.rows[VALIDATION])
    test = work.scores(found.together(TEST, chosen.made, step), work.rows[TEST])
    return chosen._replace(validation=validation, test=test), peer
