"""What dense full-precision models cost to serve, by size: the base of inference doublings.

The shapes are the ladder's own, and larger ones of the same recipe where a model is better than the ladder's
sizes explain. A model of random weights has the bytes of a trained one, and takes its time: engines compute
the same products whatever the numbers are. So the weights of ladder runs, which are not kept, are not needed.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from isoflop import flops
from isoflop.engines.speed import EngineSpeed, Rate, measure
from isoflop.errors import ProjectError
from isoflop.gain import DenseCost, ServingCost
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, ModelConfig, Record, digest
from isoflop.served import now
from isoflop.store import Project

KIND, STAGE = "dense", "dense costs"
FORMAT, FLOATS = "gguf", "f32"
MOST_SIZES = 6  # of the ladder's own: the ends, and as many between
STEP = 1.6  # at least, from one larger size to the next
MOST_BYTES = 4e9  # of a model's weights: beyond, its costs are extrapolated
RANGE_OF_FIVE = 2.326  # mean range of five standard normals (Tippett 1925): a speed's repetitions


class Dense(Record):
    """One size, exported and timed."""

    id: str
    config: ModelConfig
    params: int  # N
    corpus_id: str  # whose tokenizer is in the file
    format: str
    machine: str
    speed: EngineSpeed
    measured_at: str  # UTC, ISO 8601

    @property
    def cost(self) -> DenseCost:
        return DenseCost(params=self.params, quiet=self.speed.quiet, **dict(cost_of(self.speed)))


def cost_of(speed: EngineSpeed) -> ServingCost:
    """What an engine's measurement says of bytes and seconds a token."""
    rate = speed.decode
    return ServingCost(bytes=speed.disk_bytes, seconds=1 / rate.median, spread=spread(rate))


def spread(rate: Rate) -> float:
    """Relative sd of one repetition, by the range of all."""
    return math.log(rate.high / rate.low) / RANGE_OF_FIVE


def dense_costs(
    project: Project, corpus: Corpus, params: float, *, to: str = FORMAT, threads: int = 1,
    again: bool = False, progress: Progress | None = None,
) -> list[Dense]:  # fmt: skip
    """The dense models' costs in the engine of format `to`, up to a size of `params` (N) where that fits.

    Those in the ledger are not measured again, unless `again` says so. Raises ProjectError without a ladder,
    for one of another architecture than our decoder, or an engine that is not installed.
    """
    from isoflop.throughput import machine

    progress, here = progress or Silent(), machine()
    shapes = {
        digest([config.model_dump(mode="json"), corpus.id, to, threads, here]): config
        for config in sizes(project, corpus, params)
    }
    known = {} if again else {id: found for id in shapes if (found := project.get(KIND, id, Dense))}
    missing = [id for id in shapes if id not in known]
    if missing:
        progress.start(STAGE, len(missing), "sizes")
    for number, id in enumerate(missing):
        size = flops.params_matmul(shapes[id])
        known[id] = Dense(
            id=id, config=shapes[id], params=size, corpus_id=corpus.id, format=to, machine=here,
            speed=_timed(shapes[id], corpus, to, threads), measured_at=now(),
        )  # fmt: skip
        project.put(KIND, known[id])
        progress.update(STAGE, number + 1, f"N = {size:,}")
    if missing:
        progress.finish(STAGE)
    return [known[id] for id in shapes]


def sizes(project: Project, corpus: Corpus, params: float) -> list[ModelConfig]:
    """The ladder's shapes, and larger ones until one has `params` (N) or more; smallest first."""
    from isoflop.families import family_of, shapes
    from isoflop.pipeline import swept
    from isoflop.variant import Variant

    ladders = swept(project, corpus)
    if not ladders:
        raise ProjectError(
            f"{project.folder} has no ladder, whose sizes are what a model's cost is compared with",
            hint="train it: isoflop sweep",
        )
    known = {flops.params_matmul(m.config.model): m.config.model for x in ladders for m in x.members}
    ordered = [known[n] for n in sorted(known)]
    apart = (len(ordered) - 1) / (MOST_SIZES - 1)
    chosen = ordered if apart <= 1 else [ordered[round(i * apart)] for i in range(MOST_SIZES)]
    variant, largest = Variant(family_of(chosen[0]), ladders[-1].changes), max(known)
    wanted = min(max(params, STEP * largest if len(chosen) == 1 else 0.0), MOST_BYTES / flops.BYTES_FLOAT32)
    if wanted > largest:
        beyond = shapes(corpus.vocab_size, largest=int(4 * wanted), family=variant, context=chosen[0].context)
        for shape in beyond:
            if largest < wanted and flops.params_matmul(shape) >= min(STEP * largest, wanted):
                chosen, largest = [*chosen, shape], flops.params_matmul(shape)
    return chosen


def _timed(config: ModelConfig, corpus: Corpus, to: str, threads: int) -> EngineSpeed:
    """A model of that shape in its engine. Raises ProjectError for what has no such export."""
    import torch

    from isoflop.export.gated import FORMATS
    from isoflop.families import family_of
    from isoflop.gpt import GPT

    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        model = family_of(config).build(config, 0)
        if not isinstance(model, GPT) or config.objective != "causal":
            raise ProjectError(
                f"the ladder's models are of the family {config.family}, and only our causal decoder can be "
                "exported and timed",
                hint="sweep it: isoflop sweep, without --family and --objective",
            )
        return measure(FORMATS[to].write(model, corpus, Path(folder), FLOATS, "", 0), threads=threads)
