"""Models that are never built: losses, bytes and seconds by formulas, in the place of a search's builder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from isoflop import flops
from isoflop.budget import Budget
from isoflop.engines.speed import EngineSpeed, Rate
from isoflop.errors import ProjectError
from isoflop.improving.building import Built, Healing
from isoflop.improving.engines import Engines
from isoflop.improving.estimates import Known
from isoflop.improving.records import Candidate, Cut, Improvement, Limits, Probe, Step
from isoflop.improving.search import Search
from isoflop.improving.space import Form, whole
from isoflop.improving.state import KIND, State
from isoflop.progress import Progress, Silent
from isoflop.recipe import recipe, shape
from isoflop.records import ModelConfig, digest
from isoflop.served import Served
from isoflop.store import Project
from isoflop.transforms import MODEL, TEACHER, Scores, Source, Transform
from isoflop.transforms.shapes import sizes_of, smaller

BASE = shape(128, 512, n_layers=4, context=64)
FORMS: list[Form] = [
    ("gguf", "f32"), ("onnx", "f32"), ("gguf", "q8_0"), ("gguf", "q6_k"), ("gguf", "q5_0"),
    ("gguf", "q4_0"), ("onnx", "int8"), ("onnx", "int4"),
]  # fmt: skip
BITS = {"f32": 32, "q8_0": 8.5, "q6_k": 6.6, "q5_0": 5.5, "q4_0": 4.5, "int8": 9.0, "int4": 5.0}
RISE = {"f32": 0.0, "q8_0": 0.0002, "q6_k": 0.002, "q5_0": 0.01, "q4_0": 0.03, "int8": 0.0004, "int4": 0.05}
SLOWER = {"gguf": 1.0, "onnx": 2.5}
LOSS, WINDOWS = 2.0, (0.1, -0.1, 0.05, -0.05)
KEPT = (96, 64, 32)  # widths to prune to
CUTS = [Cut(sizes=sizes_of(smaller(BASE, d_model=width)), rise=(BASE.d_model / width - 1)) for width in KEPT]
EVAL_TOKENS, HEAL_TOKENS = 1024, 10_000


def params(candidate: Candidate) -> float:
    return float(flops.params_total(smaller(BASE, **candidate.shape)))


def loss_of(candidate: Candidate, kind: str) -> float:
    """Healing takes back nearly all: a narrower model is worse by 0.02 nats a quarter of its width."""
    cut = 1 - candidate.shape.get("d_model", BASE.d_model) / BASE.d_model
    return LOSS + 0.08 * cut**2 + RISE[kind]


@dataclass
class Pretended:
    """In the place of a `building.Builder`; `disturbed` is called before each piece of work."""

    project: Project
    missing: tuple[str, ...] = ()  # formats whose engine is not installed
    disturbed: Callable[[str, Candidate], None] = lambda what, candidate: None
    eval_tokens: int = EVAL_TOKENS
    progress: Progress = field(default_factory=Silent)
    done: list[tuple[str, str]] = field(default_factory=list)  # what was built: the piece, the candidate

    def _do(self, what: str, candidate: Candidate) -> None:
        self.disturbed(what, candidate)
        self.done.append((what, candidate.name))

    def shaped(self, candidate: Candidate, heal_tokens: int) -> list[Transform]:
        if not candidate.shape:
            return []
        id = digest([candidate.shape, heal_tokens])
        if (known := self.project.get("transform", id, Transform)) is not None:
            return [known]
        self._do("heal", candidate)
        made = Transform(
            id=id, kind="distill", corpus_id="c", options={}, seconds=1.0, eval_tokens=1, model=f"m-{id}",
            sources=tuple(Source(role=r, hash="h", path="p", scores=scores(LOSS)) for r in (TEACHER, MODEL)),
            flops={"training": 6 * params(candidate) * heal_tokens}, after=scores(loss_of(candidate, "f32")),
        )  # fmt: skip
        self.project.put("transform", made)
        return [made]

    def exported(self, candidate: Candidate, chain: list[Transform], room: float) -> Built:
        if candidate.format in self.missing:
            raise ProjectError("it is not installed", hint="pip install it")
        self._do("export", candidate)
        step = Step(kind="export", id=candidate.name, path=candidate.name, words=candidate.form)
        return Built(Path(candidate.name), (step,), self.bytes(candidate))

    def bytes(self, candidate: Candidate) -> int:
        return 10_000 + round(params(candidate) * BITS[candidate.kind] / 8)

    def seconds(self, candidate: Candidate) -> float:
        return SLOWER[candidate.format] * (2e-5 + params(candidate) * BITS[candidate.kind] / 8 / 1e10)

    def candidate(self, built: Built) -> Candidate:
        return next(c for c in everything(FORMS) if c.name == built.path.name)

    def probed(self, built: Built, most_threads: int | None = None) -> Probe:
        candidate = self.candidate(built)
        self._do("probe", candidate)
        loss, seconds = loss_of(candidate, candidate.kind), self.seconds(candidate)
        return Probe(
            hash=built.path.name, engine=candidate.format, seconds={1: seconds, 2: 1.2 * seconds},
            windows=tuple(loss + w for w in WINDOWS), cost=1.0,
        )  # fmt: skip

    def served(self, built: Built, threads: int) -> Served:
        candidate = self.candidate(built)
        self._do("serve", candidate)
        loss, rate = loss_of(candidate, candidate.kind), 1 / self.seconds(candidate)
        speed = EngineSpeed(
            engine=candidate.format, threads=threads, prompt_tokens=1, written_tokens=1,
            prefill=Rate(median=1, low=1, high=1), decode=Rate(median=rate, low=rate, high=rate),
            first_token_seconds=1, load_seconds=1, memory_bytes=1, disk_bytes=self.bytes(candidate),
            weight_bytes=1, bandwidth=1, bandwidth_share=1, load_before=0, load_after=0,
        )  # fmt: skip
        return Served(
            id=built.path.name, path=built.path.name, hash="h", kind=candidate.kind, corpus_id="c",
            eval_tokens=EVAL_TOKENS, machine="m", loss=loss, loss_se=0.01, bpb=None, bpb_se=None,
            windows=tuple(loss + w for w in WINDOWS), speed=speed, measured_at="now",
        )  # fmt: skip


def scores(loss: float) -> Scores:
    return Scores(loss=loss, loss_se=0.01, bpb=None, bpb_se=None, params_total=1, params_matmul=1)


def everything(forms: list[Form]) -> list[Candidate]:
    pruned = [Candidate(shape=cut.sizes, format=name, kind=kind) for cut in CUTS for name, kind in forms]
    return [*map(whole, forms), *pruned]


def state_of(
    builder: Pretended, limits: Limits, budget: Budget | None = None,
    pressed: Callable[[], bool] = lambda: False,
) -> State:  # fmt: skip
    """A search that begins, or goes on where the ledger has it."""
    record = builder.project.get(KIND, "search", Improvement) or Improvement(
        id="search", corpus_id="c", source=Source(role=MODEL, hash="h", path="p"), limits=limits,
        budget=budget or Budget(flops=1e15), heal_tokens=HEAL_TOKENS, eval_tokens=EVAL_TOKENS, seed=0,
    )  # fmt: skip
    record = record.model_copy(update={"refused": (), "skipped": {}})
    return State(builder, record, Known(BASE), pressed)  # type: ignore[arg-type]


def searched(state: State) -> State:
    """The whole search."""
    forms = Engines(state, FORMS, ()).run()
    candidates = [*map(whole, forms), *state.known.add_cuts(CUTS, forms)]
    state.known.healed = dict(state.record.healed)
    Search(state, candidates, healing(BASE)).run()
    return state


def healing(model: ModelConfig) -> Healing:
    config = recipe(model, HEAL_TOKENS, batch_tokens=256)
    return Healing(model, config, 1e9, EVAL_TOKENS)


def worth(known: Improvement) -> float:
    """Bytes x seconds of the recommended model."""
    assert known.best is not None
    figures = known.trials[known.best].figures
    return math.nan if figures is None else figures.bytes * figures.seconds
