"""What is tried where no method is named: a small table of rules on the data, the base and the time.

Learning rates begin at each method's own (`methods.METHODS`), times the rule's factors, the likeliest first;
images from scratch have values of their own. All numbers of the table are assumptions that the search then
tests on the data at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from isoflop.adapting.records import AdaptConfig
from isoflop.errors import AdaptError

FREE = "task", "method", "method_options", "seed"  # fields that are not set as values
OPTION = "method."  # before the name of a method's own option


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    examples: int  # of training
    labels: int  # 0: there are none
    params: int  # of the base
    scratch: bool  # it has no weights yet
    text_out: bool  # what it predicts is text
    passes: float  # over the examples that one trial has time for, if it trains all weights
    reads: str = "text"  # what a role of its task holds: else "image" or "audio"
    precision: str = "float32"  # that is fastest on this machine

    @property
    def scarce(self) -> bool:
        """Trials are too short to tell configurations apart: time for them is time lost to the training."""
        return self.passes < 0.5


@dataclass(frozen=True)
class Rule:
    """Methods to try in a case, in this order."""

    says: str
    holds: Callable[[Facts], bool]
    methods: tuple[str, ...]
    factors: tuple[float, ...]  # of each method's learning rate
    batch: int
    passes: float  # over the examples, at most
    augment: tuple[tuple[str, ...], ...] = ((),)  # tried with the likeliest rate; the first with all rates
    values: Mapping[str, Any] = field(default_factory=dict)  # others of a configuration


RULES: tuple[Rule, ...] = (
    Rule("images from scratch: 1e-3 to 5e-3, flipped and moved, and to the end of the rate's fall",
         lambda f: f.scratch and f.reads == "image",
         ("full",), (60, 20, 100), 128, 100, augment=(("flip", "crop"),),
         values={"weight_decay": 0.05, "patience": 0}),
    Rule("speech, and a trial has no time for half a pass: nothing is searched",
         lambda f: f.reads == "audio" and f.scarce,
         ("full",), (1,), 8, 20),
    Rule("speech: 1e-5 to 1e-4, with the encoder learning or not, as it is or faster, slower and in noise",
         lambda f: f.reads == "audio",
         ("full", "decoder"), (1, 2, 1 / 5), 8, 20, augment=((), ("speed", "noise"))),
    Rule("a base without weights: all of it learns", lambda f: f.scratch,
         ("full",), (20, 60, 6), 64, 100),
    Rule("fewer than 32 examples a label", lambda f: f.examples < 32 * max(1, f.labels),
         ("lora", "probe", "full"), (1, 3, 1 / 3), 8, 50),
    Rule("a tiny base, below 5 million parameters: narrow layers take high rates", lambda f: f.params < 5e6,
         ("full",), (20, 60, 6), 32, 100),
    Rule("text for text", lambda f: f.text_out,
         ("full", "lora"), (1, 3, 1 / 3), 16, 10),
    Rule("a trial has no time for half a pass: nothing is searched, nor dropped of what is seen so seldom",
         lambda f: f.scarce,
         ("full",), (2,), 8, 10, values={"dropout": 0.0}),
    Rule("a small base, below 60 million parameters", lambda f: f.params < 60e6,
         ("full", "lora", "last-layers", "probe"), (3, 10, 1), 16, 20),
    Rule("a base of 60 million parameters or more", lambda f: True,
         ("full", "lora", "last-layers"), (1, 3, 1 / 3), 16, 10),
)  # fmt: skip


def rule_for(facts: Facts) -> Rule:
    """The first that holds."""
    return next(rule for rule in RULES if rule.holds(facts))


def candidates(
    task: str, facts: Facts, rates: Mapping[str, float], *, method: str | None, given: Mapping[str, Any],
    seed: int,
) -> list[list[AdaptConfig]]:  # fmt: skip
    """Of each method that fits, its configurations in the order of the rule's factors.

    `rates` are the learning rates of those methods that fit the model. A named method is the only one;
    `given` values of a configuration hold for all of them, options of a method as `method.NAME`.
    Raises AdaptError for a value that no configuration has.
    """
    rule = rule_for(facts)
    methods = [m for m in rule.methods if m in rates] if method is None else [method]
    values = {name: value for name, value in given.items() if not name.startswith(OPTION)}
    options = {n.removeprefix(OPTION): value for n, value in given.items() if n.startswith(OPTION)}
    made: list[list[AdaptConfig]] = []
    for name in methods:
        factors: Sequence[float] = (1.0,) if "lr" in values else rule.factors
        made.append([
            checked(task, name, options, seed, {**own, **values})
            for own in _values(rule, rates[name], factors, facts, "augment" in values)
        ])  # fmt: skip
    return made


def _values(
    rule: Rule, rate: float, factors: Sequence[float], facts: Facts, augmented: bool
) -> list[dict[str, Any]]:
    """Of a method's configurations: the likeliest rate with each augmentation, then the others."""
    sets = ((),) if augmented else rule.augment
    pairs = [(factors[0], names) for names in sets] + [(factor, sets[0]) for factor in factors[1:]]
    fixed = {"batch": rule.batch, "epochs": rule.passes, "precision": facts.precision, **rule.values}
    return [{"lr": rate * factor, "augment": names, **fixed} for factor, names in pairs]


def checked(
    task: str, method: str, options: Mapping[str, Any], seed: int, values: Mapping[str, Any]
) -> AdaptConfig:
    """A configuration. Raises AdaptError for values that are not one's."""
    known = [name for name in AdaptConfig.model_fields if name not in FREE]
    if odd := [name for name in values if name not in known]:
        raise AdaptError(
            f"{odd[0]!r} is no value of an adaptation",
            hint=f"one of: {', '.join(known)}; options of the method as {OPTION}NAME",
        )
    try:
        return AdaptConfig(task=task, method=method, method_options=dict(options), seed=seed, **values)
    except ValidationError as error:
        first = error.errors()[0]
        raise AdaptError(
            f"{first['loc'][0]} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}",
            hint="give another value: --set NAME=VALUE",
        ) from None


def variants(config: AdaptConfig, given: Mapping[str, Any]) -> list[AdaptConfig]:
    """The best so far, with twice and with half the batch."""
    if "batch" in given:
        return []
    sizes = (2 * config.batch, max(1, config.batch // 2))
    return [config.model_copy(update={"batch": size}) for size in sizes]
