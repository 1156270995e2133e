"""Which artifact of a project's model is served: the fastest here that is within limits and not refused.

A model folder may be served as it is, as one of its exports, or as what a search recommended for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from isoflop import verdict
from isoflop.adapting.saved import is_adapted
from isoflop.dense import FORMAT
from isoflop.engines import is_export, opened
from isoflop.engines.speed import disk_bytes
from isoflop.errors import IsoflopError, ProjectError
from isoflop.export import adapted
from isoflop.export.adapted import AdaptedExport
from isoflop.export.gated import Export
from isoflop.improving import state
from isoflop.improving.records import Improvement
from isoflop.lineage import UNKNOWN, Lineage
from isoflop.pipeline import corpus_of
from isoflop.progress import Progress, Silent
from isoflop.records import Record
from isoflop.serve.engines.measuring import measured, measured_adapted
from isoflop.serve.settings import LOSS_INCREASE
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.workers import cores


class Offer(Record):
    """An artifact that a model could be served as."""

    path: str  # of what an engine opens, from the project's folder
    hash: str  # of its content
    bytes: int  # on disk
    doubt: str = ""  # why the ledger refuses it
    refused: str = ""  # why it was not to be chosen
    engine: str = ""  # that it was measured in
    seconds: float | None = None  # a token of new text, or a text of a batch; None: not measured
    change: float | None = None  # of the loss, as a share of the model's; or share of labels that are others


class Choice(Record):
    """What is served, and what else could have been."""

    model: str  # that was asked for, from the project's folder
    path: str  # of the chosen artifact
    hash: str  # of its content
    threads: int
    offers: tuple[Offer, ...]
    why: str  # one sentence

    @property
    def offer(self) -> Offer:
        """The chosen one."""
        return next(offer for offer in self.offers if offer.path == self.path)


def choose(
    project: Project, model: Path, *, threads: int | None = None, max_bytes: float | None = None,
    max_loss_increase: float = LOSS_INCREASE, force: bool = False, alone: bool = False,
    progress: Progress | None = None,
) -> Choice:  # fmt: skip
    """The artifact to serve a model folder as; an export that is named is served as it is, and `alone` all.

    Where there are several their speeds on this machine, with `threads` (None: all cores), are those of the
    ledger, or are measured, a few seconds each. `force` serves what the ledger refuses. Raises ProjectError
    where nothing can be served, CorruptError where the chosen artifact is not what was written.
    """
    progress, path, threads = progress or Silent(), opened(model), threads or cores()
    ledger = Standing(project)
    offers = [
        _offer(project, ledger, p, max_bytes, force) for p in ([path] if alone else ledger.artifacts(path))
    ]
    able = [offer for offer in offers if not offer.refused]
    if len(able) > 1:
        progress.log(f"choosing among {len(able)} artifacts of {path.name}")
        told = iter(_measured(project, ledger, path, able, threads, max_loss_increase))
        offers = [offer if offer.refused else next(told) for offer in offers]
        able = [offer for offer in offers if not offer.refused]
    if not able:
        raise _nothing(project, path, offers)
    best = min(able, key=lambda offer: offer.seconds or 0.0)
    _check_content(project, best)
    return Choice(
        model=_named(project, path), path=best.path, hash=best.hash, threads=threads, offers=tuple(offers),
        why=_why(best, others=len(offers) > 1, adapted=is_adapted(path)),
    )  # fmt: skip


def _offer(project: Project, ledger: Standing, path: Path, max_bytes: float | None, force: bool) -> Offer:
    doubt, size = ledger.doubt(path), disk_bytes(path)
    refused = "" if force else doubt
    if max_bytes is not None and size > max_bytes:
        refused = f"it has {size:,} bytes, and {max_bytes:,.0f} are allowed"
    hash = content_hash(path)[:HASH_DIGITS]
    return Offer(path=_named(project, path), hash=hash, bytes=size, doubt=doubt, refused=refused)


def _measured(
    project: Project, ledger: Standing, model: Path, offers: Sequence[Offer], threads: int, most: float
) -> Iterator[Offer]:
    """With their speeds and losses; what could not be measured, or loses too much, is refused."""
    paths = [project.folder / offer.path for offer in offers]
    labelled = is_adapted(model)
    if labelled:
        found = measured_adapted(paths, [ledger.differing(path) for path in paths], threads)
    else:
        found = measured(project, corpus_of(project), model, paths, threads)
    for offer, one in zip(offers, found, strict=True):
        if isinstance(one, IsoflopError):
            yield offer.model_copy(update={"refused": f"it cannot be measured: {one.message}"})
            continue
        refused = ""
        if one.change > most:
            what = "labels that are not the model's" if labelled else "loss more than the model"
            refused = f"it has {one.change:.2%} {what}, and {most:.2%} is allowed"
        yield offer.model_copy(update={**one._asdict(), "refused": refused})


class Standing:
    """What the ledger says of artifacts: what they were made of, their gates and verdicts."""

    def __init__(self, project: Project) -> None:
        self._project, self._lineage = project, Lineage(project, FORMAT)
        self._exports: list[Export | AdaptedExport] = [
            *project.all("export", Export), *project.all(adapted.KIND, AdaptedExport)
        ]  # fmt: skip
        self._verdicts = {found.path: found for found in project.all(verdict.KIND, verdict.Verdict)}

    def artifacts(self, model: Path) -> list[Path]:
        """As which a model may be served, itself first."""
        if is_export(model):
            return [model]
        hash = content_hash(model)[:HASH_DIGITS]
        made = [done.path for done in self._exports if done.source == hash]
        paths = [self._project.folder / path for path in [*made, *self._recommended(hash)]]
        there = [path for path in paths if path.exists() and path.absolute() != model.absolute()]
        return [model, *dict.fromkeys(there)]

    def _recommended(self, hash: str) -> Iterator[str]:
        for search in self._project.all(state.KIND, Improvement):
            if search.source.hash == hash and search.best is not None:
                yield search.trials[search.best].path

    def differing(self, path: Path) -> float:
        """Share of labels that an adapted model's export gave otherwise than the model, at its gate."""
        name = _named(self._project, path)
        alike = [d.alike for d in self._exports if isinstance(d, AdaptedExport) and d.path == name]
        return 0.0 if not alike or alike[-1] is None else 1 - alike[-1]

    def doubt(self, path: Path) -> str:
        """Why it should not be served; empty: nothing speaks against it."""
        name = _named(self._project, path)
        gated = [done for done in self._exports if done.path == name]
        if is_export(path) and not gated and self._lineage.made(name).step == UNKNOWN:
            return "the ledger has no row of it, by which it would have passed a gate"
        for judged in self._line(name):
            if (found := self._verdicts.get(judged)) is not None:
                return "" if found.accepted else f"the verdict on {judged} is against it: {found.why}"
        return ""

    def _line(self, name: str) -> Iterator[str]:
        """An artifact and what it was made from, the last first: the first verdict counts."""
        yield name
        made = self._lineage.made(name)
        yield made.path  # of a float export, its model folder
        while made.made_from is not None:
            made = self._lineage.made(made.made_from)
            yield made.path


