"""The ledger's verdict on an artifact: its worth where it serves, its cost, and whether it is accepted.

A step is accepted when the interval of its inference doublings (bytes x seconds at equal loss) lies above
those of the last accepted model that it was made from: so pruning and the training that heals it are judged
together where pruning alone is refused. Model folders are served by their float export.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np

from isoflop.dense import FLOATS, FORMAT, Dense, cost_of, dense_costs
from isoflop.engines.speed import disk_bytes
from isoflop.errors import ProjectError
from isoflop.gain import InferenceGain, ServingCost, gain, inference, inference_over, params_for
from isoflop.laws import Fit
from isoflop.laws.intervals import check_level, tails
from isoflop.lineage import UNKNOWN, Lineage, Made
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

    @property
    def quiet(self) -> bool:
        """Whether the machine had little else to do while it was timed."""
        return self.served.quiet


class Judge:
    """Judges artifacts of a project, their ancestors first, each once; verdicts are kept in the ledger.

    `to` is the format that model folders and dense models are served in. What is known is not measured again,
    unless `again` says so. Raises ProjectError without a law, or for an unknown format.
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
        self.project, self.corpus, self.fit, self.fit_id = project, corpus, fit, fit.digest()
        self.to, self.threads, self.eval_tokens = to, threads, eval_tokens
        self.interval, self.again, self.progress = interval, again, progress or Silent()
        self.lineage = Lineage(project, to)
        self._judged: dict[str, Verdict] = {}
        self._served: dict[str, Served] = {}
        self._time_dense = again

    def of(self, artifact: Path) -> Verdict:
        """Of a model folder or an export of one.

        Raises ProjectError without a ladder or the artifact, for another architecture than our decoder, or an
        engine that is not installed; CorruptError for what is damaged or has another tokenizer; FitError for
        a law without a best split.
        """
        if not artifact.exists():
            raise ProjectError(f"there is no artifact {artifact}", hint="isoflop ls shows a project's models")
        return self.judged(self.lineage.made(artifact.absolute()))

    def all(self) -> list[Verdict]:
        """Of every finished artifact of the project, oldest first. Raises as `of` does."""
        paths = self.lineage.all()
        if not paths:
            raise ProjectError(f"{self.project.folder} has no finished models", hint="make one: isoflop run")
        self.progress.start(STAGE, len(paths), "artifacts")
        found = []
        for number, path in enumerate(paths):
            found.append(self.judged(self.lineage.made(path)))
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

    def _accepted(self, made: Made) -> Iterator[Verdict]:
        """The accepted ancestors that a chain leads to, the last first."""
        while made.made_from is not None and (self.project.folder / made.made_from).exists():
            made = self.lineage.made(made.made_from)
            found = self.judged(made)
            if found.accepted:
                yield found

    def _judge(self, made: Made, before: Verdict | None) -> Verdict:
        served, costs = self._measured(made), self.lineage.costs(made.path)
        cost = self._cost(made, served)
        noise = self.fit.noise_sd * served.loss
        losses = [served.loss] if before is None else [before.served.loss, served.loss]
        dense = [d.cost for d in self._dense(max(params_for(self.fit, loss) for loss in losses))]
        change, paired, over = None, False, None
        if before is not None:
            first = self._measured(self.lineage.made(before.path))
            change, paired = change_between(first, served, self.interval)
            over = inference_over(
                self.fit, (first.loss, served.loss),
                (self._cost(self.lineage.made(before.path), first), cost), dense, loss_se=noise,
                change_se=_sd(change), interval=self.interval,
            )  # fmt: skip
        spent, known = sum(costs.flops.values()), costs.complete
        accepted, why = _decided(made, before, over, served.quiet)
        return Verdict(
            id=digest([served.hash, served.machine, self.threads, self.to, self.fit_id, made.path]),
            path=made.path, step=made.step, made_from=made.made_from,
            against=None if before is None else before.path, corpus_id=self.corpus.id, fit_id=self.fit_id,
            format=self.to, served=served.model_copy(update={"windows": ()}), bytes=int(cost.bytes),
            change=change, paired=paired, flops=costs.flops, flops_step=sum(made.flops.values()),
            seconds=costs.seconds, complete=known,
            inference=inference(
                self.fit, served.loss, cost, dense, loss_se=noise, interval=self.interval
            ),
            over=over, accepted=accepted, why=why,
            training=gain(
                self.fit, served.loss, spent, loss_se=noise, costs=costs.flops, interval=self.interval
            ) if known and spent > 0 else None,
        )  # fmt: skip

    def _measured(self, made: Made) -> Served:
        """In its engine: of a model folder that of the format asked for."""
        if made.path not in self._served:
            self._served[made.path] = serve(
                self.project, self.corpus, self._servable(made), threads=self.threads,
                eval_tokens=self.eval_tokens, again=self.again, progress=self.progress,
            )  # fmt: skip
        return self._served[made.path]

    def _servable(self, made: Made) -> Path:
        """An export as it is, a model folder as its float export, which is made where it is missing."""
        from isoflop.engines import is_export
        from isoflop.export.gated import export

        path = self.project.folder / made.path
        if self.to == "hf" or not path.exists() or is_export(path):
            return path
        known = self.lineage.float_export(content_hash(path)[:HASH_DIGITS])
        if known is None:
            self.progress.log(f"exporting {name_of(made.path)} as {self.to} {FLOATS}")
            known = export(self.project, self.corpus, path, to=self.to, kind=FLOATS).path
            self.lineage = Lineage(self.project, self.to)
        return self.project.folder / known

    def _cost(self, made: Made, served: Served) -> ServingCost:
        cost = cost_of(served.speed)
        if made.step != MASK:
            return cost
        return cost.model_copy(update={"bytes": float(disk_bytes(self.project.folder / made.path))})

    def _dense(self, params: float) -> list[Dense]:
        found = dense_costs(
            self.project, self.corpus, params, to=self.to, threads=self.threads, again=self._time_dense,
            progress=self.progress,
        )  # fmt: skip
        self._time_dense = False  # once is enough
        return found


