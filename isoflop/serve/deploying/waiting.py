"""Until the servers that run have done what was deployed."""

from __future__ import annotations

import time

from isoflop.errors import ServeError
from isoflop.progress import Progress
from isoflop.serve.deploying.changing import followers
from isoflop.serve.deploying.records import KIND, Deployment, Server
from isoflop.store import Project

LOOK = 0.25  # seconds after which the ledger is read again
STAGE = "servers"


def wait(project: Project, wanted: Deployment, seconds: float, progress: Progress) -> list[Server]:
    """Servers that have swapped; of none, none runs that serves this name.

    Raises ServeError where one could not, where one has not within these seconds, and where another
    deployment took this one's place meanwhile.
    """
    there = _of(project, wanted)
    if not there:
        return []
    deadline = time.monotonic() + seconds
    progress.start(STAGE, len(there), "servers")
    while True:
        done = [server for server in there if _state(server, wanted) == "serving"]
        failed = [server for server in there if _state(server, wanted) == "failed"]
        progress.update(STAGE, len(done), f"{len(done)} of {len(there)} have swapped")
        if len(done) + len(failed) == len(there) or time.monotonic() > deadline:
            break
        time.sleep(LOOK)
        _check_last(project, wanted)
        there = _of(project, wanted)
    progress.finish(STAGE, f"{len(done)} of {len(there)} have swapped")
    if failed:
        said = "; ".join(f"{server.url} on {server.host}: {server.names[wanted.id].why}" for server in failed)
        raise ServeError(
            f"{len(failed)} of {len(there)} servers could not swap, and go on as before: {said}",
            hint="mend it and deploy it again, or isoflop deploy --rollback",
        )
    if len(done) < len(there):
        late = ", ".join(f"{server.url} on {server.host}" for server in there if server not in done)
        raise ServeError(
            f"{len(there) - len(done)} of {len(there)} servers have not swapped in {seconds:g} s: {late}",
            hint="they go on with it; isoflop deploy --status shows how far they are, --wait waits longer",
        )
    return done


def _of(project: Project, wanted: Deployment) -> list[Server]:
    return [server for server in followers(project) if wanted.id in server.names]


def _state(server: Server, wanted: Deployment) -> str:
    """What it makes of this deployment; "": it has not heard of it."""
    standing = server.names[wanted.id]
    return standing.state if standing.token == wanted.token else ""


def _check_last(project: Project, wanted: Deployment) -> None:
    last = project.get(KIND, wanted.id, Deployment)
    if last is None or last.token != wanted.token:
        who = "" if last is None else f" by {last.by}: {last.change}"
        raise ServeError(
            f"another deployment of {wanted.id} took this one's place{who}",
            hint="isoflop deploy --status shows what is deployed now",
        )
