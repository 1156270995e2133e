"""Models behind an OpenAI-compatible server: `serve`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from isoflop.cli import serve_options as given
from isoflop.cli.options import DEFAULT_PROJECT, ProjectOption, extra, open_project, pairs
from isoflop.errors import ServeError
from isoflop.quantities import BYTES, SHARE
from isoflop.terminal import Terminal

if TYPE_CHECKING:
    from isoflop.serve.objectives import Objectives
    from isoflop.serve.opening import Opening
    from isoflop.serve.selecting import Limits
    from isoflop.serve.settings import Settings

app = typer.Typer()

# Variables that hold URLs, which are secrets or have some.
WEBHOOK, RATE_STORAGE = "ISOFLOP_ALERTS_WEBHOOK", "ISOFLOP_RATE_STORAGE"
REFUSE, CONTINUE = "refuse", "continue"


@app.command()
def serve(
    models: given.Models = None,
    project: ProjectOption = DEFAULT_PROJECT,
    host: given.Host = "127.0.0.1",
    port: given.Port = 8000,
    open: given.Open = False,
    slots: given.Slots = 8,
    context: given.Context = None,
    engine: given.EngineName = None,
    threads: given.Threads = None,
    replicas: given.ReplicaCounts = None,
    max_concurrent: given.MaxConcurrent = 64,
    max_prompt_tokens: given.MaxPromptTokens = None,
    max_completion_tokens: given.MaxCompletionTokens = None,
    max_answers: given.MaxAnswers = 8,
    max_seconds: given.MaxSeconds = 300.0,
    max_body: given.MaxBody = 1_000_000,
    drain: given.Drain = 30.0,
    mask: given.Mask = "",
    audit: given.AuditFile = None,
    audit_text: given.AuditText = False,
    audit_full: given.AuditFull = REFUSE,
    certificate: given.Certificate = None,
    certificate_key: given.CertificateKey = None,
    rate_storage: given.RateStorage = None,
    vllm_names: given.VllmNames = False,
    objective: given.Objective = None,
    max_bytes: given.MaxBytes = None,
    max_loss_increase: given.MaxLossIncrease = "1%",
    force: given.Force = False,
) -> None:
    """Serve models to OpenAI's clients, to who has a key of the project.

    A model of the project is served as the fastest of its exports within limits. What isoflop deploy says of
    a name comes before what is typed here, also while the server runs. Alerts go to the URL in
    ISOFLOP_ALERTS_WEBHOOK, if there is one. It needs isoflop's extra serve.

    Example: [bold]isoflop serve my-project/artifacts/model-... --project my-project[/bold], after
    [bold]isoflop keys new NAME --project my-project[/bold]
    """
    with extra("serve"):
        import isoflop.serve.running  # noqa: F401  all of what the extra has is imported by it
        from isoflop.serve.engines.opening import VLLM
        from isoflop.serve.objectives import objectives
        from isoflop.serve.opening import Opening
        from isoflop.serve.replicas import counts
        from isoflop.serve.selecting import Limits
        from isoflop.serve.settings import Settings

    if audit_full not in (REFUSE, CONTINUE):
        raise ServeError(f"--audit-full is {audit_full!r}", hint=f"write {REFUSE} or {CONTINUE}")
    if engine not in (None, VLLM):
        raise ServeError(
            f"--engine is {engine!r}", hint=f"write {VLLM}, or leave it out: it is chosen by what MODEL is"
        )
    if engine == VLLM and replicas is not None:
        raise ServeError("--replicas and --engine vllm", hint="leave one out: a vLLM uses all GPUs it sees")
    settings = Settings(
        host=host, port=port, open=open, body_bytes=max_body, prompt_tokens=max_prompt_tokens,
        completion_tokens=max_completion_tokens, answers=max_answers, concurrent=max_concurrent,
        seconds=max_seconds, mask=tuple(filter(None, (kind.strip() for kind in mask.split(",")))),
        audit=audit, audit_text=audit_text, audit_full=audit_full, certificate=certificate,
        certificate_key=certificate_key, rate_storage=_rate_storage(rate_storage), vllm_names=vllm_names,
        drain_seconds=drain, replicas=None if replicas is None else counts.replicas(replicas),
    )  # fmt: skip
    limits = Limits(
        None if max_bytes is None else BYTES.read("--max-bytes", max_bytes),
        SHARE.read("--max-loss-increase", max_loss_increase), force,
    )  # fmt: skip
    promised = objectives(pairs(objective or [], "--objective"))
    _run(named(models or []), project, settings, limits, Opening(threads, slots, context, engine), promised)


def _run(
    models: Mapping[str, str], project: Path, settings: Settings, limits: Limits, opening: Opening,
    promised: Objectives,
) -> None:  # fmt: skip
    """Serve until a signal ends it."""
    from isoflop.serve.audit import Audit
    from isoflop.serve.deploying.following import Follower, deployed
    from isoflop.serve.gateway import Gateway
    from isoflop.serve.keys import Keys
    from isoflop.serve.masking.presidio import preferred
    from isoflop.serve.opening import opened_models
    from isoflop.serve.replicas.cluster import Fleet
    from isoflop.serve.running import serve as run
    from isoflop.serve.screen import screen
    from isoflop.serve.selecting import artifacts
    from isoflop.serve.watched import watched

    terminal = Terminal()
    home = open_project(project) if project.exists() or not settings.open else None
    gateway = Gateway({}, settings, None if home is None else Keys(home), masker=preferred())
    known = {} if home is None else deployed(home)
    if not models and not known:
        raise ServeError(
            f"{project} has nothing deployed to serve", hint="name a MODEL, or isoflop deploy MODEL"
        )
    for name in models.keys() & known.keys():
        version, path = known[name].version, known[name].main.path
        terminal.log(f"{name}: {path} is served, as deployed (version {version}), not {models[name]}")
    fleet = None
    if settings.replicas:
        main = {name: known[name].main.path for name in models or known if name in known}
        opening = _shared(opening, {**models, **main}, settings.replicas.most)
        fleet = Fleet(opening, settings.replicas, terminal, seconds=settings.seconds)
    follower = None if home is None else Follower(home, gateway, fleet or opening)
    typed = {name: where for name, where in models.items() if name not in known}
    alone = opening.by is not None
    chosen = artifacts(typed, home, opening.threads, limits, terminal, alone=alone)
    served = {**models, **chosen}
    log = Audit(settings.audit, settings) if settings.audit else None
    try:
        around = watched(gateway, home, log, promised, os.environ.get(WEBHOOK))
        gateway.observers = around.observers
        if log is not None:
            terminal.log(log.policy)

        def tell(url: str) -> None:
            if follower is not None:
                follower.url = url
            typer.echo(screen(gateway, url))

        opened = partial(opened_models, served, None, fleet or opening)
        with fleet or nullcontext():
            run(
                gateway, opened if follower is None else partial(follower.opening, served), tell,
                more=around.routers, beside=[each for each in (around.alerts, follower) if each is not None],
            )  # fmt: skip
    finally:
        if log is not None:
            log.close()


def _shared(opening: Opening, models: Mapping[str, str], most: int) -> Opening:
    """Its threads, where each of these models has so many replicas. Raises ServeError."""
    from isoflop.serve.replicas.counts import threads_of
    from isoflop.workers import cores

    here = sum("://" not in where for where in models.values())
    if not here:
        raise ServeError("--replicas, and no model of this machine", hint="leave it out")
    return opening._replace(threads=threads_of(most * here, cores(), opening.threads))


def _rate_storage(typed: str | None) -> str:
    """Raises ServeError for a URL with a password: whoever is on this machine sees what was typed."""
    if typed is None:
        return os.environ.get(RATE_STORAGE, "memory://")
    if "@" in typed or "password" in typed:
        raise ServeError(
            "--rate-storage has a password, which other users of this machine could read",
            hint=f"leave it out, and write the URL into the variable {RATE_STORAGE}",
        )
    return typed


def named(models: Sequence[str]) -> dict[str, str]:
    """Paths or URLs by the names that clients use: those written before =, else of the file or folder."""
    found: dict[str, str] = {}
    for text in models:
        name, where = split(text)
        if name is None and "://" in where:
            raise ServeError(f"the server {text} has no name here", hint=f"write NAME={text}")
        if name is None:
            name = Path(where).name.removesuffix(".gguf")
        if name in found:
            raise ServeError(f"two models are named {name!r}", hint=f"write e.g. other={where}")
        found[name] = where
    return found


def split(text: str) -> tuple[str | None, str]:
    """What is written before =, if that is a name, and the path or URL."""
    name, equals, where = text.partition("=")
    return (name, where) if equals and "/" not in name else (None, text)
