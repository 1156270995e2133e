"""The configuration of a run that `train` is asked for: of a plan, of a shape, or going on from a model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection
from pathlib import Path

from isoflop import corpus as texts
from isoflop import plan as planner
from isoflop.continued import Past
from isoflop.corpus import load_corpus
from isoflop.errors import CorpusError, IsoflopError, ProjectError, TrainError
from isoflop.export import load_pretrained
from isoflop.families import Family, family_of
from isoflop.pipeline import corpus_of
from isoflop.places import Place, here
from isoflop.progress import Progress, Silent
from isoflop.recipe import recipe
from isoflop.records import Corpus, Plan, RunConfig
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.using import check_vocabulary
from isoflop.variant import DEFAULT, Variant

# Of the rates from scratch. Ibrahim et al., arXiv 2403.08763, section 6.1, warm up to half of, all of and
# twice the rate of pre-training: more of it learns the new text better and forgets more of the old.
RATE_SHARE = 0.5
LONGEST_CONTEXT = 2048  # of a model that could read further
REPLAY_SHARE = 0.1
FISHER_TOKENS = 65_536


def chosen_config(
    project: Project, corpus: Corpus, *, width: int | None, layers: int | None, tokens: int | None,
    lr_scale: float, seed: int | None, variant: Variant = DEFAULT,
    named: Collection[str] = ("family", "objective"), timed: bool = True, progress: Progress | None = None,
    place: Place | None = None,
) -> RunConfig:  # fmt: skip
    """The latest plan's configuration, or the recipe's for a given width and number of tokens.

    Without a seed it is the plan's, or 0. A plan must be of the variant's family and objective, as far as
    those were `named`. A given shape is compiled where its run then ends sooner, which is found by measuring;
    a run that is not `timed` is not compiled.

    Raises ProjectError when there is neither a plan nor a width and tokens, or the plan is of another family;
    TrainError for a number that cannot be.
    """
    if layers is not None and (layers < 1 or width is None):
        raise TrainError(f"--layers {layers} is no shape", hint="give one layer or more, and a --width")
    if width is None:
        latest = project.latest("plan", Plan)
        if latest is None or latest.corpus_id != corpus.id:
            raise ProjectError(
                f"{project.folder} has no plan for its corpus",
                hint="make one (isoflop plan), or give --width and --tokens",
            )
        config = latest.config
        _check_planned(family_of(config.model), variant.family, named)
        if tokens is not None and tokens <= 0:
            raise TrainError(f"--tokens is {tokens}", hint="give a number above zero, or leave it out")
        given = {"tokens": tokens, "seed": seed}
        config = config.model_copy(update={name: n for name, n in given.items() if n is not None})
        if variant.changes:
            config = (place or here()).whole(variant.applied(config))
    elif tokens is None or tokens <= 0 or width <= 0:
        raise ProjectError(
            "a shape needs --width and --tokens above zero", hint="e.g. --width 96 --tokens 2000000"
        )
    else:
        place = place or here()
        model = variant.shape(width, corpus.vocab_size, n_layers=layers)
        config = place.whole(variant.config(model, tokens, seed=seed or 0))
        if timed:
            config = planner.compiled_if_it_pays(project, corpus, config, progress or Silent(), place)
    return _scaled(config, lr_scale)


def _check_planned(planned: Family, wanted: Family, named: Collection[str]) -> None:
    """Raises ProjectError when a plan's family or objective, whichever was named, is not the one wanted."""
    kinds = {
        "family": ((planned.name, planned.template), (wanted.name, wanted.template)),
        "objective": ((planned.objective,), (wanted.objective,)),
    }
    for what in named:
        had, asked = kinds[what]
        if had != asked:
            raise ProjectError(
                f"the latest plan is of the {what} {had[0]}, not {asked[0]}",
                hint=f"give --width and --tokens, or sweep first: isoflop sweep --{what} {asked[0]}",
            )


