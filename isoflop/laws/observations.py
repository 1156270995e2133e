"""A table of runs as a law sees it: covariates by name, the target, which runs share a trunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.laws.solve import Array
from isoflop.records import Record, Run

BITS = 16.0  # of weights, activations and cache where a table does not say
OPTIONAL = ("params", "tokens", "flops")  # kept when the table has them, whatever the law needs
DUPLICATES_NAMED = 5


class Observations(Record):
    """Columns of a table of runs. `loss` is the target: nats a token, or whatever the law is about.

    Covariates: params (N), tokens (D, repeats counted), flops, unique_tokens, x (the one covariate of
    laws in one), teacher_loss, task_loss, sparsity, bits_weights, bits_activations, bits_kv, bits_post.
    """

    columns: dict[str, tuple[float, ...]]
    loss: tuple[float, ...]
    loss_se: tuple[float, ...] | None = None  # of the evaluation alone, in the unit of `loss`
    cluster: tuple[str, ...] | None = None  # None: every run is independent
    notes: tuple[str, ...] = ()  # what was derived, in sentences

    @classmethod
    def of(
        cls, table: Observations | Mapping[str, Any] | Any, needed: Sequence[str] = ("params", "tokens")
    ) -> Observations:
        """From a mapping of columns or a data frame; `needed` are the law's covariates.

        Raises FitError when a column is missing and cannot be derived, or holds what is not a number.
        """
        if isinstance(table, Observations):
            columns, notes = complete(table.arrays(), needed)
            kept = {name: tuple(column.tolist()) for name, column in columns.items()}
            return table.model_copy(update={"columns": kept, "notes": (*table.notes, *notes)})
        if _column(table, "loss") is None:
            raise FitError("The table has no column 'loss'.", hint=f"Needed: {', '.join((*needed, 'loss'))}.")
        wanted = dict.fromkeys((*needed, *OPTIONAL))
        given = {name: column for name in wanted if (column := _column(table, name)) is not None}
        numbers = {name: _numbers(name, column) for name, column in {**given, "loss": table["loss"]}.items()}
        loss = numbers.pop("loss")
        for name, column in numbers.items():
            if len(column) != len(loss):
                raise FitError(
                    f"Column {name!r} has {len(column)} rows and 'loss' has {len(loss)}.",
                    hint="Give equal lengths.",
                )
        columns, notes = complete(numbers, needed)
        cluster, loss_se = _column(table, "cluster"), _column(table, "loss_se")
        return cls(
            columns={name: tuple(column.tolist()) for name, column in columns.items()},
            loss=tuple(loss.tolist()),
            loss_se=None if loss_se is None else tuple(_numbers("loss_se", loss_se).tolist()),
            cluster=None if cluster is None else tuple(str(label) for label in cluster),
            notes=notes,
        )

    @classmethod
    def of_runs(cls, runs: Iterable[Run]) -> Observations:
        """From finished runs; runs of one trunk form one cluster."""
        listed = list(runs)
        return cls(
            columns={
                "params": tuple(float(r.params_matmul) for r in listed),
                "tokens": tuple(float(r.tokens) for r in listed),
                "flops": tuple(r.flops for r in listed),
            },
            loss=tuple(r.loss for r in listed),
            cluster=tuple(r.trunk for r in listed),
        )

    @property
    def params(self) -> tuple[float, ...]:
        return self.columns["params"]

    @property
    def tokens(self) -> tuple[float, ...]:
        return self.columns["tokens"]

    def arrays(self) -> dict[str, Array]:
        """Covariates as (n,) arrays."""
        return {name: np.array(column) for name, column in self.columns.items()}

    def sizes(self) -> Array:
        """(2, n) N and D."""
        return np.array([self.params, self.tokens])

    @property
    def scale(self) -> str:
        """The word for what the runs are ordered by: compute, or else a covariate."""
        if "flops" in self.columns or {"params", "tokens"} <= self.columns.keys():
            return "compute"
        return "x" if "x" in self.columns else next(iter(self.columns), "compute")

    def compute(self) -> Array:
        """(n,) what the runs are ordered by: training FLOPs, 6 N D where not given, x without N and D."""
        columns = self.arrays()
        if "flops" in columns:
            return columns["flops"]
        if self.scale == "compute":
            return np.asarray(6.0 * columns["params"] * columns["tokens"])
        if self.scale == "x":
            return columns["x"]
        return np.asarray(1.0 / columns[self.scale])  # losses: the lower, the dearer


def complete(columns: Mapping[str, Array], needed: Sequence[str]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The columns with what can be derived, and a sentence for each that was.

    tokens = C / 6N, params = C / 6D, x = C, unique_tokens = tokens, bits = 16. Raises FitError when one is
    missing.
    """
    out, notes = dict(columns), []
    for name, other in (("tokens", "params"), ("params", "tokens")):
        if name in needed and name not in out and {"flops", other} <= out.keys():
            out[name] = out["flops"] / (6.0 * out[other])
            notes.append(f"{name} were derived as flops / (6 {other}).")
    if "unique_tokens" in needed and {"unique_tokens", "tokens"} <= out.keys():
        if (out["unique_tokens"] > out["tokens"]).any():
            notes.append("Where there are more unique tokens than were seen, those that were seen count.")
        out["unique_tokens"] = np.minimum(out["unique_tokens"], out["tokens"])
    for name in needed:
        if name in out:
            continue
        if name == "x" and ("flops" in out or {"params", "tokens"} <= out.keys()):
            out[name] = out["flops"] if "flops" in out else 6.0 * out["params"] * out["tokens"]
            notes.append(f"x is the training compute{'' if 'flops' in out else ', 6 N D'}.")
        elif name == "unique_tokens" and "tokens" in out:
            out[name] = out["tokens"]
            notes.append("Without a column unique_tokens every run counts as one epoch.")
        elif name.startswith("bits_"):
            out[name] = np.full_like(next(iter(out.values())), BITS) if out else np.array([BITS])
            notes.append(f"{name} is taken as {BITS:.0f}.")
        else:
            raise FitError(
                f"The table has no column {name!r}.",
                hint=f"The law needs {', '.join(needed)}; map a column to it, e.g. --map {name}=COLUMN.",
            )
    return out, tuple(notes)


