"""A family's recipe with values of the user's own: what `--set NAME=VALUE` asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from isoflop.errors import TrainError
from isoflop.families import OWN, Family
from isoflop.options import check_names, check_options
from isoflop.recipe import CONTEXT, matrix_rate, recipe
from isoflop.records import ModelConfig, Record, RunConfig

R = TypeVar("R", bound=Record)

SHAPE = "model."
FIXED = {  # what has an option of its own, or is decided by the machine
    "model", "tokens", "seed", "ranks", "threads", "initial", "old", "replay_share", "ewc", "ewc_tokens",
    "teachers", "teacher_weight", "temperature", "divergence", "teacher_topk", "feature_weight",
    "rounding",
    "tasks", "input_noise",
    "model.vocab_size", "model.d_model", "model.family", "model.objective", "model.template",
}  # fmt: skip
KNOWN = {
    *(name for name in RunConfig.model_fields), *(SHAPE + name for name in ModelConfig.model_fields)
} - FIXED  # fmt: skip
PLACE = "of --set"
LEADING = ("batch_tokens", "optimizer")  # other values of the recipe follow from them
NUMBER = r"[-+.\de]+"
SCALED = re.compile(
    rf"(?=x|.*@)(?P<times>x?)(?P<number>{NUMBER})(@(?P<width>[1-9]\d*)\^(?P<power>{NUMBER}))?"
)


@dataclass(frozen=True)
class Variant:
    """A family, and `changes` to the values that its recipe derives: `lr_matrix=0.02`, `model.d_ff=x1.5`.

    Names are fields of `RunConfig`, those of its `ModelConfig` with `model.` before them; `x` before a number
    multiplies what is derived, and `@128^-1` behind it makes it that of width 128, which falls as 1/d_model.
    """

    family: Family = OWN
    changes: tuple[str, ...] = ()

    @classmethod
    def of(cls, family: Family, changes: Sequence[str] = ()) -> Variant:
        """Checks the changes' names and values. Raises TrainError."""
        made = cls(family, tuple(sorted(c.replace(" ", "") for c in changes)))
        check_options(made.config(made.shape(128, 512), 0))  # says what is wrong before anything is done
        return made

    @property
    def name(self) -> str:
        """For people."""
        return " ".join((self.family.name, *self.changes))

    def widths(self) -> Iterator[int]:
        return self.family.widths()

    def shape(
        self, d_model: int, vocab_size: int, *, n_layers: int | None = None, context: int = CONTEXT
    ) -> ModelConfig:
        """The family's shape of one width, changed."""
        derived = self.family.shape(d_model, vocab_size, n_layers=n_layers, context=context)
        return self._changed(derived, SHAPE)

    def config(self, model: ModelConfig, tokens: int, **values: Any) -> RunConfig:
        """The recipe's configuration of a shape that `shape` gave, changed; `values` as in `recipe`."""
        if not self.changes:  # sizes are tried by the thousand
            return recipe(model, tokens, **values)
        first = self._changed(recipe(model, tokens, **values), "")
        check_names(first)
        leading = {name: getattr(first, name) for name in LEADING}
        derived = recipe(model, tokens, **(values | leading))
        return self._changed(derived, "").model_copy(update=leading)

    def applied(self, config: RunConfig) -> RunConfig:
        """A configuration that was derived elsewhere, changed; the rate of another optimizer follows it."""
        model = self._changed(config.model, SHAPE)
        optimizer = self._changed(config, "").optimizer
        rates = [matrix_rate(name, model.d_model) for name in (optimizer, config.optimizer)]
        derived = config.model_copy(
            update={"model": model, "lr_matrix": config.lr_matrix * rates[0] / rates[1]}
        )
        return self._changed(derived, "")

    def _changed(self, derived: R, prefix: str) -> R:
        """The record with those changes whose names have the prefix."""
        values: dict[str, Any] = {}
        if not self.changes:
            return derived
        for change in self.changes:
            name, equals, text = change.partition("=")
            if name not in KNOWN or not equals:
                raise _unknown(change, name)
            if name.startswith(SHAPE) == bool(prefix):
                field = name.removeprefix(prefix)
                values[field] = _value(change, text, derived, field)
        return derived.model_copy(update=values)


def _value(change: str, text: str, derived: Any, field: str) -> Any:
    """What `text` says in the type of that field of what was derived."""
    own = getattr(derived, field)
    adapter: TypeAdapter[Any] = TypeAdapter(get_type_hints(type(derived))[field])
    scaled = SCALED.fullmatch(text)
    try:
        if scaled and isinstance(own, int | float) and not isinstance(own, bool):
            number = float(scaled["number"]) * (own if scaled["times"] else 1)
            if scaled["width"]:
                shape = derived if isinstance(derived, ModelConfig) else derived.model
                number *= (shape.d_model / int(scaled["width"])) ** float(scaled["power"])
            unit = derived.model.context if field == "batch_tokens" else 1  # a batch has whole windows
            return round(number / unit) * unit if isinstance(own, int) else number
        words: Any = tuple(text.split(",")) if isinstance(own, tuple) else text
        return adapter.validate_python(words)
    except (ValidationError, ArithmeticError, ValueError):
        raise TrainError(
            f"{change!r} {PLACE} is not a value of {field}, which is {own!r} by the recipe",
            hint="write a value like that one, x2 for twice as much, or 2@128^-1 for 2 at width 128, falling "
            "as 1/width",
        ) from None


def _unknown(change: str, name: str) -> TrainError:
    if name in FIXED:
        return TrainError(
            f"{name!r} {PLACE} is decided elsewhere",
            hint="by an option of its own, the corpus or the machine",
        )
    if name in KNOWN:
        return TrainError(f"{change!r} {PLACE} has no value", hint=f"write {name}=VALUE, or {name}=x2")
    return TrainError(f"there is no {name!r} {PLACE}", hint=f"name one of {', '.join(sorted(KNOWN))}")


DEFAULT = Variant()
