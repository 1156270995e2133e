"""A search as tables show it."""

from __future__ import annotations

from collections import Counter

from isoflop.improving.records import Improvement, Tried

HEAD = ("model", "loss", "change", "s.e.", "MB", "ms a token", "engine", "threads")


def title(done: Improvement) -> str:
    failed = sum(bool(t.error) for t in done.trials)
    return (
        f"{len(done.front)} of {len(done.trials) - failed} measured models are the front; "
        f"{len(done.refused)} were ruled out by estimates" + (f", {failed} failed" if failed else "")
    )


def rows(done: Improvement) -> list[tuple[str, ...]]:
    """A row a model of the front, fewest bytes first; the input is last among them, or beside them."""
    numbers = [*done.front, *([] if 0 in done.front else [0])]
    return [_row(done, number) for number in numbers]


def left_out(done: Improvement) -> str:
    """How many candidates were not built, by the kind of reason; empty where all were."""
    counts = Counter(refused.because for refused in done.refused)
    found = ", ".join(f"{count} ({because})" for because, count in counts.most_common())
    return f"Not built, by estimate: {found}." if found else ""


def spent(done: Improvement) -> str:
    """Where the budget went."""
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in done.seconds.items())
    return f"Spent {done.seconds_total:.0f} s ({parts}) and {done.flops_total:.3g} FLOPs."


def noisy(done: Improvement) -> str:
    """What to know of the speeds where the machine had other work; empty where it had none."""
    loud = sum(not t.quiet for t in done.trials if t.figures is not None)
    if not loud:
        return ""
    return f"The machine was not quiet while {loud} of them were timed: their speeds are too low."


def chain(done: Improvement) -> list[str]:
    """The steps to the recommended model."""
    return [] if done.best is None else [step.words for step in done.trials[done.best].steps]


def _row(done: Improvement, number: int) -> tuple[str, ...]:
    trial, first = done.trials[number], done.trials[0].figures
    found = trial.figures
    assert found is not None
    assert first is not None
    name = trial.candidate.name + (" (input)" if number == 0 else "")
    return (
        f"* {name}" if number == done.best else f"  {name}", f"{found.loss:.4f}", _share(trial, first.loss),
        f"{trial.change_se / first.loss:.2%}", f"{found.bytes / 1e6:.3f}", f"{1000 * found.seconds:.3f}",
        trial.engine, str(trial.threads),
    )  # fmt: skip


def _share(trial: Tried, loss: float) -> str:
    return f"{trial.change / loss:+.2%}"
