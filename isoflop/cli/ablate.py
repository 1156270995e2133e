"""Is a change of the recipe worth it?"""

from __future__ import annotations

from typing import Annotated

import typer

from isoflop.cli.options import (
    DEFAULT_FAMILY,
    DEFAULT_PROJECT,
    FamilyOption,
    IntervalOption,
    JsonOption,
    ObjectiveOption,
    ProjectOption,
    RayOption,
    SeedOption,
    SetOption,
    open_project,
)
from isoflop.terminal import Terminal, out, table

app = typer.Typer()


@app.command()
def ablate(
    changes: SetOption = None,
    budget: Annotated[
        str, typer.Option("--budget", "-b", help="For the runs with the change and those without, together.")
    ] = "10m",
    project: ProjectOption = DEFAULT_PROJECT,
    seeds: Annotated[int, typer.Option(help="Runs of each size, with and without.")] = 3,
    family: FamilyOption = DEFAULT_FAMILY, objective: ObjectiveOption = None,
    interval: IntervalOption = 0.9, seed: SeedOption = 0,
    ray: RayOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what a change of the recipe is worth, in doublings of compute: the same runs with and without it.

    Three sizes, a ninefold range of compute, pairs with the same seed. Runs without the change are trained
    once for all changes that are judged at the same budget.

    Example: [bold]isoflop ablate --set cooldown=0.5 --budget 6e13flops[/bold]
    """
    from isoflop.ablate import ablate as judge
    from isoflop.budget import Budget
    from isoflop.families import find
    from isoflop.pipeline import corpus_of
    from isoflop.places import place_at
    from isoflop.variant import Variant

    parsed, home = Budget.parse(budget), open_project(project)
    variant = Variant.of(find(family, objective), changes or ())
    with home.lock(), Terminal() as progress, place_at(ray, progress) as place:
        found = judge(
            home, corpus_of(home), parsed, variant, seeds=seeds, seed=seed, interval=interval,
            progress=progress, place=place,
        )  # fmt: skip
    if json:
        out(found)
        return
    rows = []
    for scale in found.gain.scales:
        group = [p for p in found.pairs if p.flops == scale.flops]
        before, after = (sum(x) / len(group) for x in (
            [p.loss for p in group], [p.loss_other for p in group]
        ))  # fmt: skip
        d = scale.doublings
        rows.append(
            (f"{scale.flops:.3g}", f"{group[0].params:,.0f}", len(group), f"{before:.4f}", f"{after:.4f}",
             f"{d.value:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}")
        )  # fmt: skip
    table(
        f"{variant.name}, against without",
        ("FLOPs", "params N", "pairs", "loss without", "loss with", "doublings",
         f"{100 * interval:g}% interval"),
        rows,
    )  # fmt: skip
    typer.echo(found.gain.sentence)
    typer.echo(
        f"It trains at {found.speed:.2f} times the speed, in FLOPs a second. The runs with it cost "
        f"{found.flops:.3g} FLOPs, those without {found.flops_base:.3g}."
    )
