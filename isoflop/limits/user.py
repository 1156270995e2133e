"""What a project can still buy: doublings from its last run or plan until a limit of its own.

Its law says where the loss is as good as irreducible and how much text a compute budget's best model wants;
its corpus, its measured speed and the money given say how far that goes. One draw of the law's parameters
holds for all limits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.errors import BudgetError, CorruptError, ProjectError
from isoflop.laws.intervals import check_level
from isoflop.laws.repeated import effective_tokens
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.limits import conversions
from isoflop.limits.answers import Limit, UserAnswer, central, first_of
from isoflop.limits.assumptions import Assumptions
from isoflop.limits.industry import LN2, check_draws
from isoflop.records import Corpus, Interval, Plan, Record, Run
from isoflop.store import Project

ROLES = ("final", "train")  # of runs that a project is about, not those that its law is made of
WHAT = {
    "loss": "loss as good as irreducible, by the law",
    "data": "unique text, repeated",
    "machine": "this machine, in the days given",
    "money": "the money given, at the price of an hour",
}


class Standing(Record):
    """Where a project stands."""

    law: Fit
    start: str  # its last run, or its plan
    flops: float  # of that
    unique_tokens: float
    flops_per_second: float  # measured, of the whole machine


def standing(project: Project) -> Standing:
    """By the ledger alone: the law fitted last, and the last run or, without one, the last plan.

    Raises ProjectError when there is no law, or neither run nor plan; CorruptError without the corpus.
    """
    law = project.latest("fit", Fit)
    if law is None:
        raise ProjectError(
            f"{project.folder} has no law yet", hint="make one: isoflop run, or isoflop sweep and isoflop fit"
        )
    runs = [run for run in project.all("run", Run) if run.role in ROLES]
    made: Run | Plan | None = runs[-1] if runs else project.latest("plan", Plan)
    if made is None:
        raise ProjectError(
            f"{project.folder} has neither a run nor a plan to count from", hint="make one: isoflop plan"
        )
    corpus = project.get("corpus", made.corpus_id, Corpus)
    if corpus is None:
        raise CorruptError(
            f"the ledger of {project.folder} has no corpus {made.corpus_id}", hint="build it: isoflop corpus"
        )
    return Standing(
        law=law,
        start=f"{'run' if isinstance(made, Run) else 'plan'} {made.id}",
        flops=made.flops,
        unique_tokens=corpus.train_tokens,
        flops_per_second=made.tokens_per_second * made.flops / made.tokens,
    )


def user(
    here: Standing,
    assumptions: Assumptions,
    *,
    days: float | None = None,
    usd: float | None = None,
    usd_per_hour: float | None = None,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.9,
) -> UserAnswer:
    """Doublings until each limit, and which is the first.

    `days` of the machine and `usd` at `usd_per_hour` are limits when given. Raises BudgetError for amounts
    that are not above zero or money without a price, TrendError for fewer than 100 draws, FitError for a law
    without a best split.
    """
    check_draws(draws)
    check_level(level)
    _check_amounts(days, usd, usd_per_hour)
    rng, law = np.random.default_rng(seed), here.law
    theta = law.draws_array[rng.integers(len(law.draws_array), size=draws)]
    drawn = assumptions.draws(draws, rng)
    others = {"unique_tokens": here.unique_tokens} if "unique_tokens" in law.columns else {}
    paths: dict[str, Array] = {}
    if "E" in law.params:
        paths["loss"] = conversions.of_gap(law, np.log(drawn["loss.gap"]), theta, **others)
    seen = drawn["user.epochs"] * here.unique_tokens
    paths["data"] = conversions.of_tokens(
        law, np.log(effective_tokens(seen, here.unique_tokens)), theta, **others
    )
    speed, zero = np.log(here.flops_per_second) + np.log(drawn["user.speed"]), np.zeros(1)
    if days is not None:
        seconds = np.log(days * conversions.SECONDS_A_DAY)
        paths["machine"] = conversions.of_chips(zero, speed, seconds, zero)
    if usd is not None and usd_per_hour is not None:
        paths["money"] = conversions.of_money(np.log(usd), np.log(usd_per_hour), speed, zero)
    left = (np.stack(list(paths.values()), axis=1) - np.log(here.flops)) / LN2
    first = first_of(left)
    limits = tuple(
        Limit(
            name=name, what=WHAT[name], flops=central(np.exp(path), level, "FLOP"),
            doublings=central(left[:, i], level, "doublings"), first=float(first[i]),
        )
        for i, (name, path) in enumerate(paths.items())
    )  # fmt: skip
    whole = central(left.min(axis=1), level, "doublings")
    return UserAnswer(
        draws=draws, seed=seed, level=level, start=here.start, flops=here.flops, limits=limits,
        doublings=whole, irreducible=law.conf_int(level)["E"] if "E" in law.params else None,
        loss_now=law.optimum(here.flops, level, **others).loss.plain(),
        loss_then=_loss_after(law, here.flops, whole, level, others),
        notes=tuple(_notes(law, limits, whole)), snapshot=assumptions.snapshot,
    )  # fmt: skip


def _loss_after(
    law: Fit, flops: float, left: Interval, level: float, others: dict[str, float]
) -> Interval | None:
    """Of a new run at the best split after the median doublings, of fresh text."""
    after = flops * 2.0**left.value if left.value < 200 else np.inf
    return law.optimum(after, level, **others).loss.plain() if np.isfinite(after) else None


def _check_amounts(days: float | None, usd: float | None, usd_per_hour: float | None) -> None:
    for name, value in (("--days", days), ("--usd", usd), ("--usd-per-hour", usd_per_hour)):
        if value is not None and not 0 < value < np.inf:
            raise BudgetError(f"{name} is {value:g}", hint="give a number above zero")
    if (usd is None) != (usd_per_hour is None):
        raise BudgetError(
            "money buys hours of a machine: --usd and --usd-per-hour belong together",
            hint="give both, e.g. --usd 100 --usd-per-hour 0.10",
        )


def _notes(law: Fit, limits: Sequence[Limit], whole: Interval) -> list[str]:
    """What the numbers leave out."""
    out = []
    if not law.draws:
        out.append("The law has no bootstrap draws: its own uncertainty is not in the intervals.")
    if "E" not in law.params:
        out.append(f"The law {law.law} has no irreducible loss: that limit is left out.")
    else:
        E = law.conf_int()["E"]
        if E.high - E.low > 0.25 * E.value:
            out.append(
                f"The runs hardly say what is irreducible ({E.low:.2g} to {E.high:.2g} nats): where the loss "
                "ends is mostly unknown."
            )
    names = {limit.name for limit in limits}
    if not {"machine", "money"} & names:
        out.append("Time and money are not counted: give --days, or --usd with --usd-per-hour.")
    largest = law.max_flops
    reached = max(limit.flops.value for limit in limits if limit.doublings.value <= whole.value + 1)
    if largest is not None and np.isfinite(reached) and reached > 16 * largest:
        out.append(
            f"That is up to {reached / largest:.2g} times the compute of the largest run behind the law."
        )
    return out
