"""The main job: a budget in, the best model it buys out. Each stage alone, and all of them in order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from isoflop import ladder as rungs
from isoflop import plan as planner
from isoflop.budget import Budget
from isoflop.continued import Past
from isoflop.corpus import build_corpus, load_corpus, vocab_for
from isoflop.devices import present
from isoflop.errors import BudgetError, ProjectError, TrainError
from isoflop.export import save_pretrained
from isoflop.extend import Extender, extend
from isoflop.families import OWN, family_of, find
from isoflop.flops import matmul_peak
from isoflop.gain import gain
from isoflop.identity import job_id, whole_batches
from isoflop.laws import Fit, Observations, fit
from isoflop.laws.design import WANTED
from isoflop.laws.intervals import NOISE_PRIOR
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.places import Place, here, place_at
from isoflop.progress import Progress, Silent
from isoflop.records import (
    Corpus,
    CorpusConfig,
    Gain,
    Ladder,
    Plan,
    Result,
    Run,
    RunConfig,
    digest,
)
from isoflop.report import write_report
from isoflop.store import Project, disk_errors
from isoflop.trackers import check, tracked
from isoflop.using import sample
from isoflop.variant import DEFAULT, Variant
from isoflop.workers import cores

LADDER_SHARE = 1 / 3
LADDER_DELTA = 1.345 * NOISE_PRIOR  # a narrow Huber width goes through five of a ladder's seven runs exactly
CLOSING_SECONDS = 2.0  # saving the model, scoring, samples and the report
REPORT = "report.html"


def corpus_of(
    project: Project, config: CorpusConfig | None = None, *, progress: Progress | None = None
) -> Corpus:
    """The project's corpus: built from `config`, or the latest when None.

    Raises CorpusError as `build_corpus` does, ProjectError when there is none yet.
    """
    root = (project.folder / "corpora").absolute()  # workers may have been started elsewhere
    if config is not None:
        corpus = build_corpus(config, root, progress=progress or Silent())
        project.put("corpus", corpus, corpus.id)
        return corpus
    latest = project.latest("corpus", Corpus)
    if latest is None:
        raise ProjectError(f"{project.folder} has no corpus yet", hint="build one: isoflop corpus [SOURCES]")
    return load_corpus(root / latest.id, verify=True)


def key_of(
    corpus: Corpus, budget: Budget, seed: int, ladder_share: float, within: float | None = None,
    variant: Variant = DEFAULT,
) -> str:  # fmt: skip
    """Names one job: equal jobs share ladder, plan and result."""
    family = variant.family
    kind = () if family == OWN else (family.name, family.objective, family.template)
    return digest([corpus.id, budget.model_dump(), seed, ladder_share, within, *kind, *variant.changes])


def sweep(
    project: Project, corpus: Corpus, budget: Budget, *, target: Budget | None = None, within: float = WANTED,
    seed: int = 0, key: str, dry_run: bool = False, variant: Variant = DEFAULT,
    progress: Progress | None = None, place: Place | None = None,
) -> tuple[Ladder, list[Run]]:  # fmt: skip
    """Design the ladder that `budget` buys and train what is missing of it; `dry_run` only designs.

    With a `target`, the whole budget that it serves, it starts small and grows run by run until the final
    run's loss is known `within` that share, at most to `budget`.
    """
    progress = progress or Silent()
    if target is not None:
        _check_target(budget, target, within)
    ladder = rungs.design(
        project, corpus, budget, seed=seed, progress=progress, key=key, growing=target is not None,
        variant=variant, place=place,
    )  # fmt: skip
    if dry_run:
        return ladder, []
    project.put("ladder", ladder, key)
    runs = rungs.climb(project, corpus, ladder, progress=progress, place=place)
    if target is None:
        return ladder, runs
    speed = rungs.measure(
        project, corpus, [m.config for m in ladder.members], packed=ladder.packed, progress=progress,
        place=place,
    )  # fmt: skip
    extender = Extender(corpus, budget, target, speed, within, seed, variant)
    return extend(
        project, ladder, runs, extender, partial(_law_of, seed=seed, bootstrap=0), progress=progress,
        place=place,
    )  # fmt: skip


def _check_target(budget: Budget, target: Budget, within: float) -> None:
    """Raises BudgetError unless a ladder of `budget` can be for `target`."""
    if not 0 < within < 1:
        raise BudgetError(f"a half-width of {within} is not between 0 and 1", hint="give e.g. 0.05")
    if (budget.seconds is None) != (target.seconds is None):
        raise BudgetError(
            f"a ladder of {budget} cannot be for {target}", hint="give both as time or as FLOPs"
        )
    if (budget.seconds or budget.flops or 0.0) >= (target.seconds or target.flops or 0.0):
        raise BudgetError(f"a ladder of {budget} leaves nothing of {target}", hint="give a larger target")


def fit_runs(
    project: Project, corpus: Corpus, *, law: str = "chinchilla", seed: int = 0, **options: Any
) -> tuple[str, Fit]:
    """Fit `law` to the ladder runs on this corpus, with `options` of `fit`; the ledger's id and the fit.

    The runs are those of the variant that was swept last. Raises ProjectError without runs, FitError when
    they are too few.
    """
    runs = [r for r in project.all("run", Run) if r.corpus_id == corpus.id]
    ladders = swept(project, corpus)
    wanted = {i for ladder in ladders for member in ladder.members for i in rungs.run_ids(member, corpus)}
    runs = [r for r in runs if (r.id in wanted if ladders else r.role == "ladder")]
    if not runs:
        raise ProjectError(f"{project.folder} has no ladder runs yet", hint="train them: isoflop sweep")
    fitted = _law_of(runs, law=law, seed=seed, **options)
    return project.put("fit", fitted), fitted


def swept(project: Project, corpus: Corpus) -> list[Ladder]:
    """The ladders on this corpus of the variant that was swept last, the latest at the end."""
    ladders = [x for x in project.all("ladder", Ladder) if x.corpus_id == corpus.id]
    return [x for x in ladders if _kind(x) == _kind(ladders[-1])]


def _kind(ladder: Ladder) -> tuple[object, ...]:
    return ladder.members[0].config.model.kind, ladder.changes


def _law_of(runs: Sequence[Run], **options: Any) -> Fit:
    """The law of ladder runs, in an order of their own."""
    ordered = sorted(runs, key=lambda r: (r.params_matmul, r.tokens, r.id))
    return fit(Observations.of_runs(ordered), **{"delta": LADDER_DELTA, **options})


def make_plan(
    project: Project, corpus: Corpus, fitted: Fit, fit_id: str, budget: Budget, *, key: str, seed: int = 0,
    progress: Progress | None = None, place: Place | None = None,
) -> Plan:  # fmt: skip
    """What `budget`, all of it for one run, buys by the fitted law; written to the ledger."""
    progress, place = progress or Silent(), place or here()
    ladders = swept(project, corpus)
    if ladders:
        configs = [m.config for m in ladders[-1].members]
        variant = Variant(family_of(configs[0].model), ladders[-1].changes)
    else:
        configs, variant = [DEFAULT.config(rungs.choose_shapes(corpus.vocab_size, 1e12)[0], 0)], DEFAULT
    speed = rungs.measure(project, corpus, configs, packed=place.cores, progress=progress, place=place)
    return planner.plan(
        project, corpus, fitted, budget, key=key, fit_id=fit_id, seed=seed, speed=speed,
        eval_tokens=configs[0].eval_tokens, variant=variant, progress=progress, place=place,
    )  # fmt: skip


def train_model(
    project: Project,
    corpus: Corpus,
    config: RunConfig,
    *,
    role: str = "train",
    progress: Progress | None = None,
    past: Past | None = None,
    place: Place | None = None,
) -> Run:
    """Train one model and keep it as a Hugging Face folder.

    A run whose model is here is not trained again, nor one that differs in the processes that trained it
    alone; one that was interrupted goes on with the processes that there are now.
    """
    config = present(whole_batches(config))
    job = job_id(config, corpus)
    for kept in project.all("run", Run):
        same = kept.corpus_id == corpus.id and job_id(kept.config, corpus) == job
        if same and kept.model and (project.folder / kept.model).is_dir():
            return kept
    folder = (project.folder / "runs" / job).absolute()
    saved = folder / "model"

    def keep(model: LanguageModel, run: Run) -> None:
        with disk_errors(f"the model {saved}"):
            save_pretrained(model, corpus, saved)

    run = (place or here()).train(config, corpus, folder, role=role, progress=progress, keep=keep, past=past)
    model = project.add_artifact(f"model-{run.id}", lambda to: shutil.copytree(saved, to, dirs_exist_ok=True))
    run = run.model_copy(update={"model": model})
    project.put("run", run, run.id)
    shutil.rmtree(folder, ignore_errors=True)  # its checkpoints and the copy
    return run


def run(
    sources: Sequence[str] = (), *, budget: str | Budget = "5m",
    project: str | Path | Project = "isoflop-project",
    seed: int = 0, ladder_share: float = LADDER_SHARE, within: float = WANTED,
    family: str = OWN.name, objective: str | None = None, changes: Sequence[str] = (),
    corpus_config: CorpusConfig | None = None, ray: str | None = None, track: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:  # fmt: skip
    """All of it: corpus, ladder, law, plan, final run, gain, report. What is done is not done again.

    `budget` covers ladder, final run, their compilation and evaluation; the corpus is cached and timed
    apart. The ladder ends when the final run's loss is known `within` that share, or `ladder_share` of the
    budget is spent. `family` and `objective` are those of `families.find`; `changes` to the recipe are
    those of `variant.Variant`: `["cooldown=0.5", "model.d_ff=x1.5"]`; `track` names trackers
    (`isoflop.trackers`). With `ray`, the address of a Ray cluster or "local", runs are trained there; every
    node must see the project's folder. Raises IsoflopError (see `isoflop.errors`) for what the user can mend.
    """
    progress = progress or Silent()
    whole = Budget.parse(budget) if isinstance(budget, str) else budget
    if not 0 < ladder_share < 1:
        raise BudgetError(f"a ladder share of {ladder_share} is not between 0 and 1", hint="give e.g. 0.33")
    _check_target(whole.share(ladder_share), whole, within)
    variant = Variant.of(find(family, objective), changes)
    check(track)
    home = project if isinstance(project, Project) else Project(project)
    with home.lock(), tracked(track, home, progress) as heard, place_at(ray, heard) as place:
        return _run(
            home, tuple(sources), whole, seed, ladder_share, within, variant, corpus_config, heard, place
        )


def _run(
    project: Project, sources: tuple[str, ...], budget: Budget, seed: int, share: float, within: float,
    variant: Variant, config: CorpusConfig | None, progress: Progress, place: Place,
) -> Result:  # fmt: skip
    start = time.perf_counter()
    config = config or CorpusConfig()
    if config.vocab_size is None and config.tokenizer is None:
        config = config.model_copy(update={"vocab_size": vocab_for(_expected_flops(budget))})
    corpus = corpus_of(project, config.model_copy(update={"sources": sources}), progress=progress)
    key = key_of(corpus, budget, seed, share, within, variant)
    done = project.get("result", key, Result)
    if done is not None and (project.folder / done.model).exists():
        progress.log("this job is done; nothing to do")
        return done
    seconds = {"corpus": time.perf_counter() - start}
    clock = time.perf_counter()
    ladder, runs = sweep(
        project, corpus, budget.share(share), target=budget, within=within, seed=seed, key=key,
        variant=variant, progress=progress, place=place,
    )  # fmt: skip
    seconds["ladder"] = max(time.perf_counter() - clock, ladder.seconds if not runs else 0.0)
    middle = time.perf_counter()
    fit_id, fitted = fit_runs(project, corpus, seed=seed)
    left = _left(budget, seconds["ladder"] + time.perf_counter() - middle, ladder.flops)
    plan = make_plan(
        project, corpus, fitted, fit_id, left, key=key, seed=seed, progress=progress, place=place
    )
    seconds["plan"] = time.perf_counter() - middle
    progress.log(
        f"plan: {plan.params:,} parameters, {plan.tokens:,} tokens, loss {plan.loss.value:.3f} "
        f"[{plan.loss.low:.3f}, {plan.loss.high:.3f}]"
    )
    training = time.perf_counter()
    final = train_model(project, corpus, plan.config, role="final", progress=progress, place=place)
    parts = {
        "compile": final.seconds_compile,
        "train": final.seconds_train,
        "evaluate": final.seconds_eval,
    }
    # Starting processes, checkpoints, keeping the model: as far as it was done in this call.
    parts["save"] = max(0.0, time.perf_counter() - training - sum(parts.values()))
    seconds |= parts
    closing = time.perf_counter()
    result = _score(project, corpus, key, plan, final, ladder, seed)
    seconds["close"] = time.perf_counter() - closing
    seconds["total"] = sum(seconds.values()) - seconds["corpus"]
    result = result.model_copy(update={"seconds": seconds})
    project.put("result", result, key)
    write_report(project, project.folder / REPORT)
    return result


def _expected_flops(budget: Budget) -> float:
    """Training FLOPs that the budget might buy, to choose a vocabulary: half the measured peak of float32."""
    if budget.flops is not None:
        return budget.flops
    return 0.5 * matmul_peak(cores()) * (budget.seconds or 0.0)


def _left(budget: Budget, spent_seconds: float, spent_flops: float) -> Budget:
    """What the ladder left of the budget for the final run."""
    if budget.seconds is not None:
        left = budget.seconds - spent_seconds - CLOSING_SECONDS
        if left <= 0:
            raise BudgetError(f"the ladder used up the whole budget of {budget}", hint="give a larger budget")
        return Budget(seconds=left)
    assert budget.flops is not None
    return Budget(flops=budget.flops - spent_flops)


def _score(
    project: Project, corpus: Corpus, key: str, plan: Plan, final: Run, ladder: Ladder, seed: int
) -> Result:
    """Score the prediction, state the gain, write samples."""
    fitted = project.get("fit", plan.fit_id, Fit)
    if final.model is None or fitted is None:
        raise TrainError(f"run {final.id} left no model", hint="run the same command again")
    parts: dict[str, Gain] = {}
    for name, costs in {
        "own": {"final": final.flops},
        "total": {"final": final.flops, "ladder": ladder.flops},
    }.items():
        parts[name] = gain(
            fitted,
            final.loss,
            sum(costs.values()),
            loss_se=fitted.noise_sd * final.loss,
            costs=costs,
            seed=seed,
        )
        project.put("gain", parts[name], f"{key}-{name}")
    folder = project.folder / final.model
    writes = OBJECTIVES[final.config.model.objective].compresses
    prompts = ["", *opening_lines(corpus)] if writes else []
    return Result(
        loss=final.loss, loss_se=final.loss_se, bpb=final.bpb,
        predicted=plan.loss.value, interval=(plan.loss.low, plan.loss.high),
        within_interval=plan.loss.low <= final.loss <= plan.loss.high,
        params=final.params_matmul, tokens=final.tokens, flops=final.flops,
        flops_total=final.flops + ladder.flops, seconds={},
        doublings=parts["own"].doublings, doublings_total=parts["total"].doublings,
        model=str(folder), report=str(project.folder / REPORT),
        corpus_id=corpus.id, fit_id=plan.fit_id, plan_id=plan.id, run_id=final.id,
        samples=tuple(sample(folder, corpus, prompts, seed=seed)) if writes else (),
    )  # fmt: skip


def opening_lines(corpus: Corpus, count: int = 2, chars: int = 60) -> list[str]:
    """The beginnings of the first held-out documents: prompts that the model has not seen."""
    from itertools import islice

    from isoflop.corpus import heldout_documents

    return [text[:chars] for text in islice(heldout_documents(corpus), count)]
