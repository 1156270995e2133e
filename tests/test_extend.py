"""How a ladder grows: which runs are added, and why it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from isoflop import extend as growing
from isoflop import flops, places
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.errors import BudgetError
from isoflop.extend import Extender, extend
from isoflop.families import shapes
from isoflop.ladder import GOOD_STEPS, member
from isoflop.laws import Fit, fit
from isoflop.pipeline import sweep
from isoflop.progress import Silent
from isoflop.recipe import recipe
from isoflop.records import Corpus, Ladder, Member, Run, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel

WHOLE = 2e15  # FLOPs of the target


def loss(N: float, D: float) -> float:
    return float(1.0 + 30 / N**0.3 + 200 / D**0.4)


def measured(members: Sequence[Member]) -> list[Run]:
    """What the truth and some noise give for every branch."""
    rng = np.random.default_rng(0)
    return [
        make_run(m.params, t, loss(m.params, t) * float(np.exp(0.003 * rng.standard_normal())), m.config.seed)
        for m in members
        for t in m.token_counts
    ]


def make_run(params: int, tokens: int, loss: float, seed: int) -> Run:
    known = {"params_matmul": params, "tokens": tokens, "loss": loss, "trunk": f"{params} {seed}"}
    return Run.model_construct(None, **(dict.fromkeys(Run.model_fields, 0) | known))  # type: ignore[arg-type]


def law(runs: Sequence[Run]) -> Fit:
    columns = {"params": [r.params_matmul for r in runs], "tokens": [r.tokens for r in runs],
               "loss": [r.loss for r in runs]}  # fmt: skip
    return fit({**columns, "cluster": [r.trunk for r in runs]}, delta=0.006, bootstrap=0)


@pytest.fixture
def speed(corpus: Corpus) -> SpeedModel:
    """Every size computes 50 GFLOP/s in one packed run, and evaluates three times as fast."""
    return SpeedModel(
        Throughput(
            model=m, batch_tokens=1024, threads=1, packed=2, compile=False, params=flops.params_matmul(m),
            tokens_per_second=5e10 / flops.flops_per_token(m),
            eval_tokens_per_second=15e10 / flops.flops_per_token(m),
            compile_seconds=0.0, memory_bytes=0, machine="none",
        )
        for m in shapes(corpus.vocab_size, largest=2_000_000)
    )  # fmt: skip


@pytest.fixture
def opening(corpus: Corpus) -> Ladder:
    """Three sizes of three token counts each."""
    members = tuple(
        member(config, [100 * 2**k * config.batch_tokens for k in range(3)], 1e-5, 0.5)
        for config in (recipe(m, 0) for m in shapes(corpus.vocab_size, largest=700_000)[:3])
    )
    return Ladder(id="k", corpus_id=corpus.id, members=members, packed=2, seconds=100.0,
                  flops=sum(m.flops for m in members))  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Member, ...]]:
    """Training replaced by the truth; holds the members of every round."""
    rounds: list[tuple[Member, ...]] = []

    def climb(
        project: Project, corpus: Corpus, ladder: Ladder, *, progress: Silent, place: None
    ) -> list[Run]:
        rounds.append(ladder.members)
        return measured(ladder.members)

    monkeypatch.setattr(growing, "climb", climb)
    return rounds


def extender(corpus: Corpus, speed: SpeedModel, within: float, budget: Budget | None = None) -> Extender:
    share = budget or Budget(flops=WHOLE / 3)
    return Extender(corpus, share, share.share(3.0), speed, within, seed=0)


def test_a_ladder_grows_until_the_target_is_known_as_wanted(
    tmp_path: Path, corpus: Corpus, speed: SpeedModel, opening: Ladder, made: list[tuple[Member, ...]]
) -> None:
    home, spent = Project(tmp_path / "p"), []
    for within in (0.10, 0.06):
        grown, runs = extend(
            home, opening, measured(opening.members), extender(corpus, speed, within), law, progress=Silent()
        )
        assert f"{100 * within:g}% are wanted" in grown.ended
        assert home.get("ladder", "k", Ladder) == grown
        assert grown.members[:3] == opening.members
        assert len(runs) == sum(len(m.token_counts) for m in grown.members)
        assert grown.flops == pytest.approx(sum(m.flops for m in grown.members))
        cells = [(m.params, m.token_counts[-1]) for m in grown.members]
        assert len(set(cells)) == len(cells)
        assert all(m.token_counts[0] >= GOOD_STEPS * m.config.batch_tokens for m in grown.members[3:])
        spent.append(grown.flops)
    assert opening.flops < spent[0] < spent[1] < WHOLE / 3
    assert len(made[0]) - len(opening.members) <= opening.packed


def test_a_ladder_that_ended_is_left_alone(
    tmp_path: Path, corpus: Corpus, speed: SpeedModel, opening: Ladder, made: list[tuple[Member, ...]]
) -> None:
    ended, runs = opening.model_copy(update={"ended": "so"}), measured(opening.members)
    chooser = extender(corpus, speed, 0.001)
    assert extend(Project(tmp_path / "p"), ended, runs, chooser, law, progress=Silent()) == (ended, runs)
    assert not made


def test_it_ends_where_its_share_is_spent(corpus: Corpus, speed: SpeedModel, opening: Ladder) -> None:
    fitted = law(measured(opening.members))
    none_left = extender(corpus, speed, 0.001, Budget(flops=opening.flops * 1.0001)).round(opening, fitted)
    assert isinstance(none_left, str)
    assert "no further run fits" in none_left
    found = extender(corpus, speed, 0.001, Budget(flops=opening.flops * 2)).round(opening, fitted)
    assert isinstance(found, list)
    assert sum(m.flops for m in found) <= opening.flops


def test_a_law_without_a_best_split_ends_the_ladder(
    corpus: Corpus, speed: SpeedModel, opening: Ladder
) -> None:
    fitted = law(measured(opening.members))
    flat = fitted.model_copy(update={"params": {**fitted.params, "B": 0.0}})
    found = extender(corpus, speed, 0.05).round(opening, flat)
    assert found == "The fitted law has no best split."
    bound = fitted.model_copy(update={"params": {**fitted.params, "beta": 1e-9}, "prior": True})
    assert "nan" not in str(extender(corpus, speed, 0.05).round(opening, bound))


def test_with_seconds_the_runs_of_a_round_share_the_time(
    corpus: Corpus, speed: SpeedModel, opening: Ladder
) -> None:
    fitted = law(measured(opening.members))
    found = extender(corpus, speed, 0.02, Budget(seconds=2000.0)).round(opening, fitted)
    assert isinstance(found, list)
    assert len(found) == 2
    assert found[1].seconds <= found[0].seconds <= 1900.0


def test_impossible_targets(tmp_path: Path, corpus: Corpus) -> None:
    home = Project(tmp_path / "p")
    for budget, target, within, words in (
        (Budget(flops=1e12), Budget(seconds=60.0), 0.05, "cannot be for"),
        (Budget(flops=1e12), Budget(flops=1e12), 0.05, "leaves nothing"),
        (Budget(flops=1e12), Budget(flops=1e13), 0.0, "half-width"),
    ):
        with pytest.raises(BudgetError, match=words):
            sweep(home, corpus, budget, target=target, within=within, key="k")


def test_added_runs_are_trained_and_not_again(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real training of short runs, which count as good here; the law is the truth's at their sizes."""
    for module in (rungs, growing):
        monkeypatch.setattr(module, "GOOD_STEPS", 10)
    monkeypatch.setattr(rungs, "SMALLEST_GOOD_STEPS", 10)
    home, share, quiet = Project(tmp_path / "p"), Budget(flops=1.2e12), Silent()
    opening = rungs.design(home, corpus, share, seed=0, progress=quiet, key="k", workers=2, growing=True)
    runs = rungs.climb(home, corpus, opening, progress=quiet)
    speed = rungs.measure(home, corpus, [m.config for m in opening.members], packed=2, progress=quiet)
    chooser = Extender(corpus, share, share.share(20.0), speed, 0.001, seed=0)

    def truth(seen: Sequence[Run]) -> Fit:
        return law([r.model_copy(update={"loss": loss(r.params_matmul, r.tokens)}) for r in seen])

    ladder, grown = extend(home, opening, runs, chooser, truth, progress=quiet)
    assert len(ladder.members) > len(opening.members)
    assert opening.flops < ladder.flops <= 1.2e12
    assert len(grown) == sum(len(m.token_counts) for m in ladder.members)
    assert {r.id for r in runs} < {r.id for r in grown} == {r.id for r in home.all("run", Run)}
    monkeypatch.setattr(places, "train_packed", None)  # nothing is left to train
    assert rungs.climb(home, corpus, ladder, progress=quiet) == grown
