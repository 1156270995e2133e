"""The ledger's verdict on an artifact: its worth where it serves, its cost, and whether it is accepted.

A step is accepted when the interval of its inference doublings (bytes x seconds at equal loss) lies above
those of the last accepted model that it was made from: so pruning and the training that heals it are judged
together where pruning alone is refused. Model folders are served by their float export.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from isoflop.dense import FLOATS, FORMAT, Dense, cost_of, dense_costs
from isoflop.engines.speed import disk_bytes
from isoflop.errors import IsoflopError, ProjectError
from isoflop.gain import DenseCost, InferenceGain, ServingCost, gain, inference, inference_over, params_for
from isoflop.laws import Fit
from isoflop.laws.intervals import check_level, tails
from isoflop.lineage import UNKNOWN, Costs, Lineage, Made
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Gain, Interval, Record, digest
from isoflop.served import Served, serve
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.transforms import EVAL_TOKENS

KIND, STAGE = "verdict", "verdicts"
MASK = "mask"
MASK_WORDS = " Its zeros save bytes on disk at most: the engine reads and computes as much as before."
LOADED_WORDS = " The machine was not quiet while this was timed."


class Verdict(Record):
    """One artifact, judged. Paths are relative to the project's folder."""

    id: str
    path: str
    step: str  # that made it
    made_from: str | None
    against: str | None  # the last accepted model that it was made from; None: the chain begins with it
    corpus_id: str
    fit_id: str  # of the law whose dense models are the base
    format: str  # that these are served in, and model folders
    served: Served  # without its windows
    bytes: int  # on disk: the served file's, or of masked weights the sparse folder's
    change: Interval | None  # of the loss from `against`, nats a token
    paired: bool  # by windows
    flops: dict[str, float]  # of all that it was made of, by step and part
    flops_step: float  # of `flops`, the last step's
    seconds: float  # of making all of it
    complete: bool  # all of these costs are known
    inference: dict[str, InferenceGain]  # by cost
    over: Interval | None  # doublings (bytes x seconds) more than `against`
    training: Gain | None  # None: costs are not known
    accepted: bool
    why: str  # one sentence
    dense_quiet: bool = True  # whether the machine had little else to do while the dense models were timed

    @property
    def quiet(self) -> bool:
        """Whether the machine had little else to do while it was timed."""
        return self.served.quiet


