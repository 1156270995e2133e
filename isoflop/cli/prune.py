"""A smaller model from a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    EvalTokensOption,
    JsonOption,
    ProjectOption,
    SeedOption,
    count,
    open_project,
)
from isoflop.errors import TrainError
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.store import Project
    from isoflop.transforms import Scores, Transform

app = typer.Typer()

LayersOption = Annotated[int | None, typer.Option("--keep-layers", help="Layers to keep.")]
HeadsOption = Annotated[
    int | None, typer.Option("--keep-heads", help="Query heads; whole key/value groups go.")
]
FeedForwardOption = Annotated[
    int | None, typer.Option("--keep-ff", help="Feed-forward width, a multiple of 32.")
]
WidthOption = Annotated[int | None, typer.Option("--keep-width", help="d_model, a multiple of 32.")]
ShareOption = Annotated[
    float | None,
    typer.Option(
        "--params-share",
        help="Share of the stored parameters to keep: of the shapes near it, the one with the lowest "
        "loss on calibration text.",
    ),
]
ByOption = Annotated[
    str | None,
    typer.Option(help="activation, l2, taylor or random; of masks wanda or magnitude."),
]
DepthByOption = Annotated[str, typer.Option(help="Of layers: influence, taylor or random.")]
CalibrateOption = Annotated[float | None, count("Training text to calibrate on, in tokens; 65,536.")]
StepsOption = Annotated[int, typer.Option(help="Prune a part, train on, and prune again, so often.")]
HealOption = Annotated[float | None, count("Tokens to train on after pruning, of all steps together.")]
HealByOption = Annotated[
    str, typer.Option(help="distill, with the unpruned model as teacher, or train, on the text alone.")
]
UnstructuredOption = Annotated[
    float | None,
    typer.Option(help="Instead: this share of single weights becomes zero, stored sparse, no faster."),
]
TwoFourOption = Annotated[
    bool, typer.Option("--two-four", help="Instead: two of every four weights become zero, likewise.")
]


@app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="A folder of our decoder, of this project's tokenizer.")],
    layers: LayersOption = None, heads: HeadsOption = None, ff: FeedForwardOption = None,
    width: WidthOption = None, share: ShareOption = None, by: ByOption = None,
    depth_by: DepthByOption = "influence", calibrate: CalibrateOption = None, steps: StepsOption = 1,
    heal_tokens: HealOption = None, heal_by: HealByOption = "distill",
    lr_scale: Annotated[float, typer.Option(help="Multiplies the learning rates of healing.")] = 1.0,
    unstructured: UnstructuredOption = None, two_four: TwoFourOption = False,
    eval_tokens: EvalTokensOption = 131_072,
    project: ProjectOption = DEFAULT_PROJECT, seed: SeedOption = 0, json: JsonOption = False,
) -> None:  # fmt: skip
    """Take the least important parts out of a model, and train what is left on.

    The result is a plain, smaller folder, which transformers opens and `isoflop export` takes.

    Example: [bold]isoflop prune MODEL --params-share 0.5 --heal-tokens 2M --project my-project[/bold]
    """
    from isoflop.export.calibrate import CALIBRATION_TOKENS
    from isoflop.pipeline import corpus_of
    from isoflop.transforms.masks import mask_model
    from isoflop.transforms.pruning import Heal, Wanted, prune_model

    sizes = {"n_layers": layers, "n_heads": heads, "d_ff": ff, "d_model": width}
    keep = {name: size for name, size in sizes.items() if size is not None}
    tokens = CALIBRATION_TOKENS if calibrate is None else int(calibrate)
    masked = _is_mask(unstructured, two_four, bool(keep) or share is not None or heal_tokens is not None)
    home = open_project(project)
    with home.lock(), Terminal() as progress:
        corpus = corpus_of(home)
        if masked:
            asked = {"share": 0.5 if unstructured is None else unstructured, "two_four": two_four}
            chain = [
                mask_model(
                    home, corpus, model, tokens=tokens, eval_tokens=eval_tokens, **_given(asked, rule=by)
                )
            ]
        else:
            wanted = Wanted(**_given(
                {
                    "keep": keep, "share": share, "depth": depth_by, "tokens": tokens, "steps": steps,
                    "seed": seed,
                },
                by=by,
            ))  # fmt: skip
            heal = None if heal_tokens is None else Heal(int(heal_tokens), heal_by, lr_scale, seed)
            chain = prune_model(
                home, corpus, model, wanted, heal=heal, eval_tokens=eval_tokens, progress=progress
            )
    _show(home, model, chain, json)


def _given(options: dict[str, Any], **typed: str | None) -> dict[str, Any]:
    """With those that were typed; the others keep the library's defaults."""
    return {**options, **{name: word for name, word in typed.items() if word is not None}}


def _is_mask(unstructured: float | None, two_four: bool, shaped: bool) -> bool:
    """Whether single weights go. Raises TrainError for a mask beside something else."""
    if unstructured is None and not two_four:
        return False
    if unstructured is not None and two_four:
        raise TrainError("--unstructured and --two-four are two masks", hint="give one of them")
    if shaped:
        raise TrainError(
            "a mask keeps the model's shape, and training would fill it again",
            hint="leave out --keep-*, --params-share and --heal-tokens, or the mask",
        )
    return True


def _show(home: Project, model: Path, chain: list[Transform], json: bool) -> None:
    """Size, loss and cost of each step."""
    folders = [model, *(home.folder / step.model for step in chain)]
    sizes = [weight_bytes(folder) for folder in folders]
    if json:
        out({
            "model": str(folders[-1]), "bytes_before": sizes[0], "bytes_after": sizes[-1],
            "flops": sum(step.flops_total for step in chain),
            "transforms": [step.model_dump(mode="json") for step in chain],
        })  # fmt: skip
        return
    before = chain[0].before
    assert before is not None
    rows = [("before", *_numbers(before, sizes[0]), "")]
    rows += [
        (step.kind, *_numbers(step.after, size), f"{step.flops_total:.3g}")
        for step, size in zip(chain, sizes[1:], strict=True)
    ]
    table(
        f"{chain[0].kind} {model.name}",
        ("", "parameters", "bytes", "loss", "s.e.", "bits/byte", "FLOPs"),
        rows,
    )
    if chain[-1].kind == "mask":
        typer.echo(
            f"{chain[-1].options['zeros']:.1%} of the weights are zero: they take less room on disk, and no "
            "engine is faster or smaller in memory by it."
        )
    typer.echo(folders[-1])


def weight_bytes(folder: Path) -> int:
    """Of a model folder's weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _numbers(s: Scores, size: int) -> tuple[Any, ...]:
    return f"{s.params_total:,}", f"{size:,}", f"{s.loss:.4f}", f"{s.loss_se:.4f}", cell(s.bpb)
