"""The options of `serve`, each with its words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import whole

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        help="A .gguf file, a model folder, an export or an adapted model, or the URL of another server; "
        "NAME=MODEL names it. None: all that isoflop deploy has deployed.",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: of all networks.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")]
Open = Annotated[bool, typer.Option("--open", help="No keys are needed; on this machine alone.")]
Slots = Annotated[int, typer.Option(min=1, help="Requests that a model computes at the same time.")]
Context = Annotated[int | None, whole("Tokens of a prompt and its answer; the model's own when absent.")]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="vllm: start vLLM for MODEL, a folder of a causal model; chosen by MODEL when absent.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Of a model; all cores when absent.")]
ReplicaCounts = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:MAX",
        help="Serve each model by so many processes, as requests wait, through Ray Serve; the cores are "
        "shared out among the most.",
    ),
]
MaxConcurrent = Annotated[int, typer.Option(min=1, help="Requests at once, in all.")]
MaxPromptTokens = Annotated[int | None, whole("Of a request; what the context holds when absent.")]
MaxCompletionTokens = Annotated[int | None, whole("Of an answer; what the context holds when absent.")]
MaxAnswers = Annotated[int, typer.Option(min=1, max=128, help="To a prompt, of one request.")]
MaxSeconds = Annotated[float, typer.Option(min=0.1, help="That an answer may take.")]
MaxBody = Annotated[int, whole("Bytes of a request, sounds apart.")]
Drain = Annotated[float, typer.Option(min=1, help="Seconds that answers have to end at shutdown.")]
Mask = Annotated[
    str, typer.Option(metavar="KIND,...", help="Mask personal data in prompts and answers: email,phone ...")
]
AuditFile = Annotated[Path | None, typer.Option(help="Write a line of each call to this file.")]
AuditText = Annotated[bool, typer.Option("--audit-text", help="Also what was asked and answered, masked.")]
AuditFull = Annotated[str, typer.Option(help="Requests when it cannot be written: refuse, or continue.")]
Certificate = Annotated[Path | None, typer.Option(help="PEM file: serve by TLS.")]
CertificateKey = Annotated[Path | None, typer.Option(help="PEM file of its key.")]
RateStorage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where keys' rates are counted: redis://HOST:PORT when servers share them. With a password it "
        "is read from ISOFLOP_RATE_STORAGE instead.",
    ),
]
VllmNames = Annotated[bool, typer.Option("--vllm-names", help="Metrics also under vLLM's own names.")]
Objective = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="What alerts watch: first_token=1s, errors=1%; see dashboard."),
]
MaxBytes = Annotated[
    str | None, typer.Option(help="On disk, of what a model of the project is served as: 4MB.")
]
MaxLossIncrease = Annotated[str, typer.Option(help="Over the model's loss, of the same: 2%, or 0.02.")]
Force = Annotated[bool, typer.Option("--force", help="Serve it although its gate or its verdict refused it.")]
