"""What a search answers: the front, the recommended model, and the nearest where none is within limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoflop.errors import TrainError
from isoflop.improving.front import excess, front, hypervolume, recommended
from isoflop.improving.records import BUDGET, Candidate, Figures, Improvement, Limits, Tried
from isoflop.improving.state import State


def answered(record: Improvement) -> dict[str, Any]:
    """The fields of the answer."""
    start, best = record.trials[0].figures, recommended(record.trials, record.limits)
    assert start is not None
    found = [t.figures for t in record.trials if t.figures is not None]
    return {
        "front": front(record.trials), "best": best,
        "hypervolume": hypervolume(found, start, record.limits),
        "sentence": _sentence(record.trials, best),
    }  # fmt: skip


def _sentence(trials: Sequence[Tried], best: int | None) -> str:
    if best is None:
        return "No model that was measured is within the limits."
    if best == 0:
        form = trials[0].candidate.form
        return f"Nothing that was measured within the limits is better than the input: keep it, as {form}."
    trial, first = trials[best], trials[0].figures
    assert trial.figures is not None
    assert first is not None
    found = trial.figures
    return (
        f"Recommended: {trial.candidate.name}, in {trial.engine} with {trial.threads} thread(s). Than the "
        f"input it has {first.bytes / found.bytes:.1f} times fewer bytes and is "
        f"{first.seconds / found.seconds:.1f} times as fast; its loss is {trial.change / first.loss:+.2%} "
        f"(s.e. {trial.change_se / first.loss:.2%})."
    )


def check_reachable(state: State, candidates: Sequence[Candidate]) -> None:
    """Raises TrainError, naming the nearest, when no candidate is within all limits even at best.

    One that the budget left out may have been: the sentence then speaks of the budget.
    """
    limits, start, known = state.record.limits, state.start, state.known
    at_best = {c.name: known.at_best(c) for c in candidates} | {"the input": start}
    broken = {name: excess(figures, limits, start.loss) for name, figures in at_best.items()}
    if all(broken.values()):
        left_out = [r.figures for r in state.record.refused if r.because == BUDGET]
        if not all(excess(figures, limits, start.loss) for figures in left_out):
            raise TrainError(
                "the budget ended before anything that may be within the limits was measured",
                hint="give a larger budget (--budget), or name one engine (--engine gguf)",
            )
        raise _unmet("no model of this search can be", at_best, broken, limits, start.loss, "at best ")


def raise_unmet(record: Improvement) -> None:
    """Raises TrainError, naming the nearest, when a search ended with nothing within the limits."""
    start = record.trials[0].figures
    assert start is not None
    if record.best is None:
        found = {t.candidate.name: t.figures for t in record.trials if t.figures is not None}
        broken = {name: excess(figures, record.limits, start.loss) for name, figures in found.items()}
        raise _unmet(f"none of {len(found)} measured models is", found, broken, record.limits, start.loss, "")


def _unmet(
    what: str, found: dict[str, Figures], broken: dict[str, dict[str, float]], limits: Limits, loss: float,
    how: str,
) -> TrainError:  # fmt: skip
    name = min(broken, key=lambda n: max(broken[n].values()))
    have, names = found[name], broken[name]
    words = {
        "bytes": f"{have.bytes:,.0f} bytes of {limits.bytes or 0:,.0f}",
        "seconds": f"{1000 * have.seconds:.3g} ms a token of {1000 * (limits.seconds or 0):.3g}",
        "loss": f"a loss {have.loss / loss - 1:+.2%} of {limits.loss_increase:+.2%}",
    }
    return TrainError(
        f"{what} within the limits: the nearest, {name}, has {how}{', '.join(words[n] for n in names)}",
        hint="raise that limit, give a larger budget (--budget), or begin with another model",
    )
