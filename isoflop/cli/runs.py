"""What a table of runs says beyond its law: what a change is worth, which run is next, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import IntervalOption, JsonOption, MapOption, TableOrFit, WhereOption, count
from isoflop.terminal import out, table

app = typer.Typer()


@app.command()
def gain(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The baseline: a table of runs, or a saved fit.")
    ],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The recipe to judge, likewise.")],
    flops: Annotated[
        list[float] | None, count("Compute at which to compare; may be repeated. None: as measured.")
    ] = None,
    mapping: MapOption = None,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
) -> None:
    """Say how many doublings of compute a change of recipe is worth, and whether that grows with scale.

    Example: [bold]isoflop gain adamw.csv muon.csv --flops 1e18 --flops 1e20[/bold]
    """
    from isoflop.gain import compare
    from isoflop.laws.choose import law_of

    one, two = (law_of(word, mapping=mapping or []) for word in (base, other))
    found = compare(one, two, flops or [], interval=interval)
    if json:
        out(found)
        return
    table(f"{other} over {base}", ("FLOPs", "doublings", f"{100 * interval:g}% interval", ""), [
        (f"{s.flops:.3g}", f"{s.doublings.value:+.2f}", f"{s.doublings.low:+.2f} to {s.doublings.high:+.2f}",
         "extrapolated" if s.extrapolated else "")
        for s in found.scales
    ])  # fmt: skip
    typer.echo(found.sentence)


@app.command(name="next")
def next_(
    law: TableOrFit,
    flops: Annotated[float, count("Compute of the model that the runs are for.")],
    aim: Annotated[str, typer.Option(help="loss: know its loss; split: know its size.")] = "loss",
    share: Annotated[float, typer.Option(help="Share of that compute that one run may cost.")] = 0.1,
    within: Annotated[
        float, typer.Option(help="Half-width of the target's loss at which further runs end.")
    ] = 0.05,
    mapping: MapOption = None,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
) -> None:
    """Say which small run to make next, by what it would teach about the target for its price.

    Example: [bold]isoflop next runs.csv --flops 1e21[/bold]
    """
    from isoflop.laws.choose import law_of
    from isoflop.laws.design import next_run

    found = next_run(
        law_of(law, mapping=mapping or []), flops, aim=aim, share=share, level=interval, wanted=within
    )
    if json:
        out(found)
        return
    table(
        f"Next run for {flops:.3g} FLOPs; now: loss within {100 * found.loss_half_width:.1f}%, size within"
        f" {found.split_factor:.2f}x",
        ("params N", "tokens D", "FLOPs", "loss within", "size within", "saves, nats", "costs, nats"),
        [
            (f"{r.params:.3g}", f"{r.tokens:.3g}", f"{r.flops:.3g}", f"{100 * r.loss_half_width:.1f}%",
             f"{r.split_factor:.2f}x", f"{r.regret_saved:.2g}", f"{r.price:.2g}")
            for r in found.runs
        ],
    )  # fmt: skip
    typer.echo(found.sentence)


@app.command()
def frontier(
    path: Annotated[str, typer.Argument(metavar="TABLE", help="CSV, Parquet or JSONL, a row a run.")],
    approach: Annotated[
        str, typer.Option(help="parabolas: one a compute budget (approach 2); envelope: the best runs (1).")
    ] = "parabolas",
    mapping: MapOption = None,
    where: WhereOption = None,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
) -> None:
    """Find how the best size grows with compute without a law of the loss: Hoffmann's approaches 1 and 2.

    Example: [bold]isoflop frontier isoflops.csv[/bold]
    """
    from isoflop.errors import FitError
    from isoflop.laws import approaches
    from isoflop.laws.table import parse_mapping, read_table

    ways = {"parabolas": approaches.parabolas, "envelope": approaches.envelope}
    if approach not in ways:
        raise FitError(f"There is no approach {approach!r}.", hint=f"Use one of: {', '.join(ways)}.")
    columns, _ = read_table(path, parse_mapping(mapping or []), parse_mapping(where or []))
    found = ways[approach](columns, level=interval)
    if json:
        out(found)
        return
    if found.slices:
        table("Best size by budget", ("FLOPs", "runs", "parabola", "its bias", "best N", ""), [
            (f"{s.flops:.3g}", s.runs, f"{s.params_parabola:.3g}", f"{100 * (s.bias - 1):+.1f}%",
             f"{s.params:.3g}", "" if s.inside else "outside its sizes")
            for s in found.slices
        ])  # fmt: skip
    a = found.exponent
    typer.echo(
        f"N* = {found.coefficient:.4g} C^{a.value:.3f}   {100 * interval:g}% [{a.low:.3f}, {a.high:.3f}]"
    )


@app.command()
def plot(
    law: TableOrFit,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("law-pictures"),
    kind: Annotated[str, typer.Option("--format", help="svg or png.")] = "svg",
    dark: Annotated[bool, typer.Option("--dark", help="For a dark page.")] = False,
) -> None:
    """Draw a law: isoFLOP slices, contours, frontier, residuals, draws, hold-outs, influence, design.

    Example: [bold]isoflop plot law.json --out pictures --format png[/bold]
    """
    from contextlib import nullcontext

    from isoflop import plots
    from isoflop.errors import FitError
    from isoflop.laws.choose import law_of

    if kind not in ("svg", "png"):
        raise FitError(f"Pictures cannot be {kind!r}.", hint="Use --format svg or png.")
    with plots.dark() if dark else nullcontext():
        paths, missing = plots.save_law_pictures(law_of(law), folder, kind=kind)
    for path in paths:
        typer.echo(path)
    for sentence in missing:
        typer.echo(f"not drawn: {sentence}", err=True)
