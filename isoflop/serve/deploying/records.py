"""A deployment, and what a server says that it does about it. Times are in UTC, ISO 8601."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from isoflop.records import Record
from isoflop.store import Project

KIND, SERVER = "deployment", "server"
BEAT = 5.0  # seconds after which a server says again that it lives
SILENT = 4 * BEAT  # seconds after which one that says nothing is held to be gone

State = Literal["serving", "opening", "failed"]


class Placed(Record):
    """An artifact as it is served."""

    path: str  # from the project's folder where it is in it, else absolute; or a URL
    hash: str  # of its content; "": of a URL, of which nothing is known
    bytes: int | None = None
    bits_per_byte: float | None = None
    since: str = ""  # in this role


class Beside(Record):
    """One beside the model that serves."""

    artifact: Placed
    share: float  # of the requests that it answers (a canary), or gets too (a shadow)


class Deployment(Record):
    """What one name stands for."""

    id: str  # the name that clients use
    version: int  # rises by one with each change
    token: str  # of this change, which no other has
    main: Placed
    before: Placed | None = None  # to which a rollback returns
    canary: Beside | None = None
    shadow: Beside | None = None
    change: str  # this one, in words
    forced: bool = False  # though the artifact is worse, was not measured, or was refused
    by: str
    at: str


class Standing(Record):
    """What a server makes of one name."""

    version: int = 0  # of the deployment that it follows; 0: what it was started with
    token: str = ""
    state: State = "serving"
    why: str = ""  # it failed: the sentence; what served before serves on
    main: Placed
    canary: Beside | None = None
    shadow: Beside | None = None


class Server(Record):
    """A server that follows the ledger."""

    id: str
    url: str  # for its own machine
    host: str
    process: int
    began: str
    seen: str
    names: dict[str, Standing] = Field(default_factory=dict)

    @property
    def silence(self) -> float:
        """Seconds since it said that it lives."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.seen)).total_seconds()

    @property
    def lives(self) -> bool:
        return self.silence < SILENT


def same(one: Placed, other: Placed) -> bool:
    """Whether they are the same bytes, or the same place of which nothing more is known."""
    return one.hash == other.hash if one.hash or other.hash else one.path == other.path


def named(project: Project, where: str | Path) -> str:
    """A path as `Placed` has it; a URL as it is."""
    if "://" in str(where):
        return str(where)
    path, home = Path(where).absolute(), project.folder.absolute()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def place(project: Project, placed: Placed) -> str:
    """Where it is for a process with the project at this folder."""
    return placed.path if "://" in placed.path else str(project.folder / placed.path)
