"""Artifacts measured on paper: what tests of verdicts, of their pictures and of the report share."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import isoflop.dense
import isoflop.served
from isoflop.dense import Dense
from isoflop.engines.speed import EngineSpeed, Rate
from isoflop.gain import DenseCost
from isoflop.laws import Fit
from isoflop.lineage import Costs, Made
from isoflop.records import ModelConfig, Result, Run
from isoflop.served import Served
from isoflop.store import Project
from isoflop.verdict import Case, Verdict, weigh

WINDOWS = 64


def speed(bytes: float, ms: float, *, load: float = 0.1, spread: float = 0.01) -> EngineSpeed:
    rate = 1000 / ms
    decode = Rate(median=rate, low=rate * (1 - spread), high=rate * (1 + spread))
    return EngineSpeed(
        engine="llama.cpp", threads=1, prompt_tokens=256, written_tokens=128, prefill=decode, decode=decode,
        first_token_seconds=0.01, load_seconds=0.2, memory_bytes=int(3 * bytes), disk_bytes=int(bytes),
        weight_bytes=int(bytes), bandwidth=1e10, bandwidth_share=0.5, load_before=load,
        load_after=load, others=load,
    )  # fmt: skip


def served(name: str, loss: float, bytes: float, ms: float, **timing: float) -> Served:
    """Windows that differ by what all models find hard, so that they pair."""
    hard = np.random.default_rng(0).normal(0.0, 0.3, WINDOWS)
    own = np.random.default_rng(len(name)).normal(0.0, 0.002, WINDOWS)
    own += hard - (own + hard).mean()
    return Served(
        id=name, path=f"artifacts/{name}", hash=name, kind="f32", corpus_id="corpus-1", eval_tokens=32_768,
        machine="here", loss=loss, loss_se=0.3 / WINDOWS**0.5, bpb=loss / 2, bpb_se=0.02,
        windows=tuple(loss + own), speed=speed(bytes, ms, **timing), measured_at="2026-11-26T12:00:00+00:00",
    )  # fmt: skip


def case(
    step: str, loss: float, bytes: float, ms: float, made_from: str | None = None, *, flops: float = 1e13,
    **timing: float,
) -> Case:  # fmt: skip
    measured = served(step, loss, bytes, ms, **timing)
    made = Made(measured.path, step, {"training": flops}, 10.0, made_from)
    return Case(made, Costs({step: flops}, 10.0, True), measured, cost_like(measured))


def cost_like(measured: Served) -> DenseCost:
    return DenseCost(bytes=measured.bytes, seconds=measured.seconds.value, params=1.0)


def dense_records() -> list[Dense]:
    """Sizes about those of `test_plots.SIZES`."""
    shape = ModelConfig(
        vocab_size=1024, d_model=96, n_layers=4, n_heads=3, n_kv_heads=1, head_dim=32, d_ff=256
    )
    return [
        Dense(
            id=f"dense-{n}", config=shape, params=n, corpus_id="corpus-1", format="gguf", machine="here",
            speed=speed(1e5 + 4 * n, 1e-3 * n**0.5), measured_at="2026-11-26T12:00:00+00:00",
        )
        for n in (100_000, 200_000, 400_000, 800_000)
    ]  # fmt: skip


def verdict_records(law: Fit) -> list[Verdict]:
    """A chain: trained, pruned (refused alone), healed, rounded; and a mask that is refused."""
    costs = [d.cost for d in dense_records()]
    loss = float(law.optimum(float(np.median(law.observations.compute()))).loss.value)
    final = case("final", loss, 2.1e6, 0.7)
    pruned = case("prune", 1.30 * loss, 1.2e6, 0.5, final.made.path, flops=1e10)
    healed = case("distill", 1.01 * loss, 1.2e6, 0.5, pruned.made.path)
    rounded = case("gguf q8_0", 1.011 * loss, 0.45e6, 0.25, healed.made.path, flops=0.0, load=4.0)
    masked = case("mask", 1.1 * loss, 1.6e6, 0.7, final.made.path, flops=0.0)
    chain = [(final, None), (pruned, final), (healed, final), (rounded, healed), (masked, final)]
    return [weigh(law, now, before, costs, to="gguf", level=0.9) for now, before in chain]


def as_finished(project: tuple[Path, Result], folder: Path) -> Project:
    """A copy of the shared project without what other tests have made in it."""
    result = project[1]

    def aside(place: str, names: list[str]) -> list[str]:
        return [n for n in names if Path(place).name == "artifacts" and n != Path(result.model).name]

    shutil.copytree(project[0], folder, ignore=aside)
    made, job = Project(folder), result.plan_id
    kept = {("corpus", result.corpus_id), ("fit", result.fit_id), ("ladder", job), ("result", job)}
    for row in list(made.ledger.rows(None)):
        of_job = row.kind == "run" and Run.from_json(row.body).role in ("ladder", "final")
        if not of_job and (row.kind, row.id) not in kept:
            made.delete(row.kind, row.id)
    return made


def by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds follow from bytes, and nothing is timed."""

    def measure(path: Path, *, threads: int = 1) -> EngineSpeed:
        size = path.stat().st_size
        return speed(size, 1e-6 * size).model_copy(update={"threads": threads})

    for module in (isoflop.served, isoflop.dense):
        monkeypatch.setattr(module, "measure", measure)
