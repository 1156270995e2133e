"""How many replicas there may be, and how many threads each has."""

from __future__ import annotations

import re

from isoflop.errors import ServeError
from isoflop.records import Record

FORM = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")


class Replicas(Record):
    """Of each model; one is added while requests wait, and goes when the others are enough."""

    fewest: int
    most: int
    up_seconds: float = 5.0  # that requests must have waited for
    down_seconds: float = 60.0  # that one must not have been needed


def replicas(text: str) -> Replicas:
    """Reads min:max. Raises ServeError."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        raise ServeError(f"--replicas is {text!r}", hint="write the fewest and the most, as 1:4")
    fewest, most = int(found[1]), int(found[2])
    if fewest == 0:  # who asks then waits for seconds, and nothing is ready meanwhile
        raise ServeError("--replicas begins with 0", hint="a model that is served needs one: write 1:N")
    if most < fewest:
        raise ServeError(f"--replicas has at most {most}, fewer than {fewest}", hint="write 1:4, not 4:1")
    return Replicas(fewest=fewest, most=most)


def threads_of(most: int, cores: int, asked: int | None) -> int:
    """Threads of each of so many replicas: the same number whether all of them run or few, so that a new one
    slows no other down. Raises ServeError where they are more than cores."""
    threads = asked or max(1, cores // most)
    if most * threads > cores:
        each = "" if asked is None else f" of {asked} threads"
        raise ServeError(
            f"{most} replicas{each}, and this machine has {cores} cores",
            hint=f"at most {max(1, cores // (asked or 1))} compute at the same time, of all models together",
        )
    return threads
