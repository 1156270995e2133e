"""The main job's commands: one subcommand a stage. They parse, call and print; they decide nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.cli.continuing import (
    EwcOption,
    EwcTokensOption,
    FromOption,
    OldOption,
    ReplayOption,
    ReplayShareOption,
    check_start,
    forgetting_options,
)
from isoflop.cli.options import (
    DEFAULT_FAMILY,
    DEFAULT_PROJECT,
    AccumulateOption,
    BudgetOption,
    FamilyOption,
    FieldOption,
    HeldoutOption,
    JsonOption,
    LedgerOption,
    ObjectiveOption,
    PatienceOption,
    PrecisionOption,
    ProjectOption,
    RayOption,
    SeedOption,
    SetOption,
    ShareOption,
    SourcesArgument,
    TokenizerOption,
    TrackOption,
    VocabOption,
    WithinOption,
    open_project,
    typed,
)
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

app = typer.Typer()


def _corpus_config(
    sources: list[str] | None, field: str, vocab: int | None, tokenizer: Path | None, heldout: float
) -> Any:
    from isoflop.records import CorpusConfig

    return CorpusConfig(
        sources=tuple(sources or ()), field=field, vocab_size=vocab, heldout_share=heldout,
        tokenizer=None if tokenizer is None else str(tokenizer),
    )  # fmt: skip


@app.command()
def run(
    sources: SourcesArgument = None, budget: BudgetOption = "5m", project: ProjectOption = DEFAULT_PROJECT,
    field: FieldOption = "text", vocab: VocabOption = None, tokenizer: TokenizerOption = None,
    heldout: HeldoutOption = 0.02, ladder_share: ShareOption = 1 / 3, within: WithinOption = 0.05,
    family: FamilyOption = DEFAULT_FAMILY, objective: ObjectiveOption = None,
    changes: SetOption = None, seed: SeedOption = 0, ray: RayOption = None, ledger: LedgerOption = None,
    track: TrackOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Do all of it: corpus, ladder, law, plan, final model, gain, report.

    Example: [bold]isoflop run docs/ --budget 5m --project my-project[/bold]
    """
    from isoflop.pipeline import run as run_job

    home = project if ledger is None else open_project(project, create=True, ledger=ledger)
    with Terminal() as progress:
        result = run_job(
            sources or (), budget=budget, project=home, seed=seed, ladder_share=ladder_share,
            within=within, family=family, objective=objective, changes=changes or (), track=track or (),
            corpus_config=_corpus_config(sources, field, vocab, tokenizer, heldout), ray=ray,
            progress=progress,
        )  # fmt: skip
    if json:
        out(result)
        return
    low, high = result.interval
    gain = result.doublings
    table("What the budget bought", ("", "value"), [
        ("held-out loss, nats a token", f"{result.loss:.4f} +- {result.loss_se:.4f}"),
        ("bits per byte", cell(result.bpb)),
        ("predicted before the run", f"{result.predicted:.4f} [{low:.4f}, {high:.4f}]"),
        ("prediction held", "yes" if result.within_interval else "no"),
        ("parameters", f"{result.params:,}"),
        ("tokens", f"{result.tokens:,}"),
        ("compute, FLOPs", f"{result.flops:.3g} (with the ladder {result.flops_total:.3g})"),
        ("doublings over the law", f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"),
        ("seconds of budget", f"{result.seconds['total']:.0f} (corpus {result.seconds['corpus']:.0f} apart)"),
        ("model", result.model),
        ("report", result.report),
    ])  # fmt: skip


@app.command()
def corpus(
    sources: SourcesArgument = None, project: ProjectOption = DEFAULT_PROJECT, field: FieldOption = "text",
    vocab: VocabOption = None, tokenizer: TokenizerOption = None, heldout: HeldoutOption = 0.02,
    ledger: LedgerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Read, clean, deduplicate, split and pack text into token files.

    Example: [bold]isoflop corpus 'data/*.jsonl.gz' --field content --vocab 8192[/bold]
    """
    from isoflop.pipeline import corpus_of

    home = open_project(project, create=True, ledger=ledger)
    with home.lock(), Terminal() as progress:
        built = corpus_of(home, _corpus_config(sources, field, vocab, tokenizer, heldout), progress=progress)
    if json:
        out(built)
        return
    table(f"Corpus {built.id}", ("", "value"), [
        ("documents kept", f"{built.documents:,}"),
        ("bytes kept", f"{built.bytes:,} of {built.raw_bytes:,}"),
        ("training tokens", f"{built.train_tokens:,}"),
        ("held-out tokens", f"{built.heldout_tokens:,}"),
        ("vocabulary", f"{built.vocab_size:,}"),
        ("bytes a token, held-out", f"{built.bytes_per_token:.3f}"),
        ("bad bytes replaced", f"{built.bad_bytes:,}"),
        *((f"dropped: {reason}", f"{count:,}") for reason, count in built.dropped.items()),
        ("seconds", f"{built.seconds:.1f}"),
        ("folder", built.folder),
    ])  # fmt: skip


@app.command()
def sweep(
    context: typer.Context,
    budget: BudgetOption = "100s", project: ProjectOption = DEFAULT_PROJECT, seed: SeedOption = 0,
    target: Annotated[
        str | None, typer.Option(help="The whole budget that the law is for; in the same unit as --budget.")
    ] = None,
    within: WithinOption = 0.05, family: FamilyOption = DEFAULT_FAMILY, objective: ObjectiveOption = None,
    changes: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the ladder; train nothing.")] = False,
    ray: RayOption = None, track: TrackOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Train the ladder of small runs that the law is fitted to; all of the budget is the ladder's.

    With --target the ladder starts small and grows by the runs that tell most about that budget's model.

    Example: [bold]isoflop sweep --budget 100s[/bold] or [bold]isoflop sweep --budget 20m --target 2h[/bold]
    """
    from isoflop.budget import Budget
    from isoflop.errors import BudgetError
    from isoflop.families import find
    from isoflop.pipeline import corpus_of, key_of
    from isoflop.pipeline import sweep as sweep_ladder
    from isoflop.places import place_at
    from isoflop.trackers import tracked
    from isoflop.variant import Variant

    if target is None and typed(context, "within"):
        raise BudgetError(
            "--within is for a ladder that grows, and no --target was given",
            hint="give the whole budget that the law is for, e.g. --target 2h, or leave out --within",
        )
    parsed, home = Budget.parse(budget), open_project(project)
    variant = Variant.of(find(family, objective), changes or ())
    whole = None if target is None else Budget.parse(target)
    with (
        home.lock(), Terminal() as terminal, tracked(track or (), home, terminal) as progress,
        place_at(ray, progress) as place,
    ):  # fmt: skip
        text = corpus_of(home)
        key = key_of(text, whole or parsed, seed, 1.0, None if whole is None else within, variant)
        ladder, runs = sweep_ladder(
            home, text, parsed, target=whole, within=within, seed=seed, key=key, dry_run=dry_run,
            variant=variant, progress=progress, place=place,
        )  # fmt: skip
    if json:
        out({"ladder": ladder.model_dump(mode="json"), "runs": [r.model_dump(mode="json") for r in runs]})
        return
    table(
        f"Ladder: {ladder.packed} side by side, {ladder.seconds:.0f} s, {ladder.flops:.3g} FLOPs",
        ("shape", "params N", "tokens D", "FLOPs", "seconds", "memory MB"),
        [
            (
                f"{m.config.model.n_layers} x {m.config.model.d_model}, seed {m.config.seed}",
                f"{m.params:,}",
                " ".join(f"{t:,}" for t in m.token_counts), f"{m.flops:.3g}", f"{m.seconds:.1f}",
                f"{m.memory_bytes / 1e6:.0f}",
            )
            for m in ladder.members
        ],
    )  # fmt: skip
    if runs:
        _runs_table(runs)
    if ladder.ended:
        typer.echo(f"The ladder ended: {ladder.ended}.")


@app.command()
def train(
    context: typer.Context,
    project: ProjectOption = DEFAULT_PROJECT,
    width: Annotated[int | None, typer.Option(help="d_model.")] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers; from the width when absent.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens.")] = None,
    lr_scale: Annotated[float, typer.Option(help="Multiplies every learning rate.")] = 1.0,
    family: FamilyOption = DEFAULT_FAMILY, objective: ObjectiveOption = None, changes: SetOption = None,
    precision: PrecisionOption = None, accumulate: AccumulateOption = None, patience: PatienceOption = None,
    initial: FromOption = None, old: OldOption = None, replay: ReplayOption = None,
    replay_share: ReplayShareOption = None, ewc: EwcOption = 0.0, ewc_tokens: EwcTokensOption = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Share weights and optimizer state out to the processes (FSDP2).")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of initial weights and data order; the plan's, or 0, when absent."),
    ] = None,
    ray: RayOption = None, track: TrackOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Train the latest plan's model, or the shape given, or go on from a model folder.

    Under torchrun, all of its processes train.

    Example: [bold]isoflop train --width 96 --tokens 2000000[/bold] or
    [bold]isoflop train --from MODEL --tokens 2000000 --replay OLD-PROJECT[/bold] or
    [bold]torchrun --nproc-per-node 8 -m isoflop train --shard[/bold]
    """
    from isoflop.families import find
    from isoflop.pipeline import corpus_of, train_model
    from isoflop.places import place_at
    from isoflop.starting import chosen_config, continuation
    from isoflop.trackers import tracked
    from isoflop.variant import Variant

    options = {"precision": precision, "accumulate": accumulate, "patience": patience, "shard": shard or None}
    said = [f"{name}={value}" for name, value in options.items() if value is not None]
    forget = forgetting_options(old, replay, replay_share, ewc, ewc_tokens)
    named = [option.removeprefix("--") for option in typed(context, "family", "objective")]
    check_start(initial, bool(named) or width is not None or layers is not None, forget)
    home, variant = open_project(project), Variant.of(find(family, objective), [*(changes or ()), *said])
    with (
        home.lock(), Terminal() as terminal, tracked(track or (), home, terminal) as progress,
        place_at(ray, progress) as place,
    ):  # fmt: skip
        text, past = corpus_of(home), None
        if initial is not None:
            config, past = continuation(
                home, text, initial, tokens=tokens, lr_scale=lr_scale, seed=seed or 0, variant=variant,
                place=place, **forget,
            )  # fmt: skip
        else:
            config = chosen_config(
                home, text, width=width, layers=layers, tokens=tokens, lr_scale=lr_scale, seed=seed,
                variant=variant, named=named, progress=progress, place=place,
            )  # fmt: skip
        role = "train" if past is None else "continued"
        done = train_model(home, text, config, role=role, progress=progress, past=past, place=place)
    if json:
        out(done)
        return
    _runs_table([done])
    if (lost := done.forgetting) is not None:
        typer.echo(
            f"old text, nats a token: {lost.before:.4f} before, {lost.after:.4f} after; "
            f"forgotten {lost.nats:+.4f} +- {lost.nats_se:.4f}"
        )
    for words, *numbers in pairs_row(done.next_accuracy, done.next_accuracy_se):
        typer.echo(f"{words}: {' +- '.join(numbers)}")
    typer.echo(home.folder / str(done.model))


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A model folder of this project's tokenizer.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be repeated.")] = None,
    project: ProjectOption = DEFAULT_PROJECT,
    tokens: Annotated[int, typer.Option(help="New tokens.")] = 96,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Sample among this many tokens.")] = 50,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Let a model continue text.

    Example: [bold]isoflop sample MODEL --prompt 'def main('[/bold]
    """
    from isoflop.pipeline import corpus_of
    from isoflop.using import sample as write

    samples = write(
        model, corpus_of(open_project(project)), prompt or [""],
        tokens=tokens, temperature=temperature, top_k=top_k, seed=seed,
    )  # fmt: skip
    if json:
        out([s.model_dump() for s in samples])
        return
    for s in samples:
        typer.echo(s.prompt + s.text + "\n")


@app.command()
def report(
    project: ProjectOption = DEFAULT_PROJECT,
    path: Annotated[
        Path | None, typer.Option("--out", help="Where; PROJECT/report.html when absent.")
    ] = None,
) -> None:
    """Write the project's report: one HTML file that opens offline.

    Example: [bold]isoflop report --project my-project --out page.html[/bold]
    """
    from isoflop.report import write_report

    typer.echo(write_report(open_project(project), path))


@app.command(name="ls")
def list_(project: ProjectOption = DEFAULT_PROJECT, json: JsonOption = False) -> None:
    """List the project's runs.

    Example: [bold]isoflop ls --project my-project[/bold]
    """
    from isoflop.records import Run

    runs = open_project(project).all("run", Run)
    if json:
        out([r.model_dump(mode="json", exclude={"curve"}) for r in runs])
    else:
        _runs_table(runs)


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="The beginning of an id: of a run, plan, fit, result ...")],
    project: ProjectOption = DEFAULT_PROJECT,
) -> None:
    """Print one record of the ledger as JSON.

    Example: [bold]isoflop show 3f2a[/bold]
    """
    typer.echo(open_project(project).find(id).body)


def pairs_row(share: float | None, error: float | None) -> list[tuple[str, str, str]]:
    """What a model that learned the next sentence says of held-out pairs; nothing of others."""
    if share is None or error is None:
        return []
    return [("next sentence told, half is chance", f"{100 * share:.1f}%", f"{100 * error:.1f}%")]


def _runs_table(runs: list[Any]) -> None:
    table(
        "Runs",
        ("id", "role", "family", "params N", "tokens D", "loss", "s.e.", "bits/byte", "tokens/s", "of peak",
         "seconds"),
        [
            (
                r.id, r.role, r.config.model.family, f"{r.params_matmul:,}", f"{r.tokens:,}", f"{r.loss:.4f}",
                f"{r.loss_se:.4f}", cell(r.bpb), f"{r.tokens_per_second:,.0f}", f"{100 * r.peak_share:.0f}%",
                f"{r.seconds_train + r.seconds_eval:.1f}",
            )
            for r in runs
        ],
    )  # fmt: skip
