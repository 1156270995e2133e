"""A family's recipe with values of the user's own: what `--set NAME=VALUE` asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from isoflop.errors import TrainError
from isoflop.families import OWN, Family
from isoflop.options import check_options
from isoflop.recipe import CONTEXT, recipe
from isoflop.records import ModelConfig, Record, RunConfig

R = TypeVar("R", bound=Record)

SHAPE = "model."
FIXED = {  # what has an option of its own, or is decided by the machine
    "model", "tokens", "seed", "ranks", "threads", "initial", "old", "replay_share", "ewc", "ewc_tokens",
    "teachers", "teacher_weight", "temperature", "divergence", "teacher_topk", "feature_weight",
    "tasks", "input_noise",
    "model.vocab_size", "model.d_model", "model.family", "model.objective", "model.template",
}  # fmt: skip
KNOWN = {
    *(name for name in RunConfig.model_fields), *(SHAPE + name for name in ModelConfig.model_fields)
} - FIXED  # fmt: skip
PLACE = "of --set"


@dataclass(frozen=True)
class Variant:
    """A family, and `changes` to the values that its recipe derives: `lr_matrix=0.02`, `model.d_ff=x1.5`.

    Names are fields of `RunConfig`, those of its `ModelConfig` with `model.` before them; `x` before a number
    multiplies what is derived.
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
        batch = self._changed(recipe(model, tokens, **values), "").batch_tokens
        derived = recipe(model, tokens, **(values | {"batch_tokens": batch}))  # what follows from the batch
        return self._changed(derived, "").model_copy(update={"batch_tokens": batch})

    def applied(self, config: RunConfig) -> RunConfig:
        """A configuration that was derived elsewhere, changed."""
        return self._changed(config.model_copy(update={"model": self._changed(config.model, SHAPE)}), "")

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
                values[field] = _value(change, text, type(derived), field, getattr(derived, field))
        return derived.model_copy(update=values)


def _value(change: str, text: str, kind: type[Record], field: str, derived: Any) -> Any:
    """What `text` says in the type of that field; `x2` is twice what was derived."""
    adapter: TypeAdapter[Any] = TypeAdapter(get_type_hints(kind)[field])
    try:
        if text.startswith("x") and isinstance(derived, int | float) and not isinstance(derived, bool):
            product = float(text[1:]) * derived
            return round(product) if isinstance(derived, int) else product
        words: Any = tuple(text.split(",")) if isinstance(derived, tuple) else text
        return adapter.validate_python(words)
    except (ValidationError, ValueError):
        raise TrainError(
            f"{change!r} {PLACE} is not a value of {field}, which is {derived!r} by the recipe",
            hint="write a value like that one, or x2 for twice as much",
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
