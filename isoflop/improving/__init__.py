"""A smaller and faster model within the user's limits: chains of transforms, searched within a budget.

    engines: the input in each representation, shortly measured -> shapes: what pruning costs unhealed
    -> search: what could be on the front is healed, exported and measured -> front, recommendation

What is cheap to know comes first, and measured evidence decides: nothing is recommended but what was measured
in its engine on this machine. The input is always among it. It can be killed at any moment; the same call
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isoflop import flops
from isoflop.budget import Budget
from isoflop.errors import CorpusError, TrainError
from isoflop.export.gated import exportable
from isoflop.gpt import GPT
from isoflop.improving.answer import answered, check_reachable, raise_unmet
from isoflop.improving.building import Builder, Healing
from isoflop.improving.engines import Engines, check_bytes
from isoflop.improving.estimates import Known, floors
from isoflop.improving.records import Candidate, Cut, Improvement, Limits
from isoflop.improving.search import Search
from isoflop.improving.space import SHARES, Form, cuts, representations, shapes, whole
from isoflop.improving.state import KIND, STAGE, State
from isoflop.interrupt import heeded
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, ModelConfig
from isoflop.store import Project
from isoflop.transforms import EVAL_TOKENS, MODEL, source_of, transform_id
from isoflop.transforms.shapes import smaller
from isoflop.tuning.search import require_optuna

HEAL_SHARE, HEALED = 0.6, 4  # of the budget goes to healing, of about so many shapes


def improve(
    project: Project, corpus: Corpus, folder: Path, limits: Limits, budget: Budget, *,
    formats: Sequence[str] = (), heal_tokens: int | None = None, eval_tokens: int = EVAL_TOKENS,
    shares: Sequence[float] = SHARES, seed: int = 0, progress: Progress | None = None,
) -> Improvement:  # fmt: skip
    """Search for the best model within `limits` that `budget` finds; the answer is also in the ledger.

    `formats` of `export.gated.FORMATS` (none: all for CPUs whose engine is installed); `shares` of the
    parameters that pruned shapes keep, and `heal_tokens` for each of them (None: by the budget; 0: nothing is
    pruned). The recommended model has the least bytes x seconds a token within the limits; it is the input
    where nothing better was found.

    Raises TrainError for limits that mean nothing, or that nothing meets, with the nearest; ProjectError
    without Optuna's extra or an engine; CorruptError for a damaged folder; CorpusError for text that is too
    short to calibrate on; Interrupted, saved, at Ctrl-C.
    """
    progress = progress or Silent()
    require_optuna()
    model, forms = exportable(folder, corpus), representations(formats)
    _check(limits, corpus, model, heal_tokens, shares)
    source = source_of(project, MODEL, folder)
    options = {
        "limits": limits.model_dump(), "budget": budget.model_dump(), "forms": forms,
        "heal_tokens": heal_tokens, "eval_tokens": eval_tokens, "shares": list(shares), "seed": seed,
    }  # fmt: skip
    id = transform_id(KIND, corpus, [source], options)
    record = project.get(KIND, id, Improvement)
    if record is not None and record.sentence:
        progress.log("this search is done; nothing to do")
        raise_unmet(record)
        return record
    shares = () if heal_tokens == 0 else shares
    check_bytes(limits, forms, _smallest(model.config, shares))
    if record is None:
        record = Improvement(
            id=id, corpus_id=corpus.id, source=source, limits=limits, budget=budget,
            heal_tokens=heal_tokens, eval_tokens=eval_tokens, seed=seed,
        )  # fmt: skip
    builder = Builder(project, corpus, folder, eval_tokens, seed, progress)
    with heeded(progress) as pressed:
        record = record.model_copy(update={"refused": (), "skipped": {}})  # they are found again
        state = State(builder, record, Known(model.config), pressed)
        progress.start(STAGE, state.amount, "s" if budget.flops is None else "FLOPs")
        _search(state, model, Engines(state, forms, formats).run(), shares)
        progress.finish(STAGE, f"{len(state.record.trials)} models measured")
    state.change(**answered(state.record))
    raise_unmet(state.record)
    return state.record


def _search(state: State, model: GPT, forms: Sequence[Form], shares: Sequence[float]) -> None:
    """Everything after the engines are known."""
    candidates, healing = [whole(form) for form in forms], None
    if shares and state.left > 0:
        with state.part("shapes"):
            builder = state.builder
            found, spent = cuts(
                builder.project, builder.corpus, model, state.record.source, builder.progress, shares
            )
            healing = Healing.measured(builder, model.config)
        state.computed("shapes", spent)
        candidates += _pruned(state, found, healing, forms)
    check_reachable(state, candidates)
    Search(state, candidates, healing).run()


def _pruned(state: State, found: Sequence[Cut], healing: Healing, forms: Sequence[Form]) -> list[Candidate]:
    """The candidates of these shapes, healed as long as the budget lets; none where it buys nothing."""
    model, record = state.known.model, state.record
    if record.heal_tokens is None and found:
        middle = smaller(model, **found[len(found) // 2].sizes)
        amount = HEAL_SHARE * state.left / HEALED * (healing.rate if record.budget.flops is None else 1.0)
        state.change(heal_tokens=healing.tokens_for(middle, amount))
    if not state.record.heal_tokens or not found:
        state.builder.progress.log("nothing is pruned: what is left of the budget heals no shape")
        return []
    tokens = state.record.heal_tokens
    state.builder.progress.log(f"each pruned shape is healed with {tokens:,} tokens")
    builder = state.builder
    state.known.floors = floors(builder.project, builder.corpus, builder.folder, model, found, tokens)
    candidates = state.known.add_cuts(found, forms)
    state.known.healed = dict(record.healed)
    return candidates


def _check(
    limits: Limits, corpus: Corpus, model: GPT, heal_tokens: int | None, shares: Sequence[float]
) -> None:
    """Raises TrainError or CorpusError for what cannot be, before anything is computed."""
    limits.check()
    if heal_tokens is not None and heal_tokens < 0:
        raise TrainError(f"--heal-tokens is {heal_tokens}", hint="give e.g. 1M, or 0 to prune nothing")
    if odd := [share for share in shares if not 0 < share < 1]:
        raise TrainError(f"a share of {odd[0]:g} prunes to no shape", hint="give shares between 0 and 1")
    if corpus.train_tokens <= model.config.context:
        raise CorpusError(
            f"corpus {corpus.id} has {corpus.train_tokens} training tokens, too few to calibrate a model "
            f"that reads {model.config.context} at once",
            hint="build the project's corpus of more text",
        )


def _smallest(model: ModelConfig, shares: Sequence[float]) -> ModelConfig:
    """Of the shapes that are searched, the input's own among them."""
    found = [model, *(shape for group in shapes(model, shares) for shape in group)]
    return min(found, key=flops.params_total)
