"""Progress of long work, independent of who shows it: stages call it, the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Something that shows how far the work is. `total` and `done` share one unit."""

    def start(self, stage: str, total: float, unit: str = "") -> None:
        """A stage begins."""

    def update(self, stage: str, done: float, note: str = "") -> None:
        """`done` units of the stage are finished, in all."""

    def finish(self, stage: str, note: str = "") -> None:
        """The stage is over."""

    def log(self, message: str) -> None:
        """One line for the reader."""


class Silent:
    """Shows nothing: the default of the library."""

    def start(self, stage: str, total: float, unit: str = "") -> None: ...

    def update(self, stage: str, done: float, note: str = "") -> None: ...

    def finish(self, stage: str, note: str = "") -> None: ...

    def log(self, message: str) -> None: ...
