"""What is searched: shapes to prune to, times representations that an engine here opens."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.errors import ProjectError, TrainError
from isoflop.export.gated import FORMATS
from isoflop.export.gguf import FLOATS
from isoflop.gpt import GPT
from isoflop.improving.records import Candidate, Cut, Cuts
from isoflop.progress import Progress
from isoflop.records import Corpus, ModelConfig, digest
from isoflop.store import Project
from isoflop.transforms import Source
from isoflop.transforms.importance import measure, pass_flops
from isoflop.transforms.prune import prune
from isoflop.transforms.pruning import SEARCH_TOKENS, calibration_loss
from isoflop.transforms.quantize import MIXED
from isoflop.transforms.shapes import candidates, sizes_of

SHARES = (0.75, 0.5, 0.35, 0.25)  # of the stored parameters
TRIED, KEPT = 6, 2  # shapes of each share whose loss is measured before healing, and the best of them
LOSS_TOKENS = 4096  # of training text, for that
STAGE = "shapes"

Form = tuple[str, str]  # format, kind
EXACT = FLOATS[0]


def representations(formats: Sequence[str]) -> list[Form]:
    """(format, kind) of all that `export` and `quantize` write, or of these formats; float32 of each first.

    What is for GPUs is left out unless asked for: it costs a search on a CPU and can win nothing there.
    Raises ProjectError for a format that there is not, or when none that is asked for has float32.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ProjectError(f"there is no format {unknown[0]!r}", hint=f"name one of {', '.join(FORMATS)}")
    names = formats or [name for name, known in FORMATS.items() if not known.for_gpus]
    found = [(name, kind) for name in names for kind in FORMATS[name].kinds]
    if all(kind != EXACT for _, kind in found):
        raise ProjectError(
            f"{' and '.join(names)} cannot hold {EXACT}, which a search begins with",
            hint="name another engine as well: --engine hf",
        )
    found += [("gguf", MIXED)] if ("gguf", EXACT) in found else []
    return sorted(found, key=lambda pair: pair[1] != EXACT)  # stable


def whole(form: Form) -> Candidate:
    """The input as it is, in a representation."""
    return Candidate(format=form[0], kind=form[1])


def shapes(model: ModelConfig, shares: Sequence[float] = SHARES) -> list[list[ModelConfig]]:
    """For each share the most even shapes that have it, TRIED at most; nothing for one that none has."""
    found: list[list[ModelConfig]] = []
    for share in shares:
        try:
            found.append(candidates(model, share, {})[:TRIED])
        except TrainError:
            continue
    return found


def cuts(
    project: Project, corpus: Corpus, model: GPT, source: Source, progress: Progress,
    shares: Sequence[float] = SHARES,
) -> tuple[list[Cut], float]:  # fmt: skip
    """The shapes to search, with the loss that each has before it is healed; and the FLOPs of that.

    Of each share KEPT with the lowest loss: it may not be the lowest after healing, but nothing cheaper
    tells. What the ledger has is not computed again.
    """
    groups = shapes(model.config, shares)
    key = digest([source.hash, corpus.id, [[sizes_of(s) for s in group] for group in groups], LOSS_TOKENS])
    known = project.get("cuts", key, Cuts)
    if known is not None:
        return list(known.cuts), 0.0
    importance = measure(
        model, corpus, by="activation", depth="influence", tokens=SEARCH_TOKENS, progress=progress
    )
    spent, kept, done = importance.flops, list[Cut](), 0
    before = calibration_loss(model, corpus, LOSS_TOKENS)
    progress.start(STAGE, sum(map(len, groups)), "shapes")
    for group in groups:
        found = []
        for shape in group:
            rise = calibration_loss(prune(model, importance, shape), corpus, LOSS_TOKENS) - before
            found.append(Cut(sizes=sizes_of(shape), rise=rise))
            spent += pass_flops(shape, LOSS_TOKENS, backward=False)
            done += 1
            progress.update(STAGE, done)
        kept += sorted(found, key=lambda cut: cut.rise)[:KEPT]
    progress.finish(STAGE, f"{len(kept)} of {done} shapes are searched")
    project.put("cuts", Cuts(cuts=tuple(kept)), key)
    return kept, spent