def falling(observations: Observations, ceiling: float) -> Observations:
    """The table of ceiling - y for a target y that rises. Raises FitError where y reaches the ceiling."""
    y = np.array(observations.loss)
    above = np.flatnonzero(~(y < ceiling))
    if len(above):
        raise FitError(
            f"Row {above[0]} (the first is 0) has a target of {y[above[0]]:g}, not below the ceiling"
            f" {ceiling:g}.",
            hint="Give the highest value that the target could have, e.g. --ceiling 1 for an accuracy.",
        )
    note = f"The target rises: {ceiling:g} less it is fitted."
    return observations.model_copy(
        update={"loss": tuple((ceiling - y).tolist()), "notes": (*observations.notes, note)}
    )


def check(observations: Observations, needed: Sequence[str], parameters: int) -> None:
    """Raises FitError, naming the row, when the table cannot be fitted."""
    n = len(observations.loss)
    columns = {**observations.columns, "loss": observations.loss}
    if observations.loss_se is not None:
        columns["loss_se"] = observations.loss_se
    for name, column in columns.items():
        _check_values(name, column)
    for name in ("cluster", "loss_se"):
        other = getattr(observations, name)
        if other is not None and len(other) != n:
            raise FitError(
                f"Column {name!r} has {len(other)} rows and 'loss' has {n}.", hint="Give equal lengths."
            )
    if max(observations.columns.get("sparsity", (0.0,))) >= 1:
        raise FitError("A sparsity is not below 1.", hint="It is the share of parameters that are zero.")
    if n <= parameters:
        raise FitError(
            f"The table has {n} runs and the law has {parameters} parameters.",
            hint=f"Measure at least {parameters + 1} runs: 4 sizes x 3 token counts is a good start.",
        )
    for name, word in (
        ("params", "size N"),
        ("tokens", "token count D"),
        ("x", "x"),
        ("task_loss", "task_loss"),
    ):
        if name in needed and len(set(observations.columns[name])) == 1:
            raise FitError(
                f"All runs have the same {word}.",
                hint=f"The law needs runs that vary in {' and '.join(needed)}.",
            )


def warnings(observations: Observations, needed: Sequence[str]) -> list[str]:
    """What looks wrong in a table that can be fitted: repeated rows, losses in another unit."""
    out = []
    keys = list(zip(*(observations.columns[name] for name in needed), observations.loss, strict=True))
    seen: dict[tuple[float, ...], int] = {}
    twice = [f"{i} (as {seen[key]})" for i, key in enumerate(keys) if seen.setdefault(key, i) != i]
    if twice:
        more = f" and {len(twice) - DUPLICATES_NAMED} more" if len(twice) > DUPLICATES_NAMED else ""
        named = ", ".join(twice[:DUPLICATES_NAMED])
        out.append(f"Rows that repeat another exactly: {named}{more}; they count twice.")
    return out


def _check_values(name: str, column: Sequence[float]) -> None:
    values = np.asarray(column)
    zero_is_fine = name in ("loss_se", "sparsity")
    bad = np.flatnonzero(~(np.isfinite(values) & ((values >= 0) if zero_is_fine else (values > 0))))
    if len(bad):
        raise FitError(
            f"Row {bad[0]} (the first is 0) has {name} = {values[bad[0]]}.",
            hint="Every value must be a positive number; drop failed runs, e.g. --where State=finished.",
        )


def _column(table: Any, name: str) -> Any:
    try:
        return table[name]
    except KeyError:
        return None


def _numbers(name: str, column: Any) -> Array:
    try:
        return np.array([float(v) for v in column])
    except (TypeError, ValueError) as error:
        raise FitError(
            f"Column {name!r} has a cell that is not a number: {error}.", hint="Drop or mend that row."
        ) from error
