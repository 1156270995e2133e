"""A plan on a cluster, printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from isoflop.cli.options import open_project
from isoflop.terminal import out, table

if TYPE_CHECKING:
    from isoflop.laws.result import Fit
    from isoflop.layouts.planning import ClusterPlan
    from isoflop.layouts.search import Planned

PUBLISHED = "besiroglu-2024"
SHOWN_KINDS = 10


def plan_on(
    text: str, law: str | None, project: Path | None, *, price: float | None, launch: Path | None, json: bool,
    **wanted: Any,
) -> None:  # fmt: skip
    """Make the plan, write its launch files where asked, and print it."""
    from isoflop.layouts.hardware import Cluster
    from isoflop.layouts.launch import write_launch
    from isoflop.layouts.planning import plan_cluster

    cluster = Cluster.parse(text, price)
    fitted, name = _law(law, project)
    made = plan_cluster(cluster, fitted, law_name=name, **wanted)
    written = [] if launch is None else write_launch(made, launch)
    if json:
        out({**made.model_dump(mode="json"), "launch": [str(path) for path in written]})
        return
    _show(made)
    for path in written:
        typer.echo(path)
    if written and made.trainer is None:
        typer.echo("Not for isoflop train: it has GPUs, dense models, data parallelism and FSDP.")


def _law(law: str | None, project: Path | None) -> tuple[Fit, str]:
    """The law and its name. Raises LayoutError when two are given."""
    from isoflop.errors import LayoutError

    if project is None:
        from isoflop.laws.saved import load

        return load(law or PUBLISHED), law or PUBLISHED
    if law is not None:
        raise LayoutError("A FIT and a --project are two laws.", hint="Give one of them.")
    from isoflop.pipeline import corpus_of, fit_runs

    home = open_project(project)
    with home.lock():
        return fit_runs(home, corpus_of(home))[1], f"the law of {project}"


def _show(made: ClusterPlan) -> None:
    table(f"Plan for {made.cluster.name}", ("", "value"), _rows(made))
    table(
        f"The best of {made.found.considered:,} layouts, of which {made.found.fitting:,} fit",
        ("", "of peak", "s a step", "GB a device"),
        [(p.layout.words, f"{p.mfu:.1%}", f"{p.step_seconds:.3g}", f"{p.memory_bytes / 1e9:.1f}")
         for p in made.found.best],
    )  # fmt: skip
    for number, best in enumerate(made.found.best, start=1):
        typer.echo(f"{number}. {best.why}.")
    typer.echo()
    table("The best, by part", ("memory", "GB a device", "time", "s a step"), _parts(made.found.best[0]))
    if made.found.failing:
        typer.echo("Other kinds, the simplest first:")
    for failing in sorted(made.found.failing, key=lambda f: f.kind.count("+"))[:SHOWN_KINDS]:
        typer.echo(f"- {failing.kind}: {failing.reason}")
    typer.echo()
    if made.serving:
        _show_serving(made)
    else:
        typer.echo("- A node does not hold it in 16 bits: no costs of serving.")
    for note in made.notes:
        typer.echo(f"- {note}")


def _rows(made: ClusterPlan) -> list[tuple[str, str]]:
    cluster = made.cluster
    rows = [
        ("shape", made.shape.words),
        ("parameters, active", f"{made.params_active:.4g}"),
        *([("parameters, all", f"{made.params_total:.4g}")] if made.shape.experts else []),
        ("tokens", f"{made.tokens:.4g}"),
        ("training FLOPs", f"{made.flops:.3g}"),
        ("batch, tokens", f"{made.found.best[0].step_tokens:,.0f}"),
        ("steps", f"{made.steps:,}"),
        ("share of peak", f"{made.found.best[0].mfu:.1%}"),
        ("of matrix products alone", f"{made.efficiency:.1%}, fitted on {made.efficiency_from}"),
        ("days", f"{made.days:.3g}"),
        ("device-hours", f"{made.device_hours:,.0f}"),
    ]
    if made.usd is not None:
        rows.append((f"USD, at {cluster.usd_per_hour:g} an hour ({cluster.price_date})", _large(made.usd)))
    if made.energy_mwh is not None and made.co2_tonnes is not None:
        rows += [("energy, MWh", _large(made.energy_mwh)), ("CO2, t", _large(made.co2_tonnes))]
    if made.loss is not None:
        found = made.loss
        rows.append((f"loss by {made.law}", f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"))
    return rows


def _parts(best: Planned) -> list[tuple[str, str, str, str]]:
    """Memory and time side by side, those that are not nothing."""
    held = [(name, f"{v / 1e9:.2f}") for name, v in best.memory.items()]
    spent = [(name, f"{v:.3g}") for name, v in best.seconds.items() if v > 0]
    rows = max(len(held), len(spent))
    nothing = ("", "")
    held += [nothing] * (rows - len(held))
    spent += [nothing] * (rows - len(spent))
    return [(*left, *right) for left, right in zip(held, spent, strict=True)]


def _show_serving(made: ClusterPlan) -> None:
    table(
        f"Served in 16 bits, {made.shape.context:,} tokens a sequence in the cache",
        ("devices, batch", "tokens/s", "ms a token", "USD per M written", "USD per M read", "bound by"),
        [(f"{s.devices}, {s.batch}", f"{s.tokens_per_second:,.0f}", f"{1e3 * s.token_seconds:.1f}",
          _usd(s.usd_per_million), _usd(s.usd_per_million_prompt), s.bound) for s in made.serving],
    )  # fmt: skip


def _large(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _usd(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
