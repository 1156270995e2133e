"""What is deployed, who follows it, and what users say of the canary and of the model that it is beside."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.records import Interval, Record
from isoflop.serve.deploying.records import KIND, SERVER, Deployment, Placed, Server, same
from isoflop.serve.feedback import KIND as FEEDBACK
from isoflop.serve.feedback import UP, Feedback
from isoflop.store import Project

LEVEL = 0.9  # of the intervals
MAIN, CANARY, SHADOW, BEFORE = "main", "canary", "shadow", "before"


class Rated(Record):
    """What users said of an artifact's answers since the canary began, or else since it serves."""

    ratings: int
    up: Interval | None  # share; None: of no ratings


class Part(Record):
    role: str
    artifact: Placed
    share: float | None  # of the requests
    rated: Rated | None  # None: nobody gets its answers


class Follower(Record):
    """A server, and what it makes of the name."""

    url: str
    host: str
    seen: str
    lives: bool
    version: int
    state: str
    why: str
    serves: str  # path of the artifact
    role_of: str | None  # that this artifact has in the deployment; None: none


class Status(Record):
    name: str
    deployment: Deployment | None  # None: only typed at `serve`
    parts: tuple[Part, ...]
    followers: tuple[Follower, ...]


def statuses(project: Project, name: str | None = None) -> list[Status]:
    """Of every name, or of one, that is deployed or served."""
    deployed = {known.id: known for known in project.all(KIND, Deployment)}
    servers = project.all(SERVER, Server)
    names = dict.fromkeys([*deployed, *(n for server in servers if server.lives for n in server.names)])
    said = project.all(FEEDBACK, Feedback)
    return [
        _status(n, deployed.get(n), [server for server in servers if n in server.names], said)
        for n in names if name in (None, n)
    ]  # fmt: skip


def _status(
    name: str, known: Deployment | None, servers: Sequence[Server], said: Sequence[Feedback]
) -> Status:
    parts = [] if known is None else _parts(known, [one for one in said if one.model == name])
    return Status(
        name=name, deployment=known, parts=tuple(parts),
        followers=tuple(_follower(server, name, parts) for server in servers),
    )  # fmt: skip


def _parts(known: Deployment, said: Sequence[Feedback]) -> list[Part]:
    canary, shadow = known.canary, known.shadow
    since = known.main.since if canary is None else max(canary.artifact.since, known.main.since)
    left = 1.0 - (canary.share if canary else 0.0)
    parts = [Part(role=MAIN, artifact=known.main, share=left, rated=rated(known.main, since, said))]
    if canary is not None:
        of = rated(canary.artifact, since, said)
        parts.append(Part(role=CANARY, artifact=canary.artifact, share=canary.share, rated=of))
    if shadow is not None:
        parts.append(Part(role=SHADOW, artifact=shadow.artifact, share=shadow.share, rated=None))
    if known.before is not None:
        parts.append(Part(role=BEFORE, artifact=known.before, share=None, rated=None))
    return parts


def rated(artifact: Placed, since: str, said: Sequence[Feedback]) -> Rated:
    """The share of thumbs up, with Wilson's interval (1927), which holds near 0 and 1 as well."""
    from scipy.stats import binomtest

    votes = [one.rating == UP for one in said if one.model_hash == artifact.hash and one.at >= since]
    if not votes:
        return Rated(ratings=0, up=None)
    found = binomtest(sum(votes), len(votes))
    interval = found.proportion_ci(LEVEL, method="wilson")
    up = Interval(
        value=float(found.statistic), low=float(interval.low), high=float(interval.high), level=LEVEL,
        of="share",
    )  # fmt: skip
    return Rated(ratings=len(votes), up=up)


def _follower(server: Server, name: str, parts: Sequence[Part]) -> Follower:
    standing = server.names[name]
    role = next((part.role for part in parts if same(part.artifact, standing.main)), None)
    return Follower(
        url=server.url, host=server.host, seen=server.seen, lives=server.lives, version=standing.version,
        state=standing.state, why=standing.why, serves=standing.main.path, role_of=role,
    )  # fmt: skip
