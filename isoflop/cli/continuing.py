"""The options of `train` that go on from a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.errors import TrainError

FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Go on from this model folder, ours or transformers', at half the rates.",
    ),
]
OldOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PROJECT",
        help="Project or corpus folder of what --from has learned: measure what is forgotten.",
    ),
]
ReplayOption = Annotated[
    Path | None, typer.Option(metavar="PROJECT", help="As --old, and mix its text into each batch.")
]
ReplayShareOption = Annotated[
    float | None, typer.Option(help="Share of old text in the batches; 0.1 with --replay, else 0.")
]
EwcOption = Annotated[
    float,
    typer.Option(
        help="Strength of elastic weight consolidation on the old text, such as 1 to 5; n: as if there were "
        "n times as much of it as of new text."
    ),
]
EwcTokensOption = Annotated[
    int | None, typer.Option(help="Old tokens on which --ewc measures the Fisher information; 65,536.")
]


def forgetting_options(
    old: Path | None, replay: Path | None, share: float | None, ewc: float, ewc_tokens: int | None
) -> dict[str, Any]:
    """What `starting.continuation` is to be told of the old text, as far as something was said."""
    from isoflop.starting import REPLAY_SHARE

    if old is not None and replay is not None and old.absolute() != replay.absolute():
        raise TrainError(
            f"--old {old} and --replay {replay} are different",
            hint="give one of them: both name the old text",
        )
    if share is None:
        share = 0.0 if replay is None else REPLAY_SHARE
    said = {"old": replay or old, "replay_share": share, "ewc": ewc, "ewc_tokens": ewc_tokens}
    return {name: value for name, value in said.items() if value}


def check_start(initial: Path | None, shaped: bool, forget: dict[str, Any]) -> None:
    """Raises TrainError when a shape is asked for beside --from, or something is to be remembered without."""
    if initial is None and forget:
        raise TrainError(
            "only a model that goes on can forget: there is no --from", hint="name a model folder with --from"
        )
    if initial is not None and shaped:
        raise TrainError(
            f"the shape, family and objective of {initial} are its own",
            hint="leave out --width, --layers, --family and --objective",
        )