def _named(project: Project, path: Path) -> str:
    return Path(os.path.relpath(path.absolute(), project.folder.absolute())).as_posix()


def _nothing(project: Project, path: Path, offers: Sequence[Offer]) -> ProjectError:
    said = "; ".join(f"{Path(offer.path).name}: {offer.refused}" for offer in offers[1:])
    hint = "name another artifact, or raise the limits (--max-bytes, --max-loss-increase)"
    if any(offer.refused == offer.doubt for offer in offers):
        hint = "name another artifact, or serve it all the same: --force"
    return ProjectError(
        f"{path} is not served: {offers[0].refused}" + (f" (and {said})" if said else ""), hint=hint
    )


def _check_content(project: Project, offer: Offer) -> None:
    """Raises CorruptError where an artifact is not what its name says."""
    parts = Path(offer.path).parts
    if parts[0] == "artifacts":
        project.verify_artifact(f"{parts[0]}/{parts[1]}")


def _why(best: Offer, *, others: bool, adapted: bool) -> str:
    doubt = f" It was forced: {best.doubt}." if best.doubt else ""
    if best.seconds is None:
        return f"It is the only artifact {'that may be served' if others else 'of the model'}.{doubt}"
    what = f"{1 / best.seconds:,.0f} {'texts' if adapted else 'tokens'} a second in {best.engine}"
    return f"It is the fastest of the artifacts that may be served: {what}.{doubt}"
