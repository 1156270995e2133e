"""Files of assumptions that tests change, and a project that is only a ledger."""

from __future__ import annotations

import re
from pathlib import Path

from isoflop.laws import Fit
from isoflop.limits.assumptions import LIMITS, PACKAGED
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Interval, Plan, Run
from isoflop.store import Project


def changed(path: Path, *edits: tuple[str, str]) -> Path:
    """The packaged file with (pattern, replacement) edits, each of which must hit."""
    text = PACKAGED.read_text()
    for pattern, replacement in edits:
        text, hits = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert hits, pattern
    path.write_text(text)
    return path


def known(section: str, name: str, value: float) -> tuple[str, str]:
    """An edit that makes a quantity a known number."""
    return rf"(\[{section}\.{name}\]\n)low = .*\nhigh = .*\n", rf"\g<1>low = {value:g}\nhigh = {value:g}\n"


def only(*names: str) -> list[tuple[str, str]]:
    """Edits that leave every limit out but these."""
    return [applying(name, float(name in names)) for name in LIMITS]


def applying(name: str, share: float) -> tuple[str, str]:
    """An edit after which a limit holds in that share of the draws."""
    return rf"(^\[{name}\]\napplies = )[0-9.]+", rf"\g<1>{share}"


CONFIG = recipe(shape(32, 512, n_layers=2, context=64), 1_000_000)


def run(role: str, flops: float, tokens_per_second: float) -> Run:
    """A run of a million tokens, as far as its ledger tells."""
    return Run(
        id=role, corpus_id="text", config=CONFIG, role=role, trunk="t", loss=3.0, loss_se=0.01, bpb=1.0,
        bpb_se=0.01, params_total=1, params_nonembedding=1, params_matmul=10_000, tokens=1_000_000,
        unique_tokens=1_000_000, flops=flops, flops_spent=flops, seconds_train=1.0, seconds_eval=1.0,
        seconds_compile=0.0, tokens_per_second=tokens_per_second, peak_flops_per_second=1.0, peak_share=0.5,
        peak_memory_bytes=1,
    )  # fmt: skip


def ledger(folder: Path, law: Fit | None, *, planned: bool = True) -> Project:
    """A project of 10M unique tokens whose plan is 1e13 FLOPs, at 1e8 FLOP/s."""
    home = Project(folder)
    corpus = Corpus(
        id="text", folder=folder, config=CorpusConfig(), documents=1, bytes=1, raw_bytes=1,
        train_tokens=10_000_000, heldout_tokens=1, train_bytes=1, heldout_bytes=1, heldout_documents=1,
        vocab_size=512, bytes_per_token=4.0, dropped={}, bad_bytes=0, hashes={}, seconds=1.0,
    )  # fmt: skip
    home.put("corpus", corpus, corpus.id)
    if law is not None:
        home.put("fit", law, "law")
    if planned:
        some = Interval(value=3.0, low=2.9, high=3.1)
        plan = Plan(
            id="plan", fit_id="law", corpus_id="text", budget_seconds=1e5, budget_flops=None,
            config=CONFIG, params=10_000, tokens=1_000_000,
            flops=1e13, seconds=1e5, memory_bytes=1, tokens_per_second=10.0, loss=some, params_optimum=some,
            tokens_optimum=some, doubling_loss=some, doubling_saves=some,
        )  # fmt: skip
        home.put("plan", plan, plan.id)
    return home