def continuation(
    project: Project, corpus: Corpus, folder: Path, *, tokens: int | None, lr_scale: float = 1.0,
    seed: int = 0, old: Path | None = None, replay_share: float = 0.0, ewc: float = 0.0,
    ewc_tokens: int = FISHER_TOKENS, variant: Variant = DEFAULT, place: Place | None = None,
) -> tuple[RunConfig, Past]:  # fmt: skip
    """The configuration of `tokens` tokens of training from `folder` on, and where its parts are.

    Of the `variant` its changes count, and the model has a family of its own. The run has a machine of the
    `place` to itself.
    The folder is kept among the project's artifacts, so that the run can go on without the original. `old` is
    a project or a corpus folder, of text that the model has learned before.

    Raises TrainError for settings that mean nothing, ProjectError, CorruptError or CorpusError when model,
    old corpus or their tokenizers do not fit.
    """
    _check(tokens, old, replay_share, ewc, ewc_tokens)
    model = load_pretrained(folder)
    check_vocabulary(model, folder, corpus)
    before = None if old is None else corpus_at(old, corpus, "old")
    shape = model.config.model_copy(update={"context": min(model.config.context, LONGEST_CONTEXT)})
    kept = _kept(project, folder)
    config = recipe(
        shape, tokens or 0, seed=seed, initial=kept.name.rpartition("-")[2],
        old="" if before is None else before.id, replay_share=replay_share, ewc=ewc,
        ewc_tokens=ewc_tokens if ewc else 0,
    )  # fmt: skip
    past = Past(kept, None if before is None else before.folder.absolute())
    config = variant.applied(_scaled(config, RATE_SHARE * lr_scale))
    return (place or here()).whole(config), past


def _scaled(config: RunConfig, factor: float) -> RunConfig:
    """With every learning rate times `factor`. Raises TrainError for one that is no number above zero."""
    check_scale(factor)
    rates = ("lr_matrix", "lr_embed", "lr_head", "lr_vector")
    return config.model_copy(update={name: getattr(config, name) * factor for name in rates})


def check_scale(factor: float) -> None:
    """Raises TrainError for a multiple of learning rates that is no number above zero."""
    if not 0 < factor < math.inf:
        raise TrainError(f"learning rates times {factor:g} train nothing", hint="give e.g. --lr-scale 0.5")


def corpus_at(place: Path, corpus: Corpus, what: str) -> Corpus:
    """The corpus of a project, or in a corpus folder; `what` it is: "old".

    Raises CorpusError when there is none, or its tokenizer is not that of `corpus`.
    """
    if (place / "corpus.json").exists():
        found = load_corpus(place, verify=True)
    else:
        try:
            found = corpus_of(Project(place, create=False))
        except IsoflopError as error:
            raise CorpusError(
                f"there is no {what} corpus in {place}: {error.message}",
                hint="name a project folder, or a folder with corpus.json",
            ) from None
    if texts.tokenizer(found).to_str() != texts.tokenizer(corpus).to_str():
        raise CorpusError(
            f"the tokenizer of the {what} corpus {found.id} is not the tokenizer of corpus {corpus.id}",
            hint=f"build one of them with --tokenizer {corpus.folder / 'tokenizer.json'}",
        )
    return found


def _check(tokens: int | None, old: Path | None, replay_share: float, ewc: float, ewc_tokens: int) -> None:
    if tokens is None or tokens <= 0:
        raise TrainError("going on from a model needs --tokens above zero", hint="e.g. --tokens 2000000")
    if not 0 <= replay_share < 1:
        raise TrainError(f"a replay share of {replay_share} is not from 0 to below 1", hint="give e.g. 0.1")
    if ewc < 0 or ewc_tokens <= 0:
        raise TrainError("elastic weight consolidation cannot be negative", hint="give e.g. --ewc 1")
    if old is None and (replay_share or ewc):
        raise TrainError(
            "replay and elastic weight consolidation need the text that was learned before",
            hint="name its project: --old PROJECT, or --replay PROJECT",
        )


def _kept(project: Project, folder: Path) -> Path:
    """The folder among the project's artifacts."""
    artifacts = (project.folder / "artifacts").absolute()
    if folder.absolute().parent == artifacts:
        project.verify_artifact(f"artifacts/{folder.absolute().name}")
        return folder.absolute()
    name = f"initial-{content_hash(folder)[:HASH_DIGITS]}"
    if not (artifacts / name).exists():
        project.add_artifact("initial", lambda to: shutil.copytree(folder, to, dirs_exist_ok=True))
    return artifacts / name
