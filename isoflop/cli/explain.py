"""What an adapted model goes by, and where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.adapt import AdaptedArgument, RoleOption
from isoflop.cli.options import JsonOption, SeedOption, pairs
from isoflop.errors import AdaptError
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.explaining.records import Attribution, Explained

app = typer.Typer()

SLICES = 12  # that are printed
WORDS = 12


@app.command()
def explain(
    model: AdaptedArgument,
    data: Annotated[
        list[Path] | None, typer.Option(help="Test examples that it has not learned from; may be repeated.")
    ] = None,
    columns: RoleOption = None,
    group: Annotated[str | None, typer.Option(help="Column whose groups are compared for fairness.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="So many have their attributions drawn.")] = 8,
    text: Annotated[str | None, typer.Option(help="Instead: attributions of this text alone.")] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the card and pictures; the model's own, or of a project's its cards/."
        ),
    ] = None,
    seed: SeedOption = 0, json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what an adapted model goes by and where it fails, and write its model card.

    Example: [bold]isoflop explain ADAPTED --data test.csv --group region[/bold]
    """
    from isoflop.adapting.quiet import quiet
    from isoflop.adapting.saved import is_adapted
    from isoflop.explaining.card import CARD, write_card
    from isoflop.explaining.explain import explain as explained
    from isoflop.explaining.explain import explain_text, record_of

    if text is not None and not data:
        with quiet():
            found = explain_text(model, text)
        out(found) if json else _show_words(found)
        return
    if not data or text is not None:
        raise AdaptError("explaining takes examples or one text", hint="give --data FILE, or --text TEXT")
    if not is_adapted(model):
        raise AdaptError(f"{model} is no adapted model", hint="make one: isoflop adapt MODEL --task TASK")
    folder = to or _folder_for(model)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet(), Terminal() as progress:
        answer = explained(
            model, data, folder, columns=pairs(columns or [], "--map"), group=group, examples=examples,
            seed=seed, progress=progress,
        )  # fmt: skip
    write_card(folder / CARD, model.resolve().name, answer, record_of(model))
    if json:
        out({"card": str(folder / CARD), **answer.model_dump(mode="json")})
        return
    _show(answer)
    typer.echo(folder / CARD)


def _folder_for(model: Path) -> Path:
    """Where its card goes: an artifact of a project is named by its content, and stays as it is."""
    home = model.resolve().parent
    return home.parent / "cards" / model.resolve().name if home.name == "artifacts" else model


def _show(found: Explained) -> None:
    table(
        f"{found.task} on {found.examples:,} examples", ("metric", "score", "low", "high"),
        [(s.metric, cell(s.value), cell(s.low), cell(s.high)) for s in found.scores],
    )  # fmt: skip
    if found.slices is not None and found.slices.slices:
        table(
            f"slices, the worst of {found.slices.looks} looks",
            ("slice", "n", found.slices.metric, "low", "high", "others", "q", ""),
            [
                (s.name, s.score.examples, cell(s.score.value), cell(s.score.low), cell(s.score.high),
                 cell(s.others), f"{s.q:.2g}", "worse" if s.worse else "")
                for s in found.slices.slices[:SLICES]
            ],
        )  # fmt: skip
    if found.robustness:
        table(
            "disturbed text",
            ("perturbation", "rate", found.robustness[0].comparison.metric, "change", "low", "high"),
            [
                (d.perturbation, f"{d.rate:.0%}", cell(c.second), f"{c.difference:+.4f}", f"{c.low:+.4f}",
                 f"{c.high:+.4f}")
                for d in found.robustness for c in (d.comparison,)
            ],
        )  # fmt: skip
    if found.fairness is not None:
        table(
            f"groups of {found.fairness.column}", ("measure", "highest", "lowest", "gap", "low", "high"),
            [
                (g.measure, f"{g.highest} {g.values[g.highest]:.4f}", f"{g.lowest} {g.values[g.lowest]:.4f}",
                 cell(g.gap.value), cell(g.gap.low), cell(g.gap.high))
                for g in found.fairness.gaps
            ],
        )  # fmt: skip
        for name, count in found.fairness.too_small.items():
            typer.echo(f"{found.fairness.column} {name} has {count} examples, too few to compare")
    if found.faithfulness is not None:
        f = found.faithfulness
        table(
            f"change of the {f.output} by {f.share:.0%} of the words, in {f.texts} texts",
            ("", "named", "random", "gain", "low", "high"),
            [
                ("taken out", cell(f.comprehensiveness.value), cell(f.random_comprehensiveness.value),
                 *_gain(f.comprehensiveness_gain)),
                ("kept alone", cell(f.sufficiency.value), cell(f.random_sufficiency.value),
                 *_gain(f.sufficiency_gain)),
            ],
        )  # fmt: skip
    for note in (*found.notes, *(found.slices.notes if found.slices else ())):
        typer.echo(note)


def _gain(found: object) -> tuple[str, ...]:
    return tuple(f"{getattr(found, end):+.4f}" for end in ("value", "low", "high"))


def _show_words(found: Attribution) -> None:
    order = sorted(found.words, key=lambda word: -abs(word.attribution))[:WORDS]
    table(
        f"{found.output}: {found.value:+.3f} {found.unit}; with {found.baseline_token} for each word "
        f"{found.baseline:+.3f}",
        ("word", "attribution"), [(word.text, f"{word.attribution:+.4f}") for word in order],
    )  # fmt: skip
