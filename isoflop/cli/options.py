"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isoflop.store import Project

ProjectOption = Annotated[
    Path, typer.Option("--project", "-p", help="Folder that keeps everything: corpus, runs, ledger, report.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of initial weights, data order and bootstrap.")]
SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders, globs (.txt .md .py .jsonl[.gz|.zst] .parquet), a Hugging Face dataset folder "
        "or name. None: the Python standard library's source code."
    ),
]
FieldOption = Annotated[str, typer.Option(help="Field that holds the text in JSONL, Parquet and datasets.")]
VocabOption = Annotated[int | None, typer.Option(help="Vocabulary size; chosen from the budget when absent.")]
TokenizerOption = Annotated[
    Path | None, typer.Option(help="Use this tokenizer.json instead of training one.")
]
HeldoutOption = Annotated[float, typer.Option(help="Share of documents held out, by hash of their text.")]
BudgetOption = Annotated[
    str, typer.Option("--budget", "-b", help="Time (90s, 5m, 2h, 1d) or compute (3e14flops).")
]
ShareOption = Annotated[float, typer.Option(help="Share of the budget that the ladder may spend.")]
WithinOption = Annotated[
    float, typer.Option(help="The ladder ends once the final run's loss is known within this share.")
]
DEFAULT_PROJECT = Path("isoflop-project")
LawArgument = Annotated[
    str, typer.Argument(metavar="FIT", help="What isoflop fit --out saved, or a published law's name.")
]
IntervalOption = Annotated[float, typer.Option(help="Level of the central interval.")]
TableOrFit = Annotated[
    str, typer.Argument(metavar="FIT", help="A table of runs, or what isoflop fit --out saved.")
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="ROLE=COLUMN[:UNIT]", help="E.g. loss=val_loss params=size:M; may be repeated."
    ),
]
WhereOption = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep these rows only; may be repeated.")
]
WithOption = Annotated[
    list[str] | None,
    typer.Option("--with", help="A further covariate of the law, e.g. unique_tokens=2e10; may be repeated."),
]


def open_project(folder: Path, *, create: bool = False) -> Project:
    """The project in that folder. Raises ProjectError."""
    from isoflop.store import Project

    return Project(folder, create=create)
