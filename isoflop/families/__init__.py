"""Architectures that are trained, swept and saved alike: our own decoder, and those of transformers.

A further family of transformers is one line of `foreign.ARCHITECTURES`; any other is a class with the methods
of `Family` and a line of `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from isoflop import flops
from isoflop.errors import TrainError
from isoflop.families.decoder import MODEL_TYPE, Decoder
from isoflop.families.encoder_decoder import KINDS
from isoflop.families.foreign import ARCHITECTURES, Foreign, pairs
from isoflop.model import LanguageModel
from isoflop.objectives import BOTH, OBJECTIVES
from isoflop.recipe import CONTEXT
from isoflop.records import ModelConfig


class Scaled(Protocol):
    """Shapes of growing width."""

    def widths(self) -> Iterator[int]:
        """The widths of a ladder, smallest first, without end."""

    def shape(
        self, d_model: int, vocab_size: int, *, n_layers: int | None = None, context: int = CONTEXT
    ) -> ModelConfig:
        """The model of one width for a corpus of that vocabulary."""


class Family(Scaled, Protocol):
    """An architecture with what it learns, and how it is scaled; `ModelConfig.kind` names it in records."""

    @property
    def name(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def template(self) -> str: ...

    def build(self, model: ModelConfig, seed: int, *, dropout: float = 0.0) -> LanguageModel:
        """The model with its initial weights, which depend on `seed` alone.

        Raises TrainError when the architecture has no dropout and some is wanted.
        """

    def counts(self, model: ModelConfig) -> flops.Counts:
        """Parameters and FLOPs."""

    def save(self, model: Any, folder: Path, end_of_text: int) -> None:
        """Write weights and config.json as transformers reads them."""

    def load(self, folder: Path, raw: Mapping[str, Any]) -> LanguageModel:
        """Read them again; `raw` is the content of config.json."""


OWN: Family = Decoder()
FAMILIES: Mapping[str, Family] = {
    OWN.name: OWN, **{name: Foreign(name, a.objective) for name, a in ARCHITECTURES.items()}
}  # fmt: skip


def family_of(model: ModelConfig) -> Family:
    """The family of a shape."""
    if model.template:
        return Foreign(*model.kind)
    return _with_objective(FAMILIES[model.family], model.objective)


def find(name: str, objective: str | None = None) -> Family:
    """The family of that name, or of the config.json in that folder.

    Raises TrainError when there is none, it can be neither built nor counted, or cannot learn `objective`.
    """
    if name not in FAMILIES and not Path(name).is_dir():
        raise TrainError(
            f"there is no family {name!r}",
            hint=f"name one of {', '.join(FAMILIES)}, or a folder with a config.json of transformers",
        )
    found = FAMILIES[name] if name in FAMILIES else Foreign.of_folder(Path(name))
    if objective is not None:
        possible = _possible(found)
        if objective not in possible:
            raise TrainError(
                f"the family {found.name} cannot learn the objective {objective!r}",
                hint=f"leave --objective out, or name one of {', '.join(possible)}",
            )
        found = _with_objective(found, objective)
    if isinstance(found, Foreign) and (found.template or objective == "prefix"):
        from isoflop.families.checked import check  # it needs torch's counter, which few do

        check(found)
    return found


def _possible(family: Family) -> list[str]:
    """The objectives of its architecture."""
    learner = BOTH if family.name in KINDS else OBJECTIVES[family.objective].learners[0]
    return [
        name for name, o in OBJECTIVES.items()
        if learner in o.learners and (name != "masked-next" or pairs(family.name))
    ]  # fmt: skip


def of_config(raw: Mapping[str, Any]) -> Family:
    """The family that opens a model folder with this config.json."""
    return OWN if raw["model_type"] == MODEL_TYPE else Foreign.of_config(raw)


def shapes(
    vocab_size: int, *, largest: int, family: Scaled = OWN, context: int = CONTEXT
) -> list[ModelConfig]:
    """Every shape of at most `largest` parameters N, smallest first; one at least."""
    found: list[ModelConfig] = []
    for width in family.widths():
        model = family.shape(width, vocab_size, context=context)
        if found and flops.params_matmul(model) > largest:
            break
        found.append(model)
    return found


def _with_objective(family: Family, objective: str) -> Family:
    return dataclasses.replace(family, objective=objective)  # type: ignore[type-var]
