"""Until the servers that run have done what was deployed."""

from __future__ import annotations

import time
from typing import NamedTuple

from isoflop.errors import ServeError
from isoflop.progress import Progress
from isoflop.serve.deploying.changing import followers
from isoflop.serve.deploying.records import KIND, Deployment, Server
from isoflop.store import Project

LOOK = 0.25  # seconds after which the ledger is read again
STAGE = "servers"


class Waited(NamedTuple):
    """Servers that live and serve the name, by what they made of a deployment; of none, none runs."""

    done: list[Server]
    failed: list[Server]
    late: list[Server]

    @property
    def in_vain(self) -> bool:
        """No server could open it, and none may yet."""
        return bool(self.failed) and not self.done and not self.late

    def why(self, wanted: Deployment) -> str:
        return "; ".join(f"{_where(server)}: {server.names[wanted.id].why}" for server in self.failed)

    def check(self, wanted: Deployment) -> None:
        """Raises ServeError where not all have done it."""
        many = sum(map(len, self))
        if self.failed:
            raise ServeError(
                f"{len(self.failed)} of {many} servers could not swap, and go on as before: "
                + self.why(wanted),
                hint="mend it and deploy it again"
                + ("" if self.in_vain else ", or isoflop deploy --rollback for those that did"),
            )
        if self.late:
            raise ServeError(
                f"{len(self.late)} of {many} servers have not swapped yet: "
                + ", ".join(map(_where, self.late)),
                hint="they go on with it; isoflop deploy --status shows it, and --wait waits longer",
            )


def wait(project: Project, wanted: Deployment, seconds: float, progress: Progress) -> Waited:
    """What has become of it when all servers have come to an end with it, or after these seconds.

    Raises ServeError where another deployment took this one's place meanwhile.
    """
    found = _look(project, wanted)
    many = sum(map(len, found))
    if not many:
        return found
    deadline = time.monotonic() + seconds
    progress.start(STAGE, many, "servers")
    while found.late and time.monotonic() < deadline:
        progress.update(STAGE, len(found.done), f"{len(found.done)} have swapped")
        time.sleep(LOOK)
        _check_last(project, wanted)
        found = _look(project, wanted)
    progress.finish(STAGE, f"{len(found.done)} of {sum(map(len, found))} have swapped")
    return found


def _look(project: Project, wanted: Deployment) -> Waited:
    found = Waited([], [], [])
    for server in followers(project):
        if (standing := server.names.get(wanted.id)) is None:
            continue
        state = standing.state if standing.token == wanted.token else ""  # it has not heard of it
        {"serving": found.done, "failed": found.failed}.get(state, found.late).append(server)
    return found


def _where(server: Server) -> str:
    return f"{server.url} on {server.host}"


def _check_last(project: Project, wanted: Deployment) -> None:
    last = project.get(KIND, wanted.id, Deployment)
    if last is None or last.token != wanted.token:
        who = "" if last is None else f" by {last.by}: {last.change}"
        raise ServeError(
            f"another deployment of {wanted.id} took this one's place{who}",
            hint="isoflop deploy --status shows what is deployed now",
        )
