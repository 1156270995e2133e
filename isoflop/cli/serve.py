"""Models behind an OpenAI-compatible server: `serve`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import DEFAULT_PROJECT, ProjectOption, open_project, pairs, whole
from isoflop.errors import ServeError
from isoflop.quantities import BYTES, SHARE
from isoflop.terminal import Terminal

app = typer.Typer()

WEBHOOK = "ISOFLOP_ALERTS_WEBHOOK"  # variable that holds the URL, which is a secret
REFUSE, CONTINUE = "refuse", "continue"


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="A .gguf file, a model folder, an export or an adapted model, or the URL of another server; "
            "NAME=MODEL names it.",
        ),
    ],
    project: ProjectOption = DEFAULT_PROJECT,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: of all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    open: Annotated[bool, typer.Option("--open", help="No keys are needed; on this machine alone.")] = False,
    slots: Annotated[int, typer.Option(min=1, help="Requests that a model computes at the same time.")] = 8,
    context: Annotated[
        int | None, whole("Tokens of a prompt and its answer; the model's own when absent.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a model; all cores when absent.")] = None,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Requests at once, in all.")] = 64,
    max_prompt_tokens: Annotated[
        int | None, whole("Of a request; what the context holds when absent.")
    ] = None,
    max_completion_tokens: Annotated[
        int | None, whole("Of an answer; what the context holds when absent.")
    ] = None,
    max_answers: Annotated[int, typer.Option(min=1, max=128, help="To a prompt, of one request.")] = 8,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="That an answer may take.")] = 300.0,
    max_body: Annotated[int, whole("Bytes of a request, sounds apart.")] = 1_000_000,
    drain: Annotated[float, typer.Option(min=1, help="Seconds that answers have to end at shutdown.")] = 30.0,
    mask: Annotated[
        str,
        typer.Option(metavar="KIND,...", help="Mask personal data in prompts and answers: email,phone ..."),
    ] = "",
    audit: Annotated[Path | None, typer.Option(help="Write a line of each call to this file.")] = None,
    audit_text: Annotated[
        bool, typer.Option("--audit-text", help="Also what was asked and answered, masked.")
    ] = False,
    audit_full: Annotated[
        str, typer.Option(help="Requests when it cannot be written: refuse, or continue.")
    ] = "refuse",
    certificate: Annotated[Path | None, typer.Option(help="PEM file: serve by TLS.")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    rate_storage: Annotated[
        str, typer.Option(help="Where keys' rates are counted: redis://HOST:PORT when servers share them.")
    ] = "memory://",
    vllm_names: Annotated[
        bool, typer.Option("--vllm-names", help="Metrics also under vLLM's own names.")
    ] = False,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="What alerts watch: first_token=1s, errors=1%; see dashboard."
        ),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="On disk, of what a model of the project is served as: 4MB.")
    ] = None,
    max_loss_increase: Annotated[
        str, typer.Option(help="Over the model's loss, of the same: 2%, or 0.02.")
    ] = "1%",
    force: Annotated[
        bool, typer.Option("--force", help="Serve it although its gate or its verdict refused it.")
    ] = False,
) -> None:
    """Serve models to OpenAI's clients, to who has a key of the project.

    A model of the project is served as the fastest of its exports within limits. Alerts go to the URL in
    ISOFLOP_ALERTS_WEBHOOK, if there is one.

    Example: [bold]isoflop serve my-project/artifacts/model-... --project my-project[/bold], after
    [bold]isoflop keys new NAME --project my-project[/bold]
    """
    from isoflop.serve.audit import Audit
    from isoflop.serve.gateway import Gateway
    from isoflop.serve.keys import Keys
    from isoflop.serve.masking import Masker
    from isoflop.serve.objectives import objectives
    from isoflop.serve.opening import Limits, Opening, artifacts, opened_models
    from isoflop.serve.running import serve as run
    from isoflop.serve.screen import screen
    from isoflop.serve.settings import Settings
    from isoflop.serve.watched import watched

    if audit_full not in (REFUSE, CONTINUE):
        raise ServeError(f"--audit-full is {audit_full!r}", hint=f"write {REFUSE} or {CONTINUE}")
    promised, terminal = objectives(pairs(objective or [], "--objective")), Terminal()
    limits = Limits(
        None if max_bytes is None else BYTES.read("--max-bytes", max_bytes),
        SHARE.read("--max-loss-increase", max_loss_increase), force,
    )  # fmt: skip
    settings = Settings(
        host=host, port=port, open=open, body_bytes=max_body, prompt_tokens=max_prompt_tokens,
        completion_tokens=max_completion_tokens, answers=max_answers, concurrent=max_concurrent,
        seconds=max_seconds, mask=tuple(filter(None, (kind.strip() for kind in mask.split(",")))),
        audit=audit, audit_text=audit_text, audit_full=audit_full, certificate=certificate,
        certificate_key=certificate_key, rate_storage=rate_storage, vllm_names=vllm_names,
        drain_seconds=drain,
    )  # fmt: skip
    home = open_project(project) if project.exists() or not open else None
    gateway = Gateway({}, settings, None if home is None else Keys(home), masker=Masker)
    served = artifacts(named(models), home, threads, limits, terminal)
    log = Audit(audit, settings) if audit else None
    try:
        around = watched(gateway, home, log, promised, os.environ.get(WEBHOOK))
        gateway.observers = around.observers
        if log is not None:
            terminal.log(log.policy)
        run(
            gateway,
            partial(opened_models, served, home, Opening(threads, slots, context)),
            lambda url: typer.echo(screen(gateway, url)),
            more=around.routers, beside=around.alerts,
        )  # fmt: skip
    finally:
        if log is not None:
            log.close()


def named(models: Sequence[str]) -> dict[str, str]:
    """Paths or URLs by the names that clients use: those written before =, else of the file or folder."""
    found: dict[str, str] = {}
    for text in models:
        name, equals, where = text.partition("=")
        if not equals or "/" in name:
            name, where = Path(text).name.removesuffix(".gguf"), text
        if "://" in where and not equals:
            raise ServeError(f"the server {text} has no name here", hint=f"write NAME={text}")
        if name in found:
            raise ServeError(f"two models are named {name!r}", hint=f"write e.g. other={where}")
        found[name] = where
    return found
