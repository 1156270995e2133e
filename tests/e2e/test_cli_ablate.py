"""A change of the recipe against the recipe: real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster as Nodes

from e2e.commands import refused
from isoflop import flops
from isoflop.ablate import Ablation, ablate
from isoflop.budget import Budget
from isoflop.errors import BudgetError, FitError, TrainError
from isoflop.families import OWN
from isoflop.records import Corpus, Run
from isoflop.store import Project
from isoflop.train import train
from isoflop.variant import Variant

BUDGET = Budget(flops=3e12)  # about the least for which a law has long enough runs


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> tuple[Project, Ablation]:
    """A learning rate that is far too low."""
    home = Project(tmp_path_factory.mktemp("ablate") / "p")
    home.put("corpus", corpus, corpus.id)
    return home, ablate(home, corpus, BUDGET, Variant.of(OWN, ["lr_matrix=x0.02"]), seeds=1)


def test_a_bad_change_costs_doublings(judged: tuple[Project, Ablation]) -> None:
    found = judged[1]
    assert found.gain.mean is not None
    assert found.gain.mean.high < 0
    assert len(found.gain.scales) == 6  # three sizes, half and all of the tokens
    assert len(found.pairs) == 6
    assert found.flops + found.flops_base == pytest.approx(3e12, rel=0.1)
    assert {p.flops_other / p.flops for p in found.pairs} == {1.0}


def test_the_plain_runs_are_trained_once_for_all_changes_and_places(  # type: ignore[no-untyped-def]
    isoflop, judged: tuple[Project, Ablation], nodes: Nodes, corpus: Corpus, tmp_path: Path
) -> None:
    home, first = judged
    if not (link := home.folder / "corpora" / corpus.id).exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(corpus.folder, target_is_directory=True)
    before = {r.id for r in home.all("run", Run)}
    words = ("ablate", "--set", "model.d_ff=x1.5", "--budget", "3e12flops", "--seeds", 1,
             "--project", home.folder)  # fmt: skip
    answer = isoflop(*words, "--ray", nodes.address, "--json")
    assert answer.code == 0, answer.err
    second = Ablation.model_validate_json(answer.out)
    new = [r for r in home.all("run", Run) if r.id not in before]
    assert len(new) == len(before) / 2 == 6
    assert {r.role for r in new} == {"ablation"}
    assert [p.loss for p in second.pairs] == [p.loss for p in first.pairs]
    batch = max(flops.flops_per_token(r.config.model) * r.config.batch_tokens for r in new)
    assert all(abs(p.flops_other - p.flops) <= batch for p in second.pairs)
    smallest = min(new, key=lambda r: r.flops)
    here = train(smallest.config, corpus, tmp_path / "here")
    assert here.loss == smallest.loss  # the place changes no bit
    assert Ablation.model_validate_json(isoflop(*words, "--json").out).pairs == second.pairs


def test_what_cannot_be_judged(tmp_path: Path, corpus: Corpus) -> None:
    home, change = Project(tmp_path / "p"), Variant.of(OWN, ["cooldown=0.5"])
    with pytest.raises(TrainError, match="no change to judge"):
        ablate(home, corpus, BUDGET, Variant())
    with pytest.raises(TrainError, match="0 seeds are too few"):
        ablate(home, corpus, BUDGET, change, seeds=0)
    with pytest.raises(FitError, match=r"interval of 2\.0"):
        ablate(home, corpus, BUDGET, change, interval=2.0)
    with pytest.raises(BudgetError, match=r"1e\+10 FLOPs trains .* steps, and a law needs runs of 30"):
        ablate(home, corpus, Budget(flops=1e10), change)


def test_the_command(isoflop, judged: tuple[Project, Ablation], sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    home, found = judged
    words = ("ablate", "--budget", "3e12flops", "--seeds", 1, "--project", home.folder)
    assert isoflop("corpus", *sources, "--vocab", 512, "--heldout", 0.1, "--project", home.folder).code == 0
    answer = isoflop(*words, "--set", "lr_matrix=x0.02", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["gain"]["mean"] == json.loads(found.to_json())["gain"]["mean"]
    table = isoflop(*words, "--set", "lr_matrix=x0.02")
    assert found.gain.sentence in " ".join(table.out.split())
    refused(isoflop(*words), "no change to judge")
    refused(isoflop(*words, "--set", "lr=1"), "no 'lr' of --set")
