"""What changes a deployment: each writes one record, which servers then follow."""

from __future__ import annotations

import getpass
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.engines import opened
from isoflop.engines.speed import disk_bytes
from isoflop.errors import ServeError
from isoflop.progress import Progress, Silent
from isoflop.serve.deploying.quality import BITS, check, measured
from isoflop.serve.deploying.records import KIND, SERVER, Beside, Deployment, Placed, Server, named, same
from isoflop.serve.selecting import Limits, artifacts
from isoflop.served import now
from isoflop.store import HASH_DIGITS, Project, content_hash

PARTS = ("main", "before", "canary", "shadow")  # of a deployment
TOLERANCE = 0.005  # share by which an artifact may be worse than what serves


@dataclass
class Deploying:
    """Changes of one project. `name` is what clients use; None: the only one that is there.

    `force` takes what is worse by more than `tolerance`, was not measured, or was refused by gate or verdict.
    All raise ServeError for a name that is not served, and where there is nothing to change to.
    """

    project: Project
    name: str | None = None
    tolerance: float = TOLERANCE
    force: bool = False
    progress: Progress | None = None
    _replaced: Deployment | None = None  # by the last change

    def deploy(self, where: str, default_name: str) -> Deployment:
        """Let an artifact be the model, in place of the one before; a canary or shadow of that ends.

        A model of the project is deployed as `serve` would serve it. `default_name` is taken where nothing
        has a name yet. Raises ServeError where it is worse than what serves or cannot be compared, and as
        `choose` does.
        """
        name = self._name(default_name)
        known, running, new = self._known(name), self._running(name), self._placed(where)
        if known is not None and same(known.main, new) and not known.canary and not known.shadow:
            return known  # so that the command can be typed again, and waits again
        before = running
        if running is not None:
            self._check(new, running)
            if same(new, running):  # only what was beside it ends
                before = known.before if known else None
        change = f"{new.path} serves"
        return self._put(name, known, change, main=new, before=before, canary=None, shadow=None)

    def canary(self, where: str, share: float) -> Deployment:
        """Let an artifact answer a share of the requests. Raises as `deploy` does."""
        name, known, main, new = self._beside(where)
        if known is not None and known.canary and known.canary.share == share and _is(known.canary, new):
            return known
        self._check(new, main)
        change = f"{new.path} answers {share:.2%}"
        return self._put(name, known, change, main=main, canary=Beside(artifact=new, share=share))

    def shadow(self, where: str, share: float) -> Deployment:
        """Let an artifact get a share of the requests too. It may be worse: nobody gets its answers."""
        name, known, main, new = self._beside(where)
        if known is not None and known.shadow and known.shadow.share == share and _is(known.shadow, new):
            return known
        change = f"{new.path} gets a copy of {share:.2%}"
        return self._put(name, known, change, main=main, shadow=Beside(artifact=new, share=share))

    def promote(self) -> Deployment:
        """Let the canary be the model. Raises ServeError where it is worse, by what is known now."""
        name = self._name()
        known = self._known(name)
        if known is None or known.canary is None:
            raise ServeError(f"{name} has no canary", hint="isoflop deploy MODEL --canary 10%")
        new = known.canary.artifact
        self._check(new, known.main)
        change = f"{new.path}, the canary, serves"
        main = new.model_copy(update={"since": now()})
        return self._put(name, known, change, main=main, before=known.main, canary=None, shadow=None)

    def rollback(self) -> Deployment:
        """Undo: end the canary where there is one, else return to the model before. It is never refused."""
        name = self._name()
        known = self._known(name)
        if known is not None and known.canary is not None:
            return self._put(name, known, f"{known.canary.artifact.path}, the canary, ends", canary=None)
        if known is None or known.before is None:
            raise ServeError(
                f"{name} was not deployed over anything, so there is nothing to return to",
                hint="isoflop deploy --status shows what is deployed",
            )
        main = known.before.model_copy(update={"since": now()})
        change = f"{main.path} serves again"
        return self._put(name, known, change, main=main, before=known.main, shadow=None)

    def end_shadow(self) -> Deployment:
        name = self._name()
        known = self._known(name)
        if known is None or known.shadow is None:
            raise ServeError(f"{name} has no shadow", hint="isoflop deploy MODEL --shadow 5%")
        return self._put(name, known, f"{known.shadow.artifact.path}, the shadow, ends", shadow=None)

    def take_back(self, failed: Deployment, why: str) -> None:
        """Put the ledger back to before this change of ours, which no server could follow: one that starts
        would find it, and not start. What another has deployed meanwhile stays."""
        last = self._known(failed.id)
        if last is None or last.token != failed.token:
            return
        if self._replaced is None:
            self.project.delete(KIND, failed.id)
            return
        change = f"back to {self._replaced.main.path}, as version {failed.version} failed: {why}"
        parts = {part: getattr(self._replaced, part) for part in PARTS}
        self._put(failed.id, last, change, **parts)

    # -- what is there ------------------------------------------------------------------------------------

    def _name(self, default: str | None = None) -> str:
        """Raises ServeError."""
        home = self.project.folder
        deployed = {known.id for known in self.project.all(KIND, Deployment)}
        served = {name for server in followers(self.project) for name in server.names}
        there = sorted(deployed | served)
        if self.name is None:
            if len(there) > 1:
                hint = "say which: --name NAME"
                raise ServeError(f"{home} serves several models: {', '.join(there)}", hint=hint)
            if not there and default is None:
                raise ServeError(f"nothing is deployed in {home}", hint="isoflop deploy MODEL")
            return there[0] if there else str(default)
        # A new name is for the next server; those that run would not take it.
        if self.name not in there and (served or default is None):
            said = ", ".join(there) or "nothing"
            raise ServeError(f"no model is served as {self.name!r}: {home} has {said}", hint="check --name")
        return self.name

    def _known(self, name: str) -> Deployment | None:
        return self.project.get(KIND, name, Deployment)

    def _running(self, name: str) -> Placed | None:
        """What serves under a name, deployed or only typed at `serve`."""
        known = self._known(name)
        if known is not None:
            return known.main
        typed = [server.names[name].main for server in followers(self.project) if name in server.names]
        return typed[-1] if typed else None

    def _beside(self, where: str) -> tuple[str, Deployment | None, Placed, Placed]:
        """Name, its deployment, what serves, and the artifact that is to be beside it."""
        name = self._name("")
        running = self._running(name) if name else None
        if running is None:
            raise ServeError(
                f"{where} would be beside nothing: no model is deployed or served by {self.project.folder}",
                hint="isoflop deploy MODEL first, or isoflop serve MODEL",
            )
        return name, self._known(name), running, self._placed(where)

    def _placed(self, where: str) -> Placed:
        """As `serve` would serve it. Raises ProjectError where there is no such artifact, and as `choose`."""
        limits, progress = Limits(force=self.force), self.progress or Silent()
        chosen = artifacts({"": where}, self.project, None, limits, progress)[""]
        if "://" in chosen:
            return Placed(path=chosen, hash="", since=now())
        path = opened(Path(chosen))
        found = Placed(
            path=named(self.project, path), hash=content_hash(path)[:HASH_DIGITS], bytes=disk_bytes(path),
            since=now(),
        )  # fmt: skip
        bits = [quality.value for quality in measured(self.project, found) if quality.what == BITS]
        return found.model_copy(update={"bits_per_byte": bits[-1] if bits else None})

    def _check(self, new: Placed, old: Placed) -> None:
        if not self.force and not same(new, old):
            found = check(self.project, new, old, self.tolerance)
            (self.progress or Silent()).log(f"{new.path}: {found.words}")

    def _put(self, name: str, known: Deployment | None, change: str, **fields: Any) -> Deployment:
        self._replaced = known
        before = {} if known is None else {part: getattr(known, part) for part in PARTS}
        made = Deployment.model_validate(before | fields | {
            "id": name, "version": 1 + (known.version if known else 0), "token": secrets.token_hex(8),
            "change": change, "forced": self.force, "by": f"{getpass.getuser()}@{socket.gethostname()}",
            "at": now(),
        })  # fmt: skip
        self.project.put(KIND, made)
        return made


def followers(project: Project) -> list[Server]:
    """Servers of the project that live."""
    return [server for server in project.all(SERVER, Server) if server.lives]


def _is(beside: Beside, artifact: Placed) -> bool:
    return same(beside.artifact, artifact)
