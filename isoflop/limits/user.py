"""What a project can still buy: doublings from its last run or plan until a limit of its own.

Its law says where the loss is as good as irreducible and how much text a compute budget's best model wants;
its corpus, its measured speed and the money given say how far that goes. One draw of the law's parameters
holds for all limits.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from isoflop.records import Corpus, Plan, Record, Run
from isoflop.store import Project

ROLES = ("final", "train")  # of runs that a project is about, not those that its law is made of
UNSEEN = 60.0  # doublings, beyond which no loss is foretold
VAGUE, FAR = 0.25, 16.0  # an interval of E as a share of it, and a reach beyond the law's runs, that are said


class Standing(Record):
    """Where a project stands."""

    law: Fit
    start: str  # its last run, or its plan
    flops: float  # of that
    unique_tokens: float
    flops_per_second: float  # measured, of the whole machine


class Means(Record):
    """What may be spent; None is not a limit."""

    days: float | None = None  # of the project's machine
    usd: float | None = None
    usd_per_hour: float | None = None  # of such a machine


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
    that are not above zero or money without a price, TrendError for fewer than 100 draws or over a million,
    FitError for a law without a best split.
    """
    check_draws(draws)
    check_level(level)
    means = Means(days=days, usd=usd, usd_per_hour=usd_per_hour)
    _check_amounts(means)
    law, rng = here.law, np.random.default_rng(seed)
    theta = law.draws_array[rng.integers(len(law.draws_array), size=draws)]
    paths = _paths(here, means, theta, assumptions.draws(draws, rng))
    left = (np.stack(list(paths.values()), axis=1) - np.log(here.flops)) / LN2
    first, whole = first_of(left), central(left.min(axis=1), level, "doublings")
    words = _words(here, means, assumptions)
    limits = tuple(
        Limit(
            name=name, what=words[name], flops=central(np.exp(path), level, "FLOP"),
            doublings=central(left[:, i], level, "doublings"), first=float(first[i]),
        )
        for i, (name, path) in enumerate(paths.items())
    )  # fmt: skip
    after = here.flops * 2.0 ** min(whole.value, UNSEEN)
    return UserAnswer(
        draws=draws, seed=seed, level=level, start=here.start, flops=here.flops, limits=limits,
        doublings=whole, irreducible=law.conf_int(level)["E"] if "E" in law.params else None,
        loss_now=law.optimum(here.flops, level, **_others(here)).loss.plain(),
        loss_then=law.optimum(after, level, **_others(here)).loss.plain() if whole.value > 0 else None,
        notes=tuple(_notes(law, means, after)), snapshot=assumptions.snapshot,
    )  # fmt: skip


def _paths(here: Standing, means: Means, theta: Array, drawn: Mapping[str, Array]) -> dict[str, Array]:
    """(n,) ln FLOP at each limit, by (n, p) draws of the law and of the assumptions."""
    law, found = here.law, {}
    if "E" in law.params:
        found["loss"] = conversions.of_gap(law, np.log(drawn["loss.gap"]), theta, **_others(here))
    fresh = effective_tokens(drawn["user.epochs"] * here.unique_tokens, here.unique_tokens)
    found["data"] = conversions.of_tokens(law, np.log(fresh), theta, **_others(here))
    speed, zero = np.log(here.flops_per_second) + np.log(drawn["user.speed"]), np.zeros(1)
    if means.days is not None:
        seconds = np.log(means.days * conversions.SECONDS_A_DAY)
        found["machine"] = conversions.of_chips(zero, speed, seconds, zero)
    if means.usd is not None and means.usd_per_hour is not None:
        found["money"] = conversions.of_money(np.log(means.usd), np.log(means.usd_per_hour), speed, zero)
    return found


def _words(here: Standing, means: Means, assumptions: Assumptions) -> dict[str, str]:
    """Each limit in words."""
    gap, epochs = (assumptions.quantities[name] for name in ("loss.gap", "user.epochs"))
    return {
        "loss": f"within {gap.low:g} to {gap.high:g} nats of what the law says is irreducible",
        "data": f"{here.unique_tokens:,.0f} unique tokens, seen {epochs.low:g} to {epochs.high:g} times",
        "machine": f"{means.days} days at {here.flops_per_second:.2g} FLOP/s, as measured",
        "money": f"{means.usd} USD at {means.usd_per_hour} an hour of such a machine",
    }


def _others(here: Standing) -> dict[str, float]:
    """The law's further covariates."""
    return {"unique_tokens": here.unique_tokens} if "unique_tokens" in here.law.columns else {}


def _check_amounts(means: Means) -> None:
    for name, value in means:
        if value is not None and not 0 < value < np.inf:
            option = "--" + name.replace("_", "-")
            raise BudgetError(f"{option} is {value:g}", hint="give a number above zero")
    if (means.usd is None) != (means.usd_per_hour is None):
        raise BudgetError(
            "money buys hours of a machine: --usd and --usd-per-hour belong together",
            hint="give both, e.g. --usd 100 --usd-per-hour 0.10",
        )


def _notes(law: Fit, means: Means, after: float) -> list[str]:
    """What the numbers leave out."""
    out = []
    if not law.draws:
        out.append("The law has no bootstrap draws: its own uncertainty is not in the intervals.")
    if "E" not in law.params:
        out.append(f"The law {law.law} has no irreducible loss: that limit is left out.")
    else:
        E = law.conf_int()["E"]
        if E.high - E.low > VAGUE * E.value:
            out.append(
                f"The runs hardly say what is irreducible ({E.low:.2g} to {E.high:.2g} nats): where the loss "
                "ends is mostly unknown."
            )
    if means.days is None and means.usd is None:
        out.append("Time and money are not counted: give --days, or --usd with --usd-per-hour.")
    if law.max_flops is not None and after > FAR * law.max_flops:
        out.append(
            f"That is {after / law.max_flops:.2g} times the compute of the largest run behind the law."
        )
    return out
