"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.errors import AdaptError, FitError, ServeError
from isoflop.quantities import BYTES, COUNT, NUMBER, RATE, SECONDS, Quantity

if TYPE_CHECKING:
    from isoflop.store import Project


def _reader(kind: Quantity) -> Callable[[typer.CallbackParam, Any], Any]:
    """Reads what was typed; a callback, since a parser does not know the option's name for its error."""

    def read(param: typer.CallbackParam, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [kind.read(param.opts[0], str(text)) for text in value] or None
        return None if value is None else kind.read(param.opts[0], str(value))

    return read


def _quantity(kind: Quantity, metavar: str, words: str) -> Any:
    return typer.Option(help=words, metavar=metavar, parser=str, callback=_reader(kind))


def count(words: str) -> Any:
    """An option such as 7e9, 7B or 1.4T."""
    return _quantity(kind=COUNT, metavar="COUNT", words=words)


def whole(words: str, least: int = 1) -> Any:
    """An option such as 65536, 64k or 1M, an integer of `least` or more."""

    def read(param: typer.CallbackParam, value: Any) -> int | None:
        if value is None:
            return None
        found = COUNT.read(param.opts[0], str(value))
        if found < least or found != int(found):
            raise FitError(
                f"{param.opts[0]} is {value}, not an integer of {least} or more.",
                hint="Write e.g. 64k or 1M.",
            )
        return int(found)

    return typer.Option(help=words, metavar="COUNT", parser=str, callback=read)


ProjectOption = Annotated[
    Path, typer.Option("--project", "-p", help="Folder that keeps everything: corpus, runs, ledger, report.")
]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Keep the ledger on a PostgreSQL server, postgresql://USER@HOST/NAME; said once, the project "
        "remembers it. The password is read from PGPASSWORD or ~/.pgpass.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of initial weights, data order and bootstrap.")]
RoundingOption = Annotated[
    str | None,
    typer.Option(
        help="Of weights of 8 bits or fewer: nearest, calibrated (gguf's: errors weighed by what training "
        "text feeds them) or gptq (gguf's and compressed-tensors': later columns make up for errors of "
        "earlier ones). When absent, calibrated for gguf and gptq for compressed-tensors."
    ),
]
CalibrateOption = Annotated[
    int | None,
    whole("Tokens of training text that tell how to round; 65,536, 0: to the nearest.", least=0),
]
EvalTokensOption = Annotated[int, whole("Held-out tokens to score, at most, e.g. 64k.")]
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
FamilyOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FOLDER",
        help="Architecture: isoflop (our decoder), gpt2, llama, bert, modernbert, mamba2, t5, or a folder "
        "whose config.json is scaled.",
    ),
]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(
        help="causal, prefix, masked, masked-words (whole words), masked-next (with next-sentence "
        "prediction) or spans; the family's own when absent."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Replace a value of the recipe, e.g. cooldown=0.5, multiply it, e.g. model.d_ff=x1.5, or scale "
        "it with the width, e.g. weight_decay=0.1@128^-1; may be repeated.",
    ),
]
PrecisionOption = Annotated[
    str | None, typer.Option(help="float32, bf16, or fp16 on a GPU; held-out scores are float32.")
]
AccumulateOption = Annotated[
    int | None, typer.Option(min=1, help="Do each batch in this many parts, for want of memory.")
]
PatienceOption = Annotated[
    int | None,
    typer.Option(min=0, help="Cool down once held-out loss has not fallen this many scores in a row."),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TOOL", help="Also write to tensorboard, wandb (offline), mlflow or trackio; may be repeated."
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|local",
        help="Train on a Ray cluster (auto, HOST:6379, ray://HOST:10001) whose nodes all see the project's "
        "folder, or on Ray on this machine.",
    ),
]
DEFAULT_FAMILY = "isoflop"
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


ParamsOption = Annotated[float | None, count("Parameters N, e.g. 7B.")]
TokensOption = Annotated[float | None, count("Training tokens D, e.g. 1.4T.")]
ServingBitsOption = Annotated[
    float | None, _quantity(NUMBER, "BITS", "Bits a weight at serving; 16 where a limit needs them.")
]
MemoryOption = Annotated[
    float | None, _quantity(BYTES, "BYTES", "Memory that holds the served weights, e.g. 8GB or 8GiB.")
]
LatencyOption = Annotated[
    float | None,
    _quantity(SECONDS, "SECONDS", "Time a generated token at most, e.g. 20ms; needs --bandwidth."),
]
BandwidthOption = Annotated[
    float | None, _quantity(RATE, "BYTES/S", "Of the memory that holds the weights, e.g. 900GB/s.")
]
CacheOption = Annotated[
    float | None,
    _quantity(BYTES, "BYTES", "Keep the teachers' likeliest tokens on disk, e.g. 1GB; implies --top-k 32."),
]
TeacherLossOption = Annotated[
    float | None,
    _quantity(NUMBER, "NATS", "Distil from a teacher with this loss a token on the same held-out text."),
]
TeacherParamsOption = Annotated[
    float | None,
    count("The teacher's parameters: its forward passes are paid. None: its logits cost nothing."),
]


def pairs(listed: Sequence[str], option: str) -> dict[str, str]:
    """What was typed as NAME=VALUE, by name. Raises AdaptError for a text without =."""
    for text in listed:
        if "=" not in text:
            raise AdaptError(f"{option} {text} has no =", hint=f"write {option} NAME=VALUE")
    split = [text.partition("=") for text in listed]
    return {name.strip(): value.strip() for name, _, value in split}


def typed(context: typer.Context, *names: str) -> list[str]:
    """Which of these parameters of the command were typed, whatever their values, as a user names them."""
    found = [context.get_parameter_source(name) for name in names]
    known = {param.name: param.opts[0] for param in context.command.params}
    return [
        known[name] for name, source in zip(names, found, strict=True)
        if source is not None and source.name == "COMMANDLINE"
    ]  # fmt: skip


@contextmanager
def extra(name: str) -> Iterator[None]:
    """For imports that need this extra of isoflop. Raises ServeError where it is not installed."""
    try:
        yield
    except ImportError as error:
        raise ServeError(f"{error.name} is not installed", hint=f"pip install 'isoflop[{name}]'") from None


def open_project(folder: Path, *, create: bool = False, ledger: str | None = None) -> Project:
    """The project in that folder, with its ledger at that URL. Raises ProjectError."""
    from isoflop.store import Project

    return Project(folder, url=ledger, create=create)