class Judge:
    """Judges artifacts of a project, their ancestors first, each once; verdicts are kept in the ledger.

    `to` is the format that model folders and dense models are served in. What is known is not measured again,
    unless `again` says so. Raises ProjectError without a law, or for a format that is unknown or holds no
    float32.
    """

    def __init__(
        self, project: Project, corpus: Corpus, *, to: str = FORMAT, threads: int = 1,
        eval_tokens: int = EVAL_TOKENS, interval: float = 0.9, again: bool = False,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from isoflop.export.gated import FORMATS

        check_level(interval)
        fit = project.latest("fit", Fit)
        if fit is None:
            raise ProjectError(
                f"{project.folder} has no fitted law, by which verdicts are given",
                hint="isoflop sweep, then isoflop fit",
            )
        if to not in FORMATS:
            raise ProjectError(f"there is no format {to!r}", hint=f"name one of {', '.join(FORMATS)}")
        if FLOATS not in FORMATS[to].kinds:
            raise ProjectError(
                f"{to} has no type {FLOATS}, in which the dense models of the ladder are served",
                hint=f"name another: --engine {FORMAT}",
            )
        self.project, self.corpus, self.fit = project, corpus, fit
        self.to, self.threads, self.eval_tokens = to, threads, eval_tokens
        self.interval, self.again, self.progress = interval, again, progress or Silent()
        self.lineage = Lineage(project, to)
        self._judged: dict[str, Verdict] = {}
        self._cases: dict[str, Case] = {}
        self._time_dense = again

    def of(self, artifact: Path) -> Verdict:
        """Of a model folder or an export of one.

        Raises ProjectError without a ladder or the artifact, for another architecture than our decoder, or an
        engine that is not installed; CorruptError for what is damaged or has another tokenizer; FitError for
        a law without a best split.
        """
        if not artifact.exists():
            raise ProjectError(f"there is no artifact {artifact}", hint="look into PROJECT/artifacts")
        return self.judged(self.lineage.made(artifact.absolute()))

    def all(self) -> list[Verdict]:
        """Of every finished artifact of the project, oldest first, those left out that cannot be judged.

        Raises as `of` does when that is none.
        """
        paths = self.lineage.all()
        if not paths:
            raise ProjectError(f"{self.project.folder} has no finished models", hint="make one: isoflop run")
        self.progress.start(STAGE, len(paths), "artifacts")
        found = []
        for number, path in enumerate(paths):
            try:
                found.append(self.judged(self.lineage.made(path)))
            except IsoflopError as error:
                self.progress.log(f"{name_of(path)} is not judged: {error.message}")
                if number + 1 == len(paths) and not found:
                    raise
            self.progress.update(STAGE, number + 1, name_of(path))
        self.progress.finish(STAGE)
        return found

    def judged(self, made: Made) -> Verdict:
        """Of one step, after those that it was made from."""
        if made.path not in self._judged:
            before = next(self._accepted(made), None)
            self._judged[made.path] = self._judge(made, before)
            self.project.put(KIND, self._judged[made.path])
        return self._judged[made.path]

    def _accepted(self, made: Made) -> Iterator[Made]:
        """The accepted ancestors that a chain leads to, the last first."""
        while made.made_from is not None and (self.project.folder / made.made_from).exists():
            made = self.lineage.made(made.made_from)
            if self.judged(made).accepted:
                yield made

    def _judge(self, made: Made, before: Made | None) -> Verdict:
        cases = [self._case(step) for step in (made, before) if step is not None]
        params = max(params_for(self.fit, case.served.loss) for case in cases)
        dense = dense_costs(
            self.project, self.corpus, params, to=self.to, threads=self.threads, again=self._time_dense,
            progress=self.progress,
        )  # fmt: skip
        self._time_dense = False  # once is enough
        costs = [d.cost for d in dense]
        return weigh(self.fit, cases[0], cases[1] if before else None, costs, to=self.to, level=self.interval)

    def _case(self, made: Made) -> Case:
        """Measured in its engine: of a model folder that of the format asked for."""
        if made.path not in self._cases:
            path = self.project.folder / made.path
            served = serve(
                self.project, self.corpus, self._servable(path), threads=self.threads,
                eval_tokens=self.eval_tokens, again=self.again, progress=self.progress,
            )  # fmt: skip
            cost = cost_of(served.speed)
            if made.step == MASK:
                cost = cost.model_copy(update={"bytes": float(disk_bytes(path))})
            self._cases[made.path] = Case(made, self.lineage.costs(made.path), served, cost)
        return self._cases[made.path]

    def _servable(self, path: Path) -> Path:
        """An export as it is, a model folder as its float export, which is made where it is missing."""
        from isoflop.engines import is_export
        from isoflop.export.gated import export

        if self.to == "hf" or not path.exists() or is_export(path):
            return path
        known = self.lineage.float_export(content_hash(path)[:HASH_DIGITS])
        if known is None:
            self.progress.log(f"exporting {path.name} as {self.to} {FLOATS}")
            known = export(self.project, self.corpus, path, to=self.to, kind=FLOATS).path
            self.lineage = Lineage(self.project, self.to)
        return self.project.folder / known


@dataclass(frozen=True)
class Case:
    """What is known of an artifact before it is judged."""

    made: Made
    costs: Costs
    served: Served
    cost: ServingCost


def weigh(
    fit: Fit, case: Case, before: Case | None, dense: Sequence[DenseCost], *, to: str, level: float
) -> Verdict:
    """Judge an artifact against the last accepted model that it was made from. Raises FitError.

    The noise of its loss is that from run to run, as the law knows it: the held-out text is the law's own.
    """
    served, costs, fit_id = case.served, case.costs, fit.digest()
    noise, spent = fit.noise_sd * served.loss, sum(costs.flops.values())
    change, paired, over = None, False, None
    if before is not None:
        change, paired = change_between(before.served, served, level)
        over = inference_over(
            fit, (before.served.loss, served.loss), (before.cost, case.cost), dense, loss_se=noise,
            change_se=(change.high - change.value) / _normal(level), interval=level,
        )  # fmt: skip
    accepted, why = _decided(case, before, over)
    training = None
    if costs.complete and spent > 0:
        training = gain(fit, served.loss, spent, loss_se=noise, costs=costs.flops, interval=level)
    return Verdict(
        id=digest([served.hash, served.machine, served.speed.threads, to, fit_id, case.made.path]),
        path=case.made.path, step=case.made.step, made_from=case.made.made_from,
        against=None if before is None else before.made.path, corpus_id=served.corpus_id, fit_id=fit_id,
        format=to, served=served.model_copy(update={"windows": ()}), bytes=int(case.cost.bytes),
        change=change, paired=paired, flops=costs.flops, flops_step=sum(case.made.flops.values()),
        seconds=costs.seconds, complete=costs.complete,
        inference=inference(fit, served.loss, case.cost, dense, loss_se=noise, interval=level),
        over=over, training=training, accepted=accepted, why=why, dense_quiet=all(d.quiet for d in dense),
    )  # fmt: skip


def change_between(before: Served, after: Served, level: float) -> tuple[Interval, bool]:
    """Change of the loss in nats a token with its normal interval, and whether windows were paired."""
    paired = len(before.windows) == len(after.windows) > 1
    if paired:
        more = np.array(after.windows) - np.array(before.windows)
        sd = float(more.std(ddof=1)) / len(more) ** 0.5
    else:
        sd = float(np.hypot(before.loss_se, after.loss_se))
    value, reach = after.loss - before.loss, _normal(level) * sd
    return Interval(value=value, low=value - reach, high=value + reach, level=level, of="difference"), paired


def alike(
    verdicts: Sequence[Verdict], dense: Sequence[Dense]
) -> tuple[tuple[Verdict, ...], tuple[Dense, ...]]:
    """The last verdict on each artifact of those that have the base of the last one, and that base."""
    if not verdicts:
        return (), ()
    last = verdicts[-1]

    def base(v: Verdict) -> tuple[object, ...]:
        return v.fit_id, v.format, v.served.machine, v.served.speed.threads, v.corpus_id

    shown = {v.path: v for v in verdicts if base(v) == base(last)}
    sizes = {
        d.params: d for d in dense if (d.format, d.machine, d.speed.threads, d.corpus_id) == base(last)[1:]
    }
    return tuple(shown.values()), tuple(sizes[n] for n in sorted(sizes))


def name_of(path: str) -> str:
    """An artifact's own name, of its path in the project."""
    parts = Path(path).parts
    return parts[1] if parts[0] == "artifacts" and len(parts) > 1 else path


def label(v: Verdict) -> str:
    """A step in a picture, with the size that tells it from others of its kind."""
    return f"{v.step}, {v.bytes / 1e6:.3g} MB"


def _normal(level: float) -> float:
    """Standard deviations to either end of a normal interval."""
    return NormalDist().inv_cdf(tails(level)[1])


def _decided(case: Case, before: Case | None, over: Interval | None) -> tuple[bool, str]:
    """Accepted or not, and why."""
    made, quiet = case.made, case.served.quiet
    words = (MASK_WORDS if made.step == MASK else "") + ("" if quiet else LOADED_WORDS)
    if before is None or over is None:
        start = (
            "The ledger does not know how it was made" if made.step == UNKNOWN else "The chain begins here"
        )
        return True, f"{start}: there is nothing to judge it against.{words}"
    worth = (
        f"{over.value:+.2f} doublings [{over.low:+.2f}, {over.high:+.2f}] of bytes x seconds at equal loss"
    )
    other = name_of(before.made.path)
    if over.low > 0:
        return True, f"It is worth {worth} over {other}.{words}"
    if over.high < 0:
        return False, f"It is worth less than {other}: {worth}.{words}"
    return False, f"It is not told apart from {other}: {worth}.{words}"