def change_between(before: Served, after: Served, level: float) -> tuple[Interval, bool]:
    """Change of the loss in nats a token with its normal interval, and whether windows were paired."""
    paired = len(before.windows) == len(after.windows) > 1
    if paired:
        more = np.array(after.windows) - np.array(before.windows)
        sd = float(more.std(ddof=1)) / len(more) ** 0.5
    else:
        sd = float(np.hypot(before.loss_se, after.loss_se))
    value, reach = after.loss - before.loss, NormalDist().inv_cdf(tails(level)[1]) * sd
    return Interval(value=value, low=value - reach, high=value + reach, level=level, of="difference"), paired


def name_of(path: str) -> str:
    """An artifact's own name, of its path in the project."""
    parts = Path(path).parts
    return parts[1] if parts[0] == "artifacts" and len(parts) > 1 else path


def _sd(change: Interval) -> float:
    return (change.high - change.value) / NormalDist().inv_cdf(tails(change.level)[1])


def _decided(made: Made, before: Verdict | None, over: Interval | None, quiet: bool) -> tuple[bool, str]:
    """Accepted or not, and why."""
    words = (MASK_WORDS if made.step == MASK else "") + ("" if quiet else LOADED_WORDS)
    if before is None or over is None:
        start = (
            "The ledger does not know how it was made" if made.step == UNKNOWN else "The chain begins here"
        )
        return True, f"{start}: there is nothing to judge it against.{words}"
    worth = (
        f"{over.value:+.2f} doublings [{over.low:+.2f}, {over.high:+.2f}] of bytes x seconds at equal loss"
    )
    other = name_of(before.path)
    if over.low > 0:
        return True, f"It is worth {worth} over {other}.{words}"
    if over.high < 0:
        return False, f"It is worth less than {other}: {worth}.{words}"
    return False, f"It is not told apart from {other}: {worth}.{words}"
