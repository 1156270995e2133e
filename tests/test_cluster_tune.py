"""Tunings on a Ray cluster of two nodes: a killed node or driver costs no trial and changes no bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hearing import Heard, until
from ray.cluster_utils import Cluster as Nodes
from test_cluster import holding, when
from test_tune import laid_out, times

from isoflop import cluster
from isoflop.cluster import Cluster, connected
from isoflop.errors import ProjectError
from isoflop.interrupt import Interrupted
from isoflop.progress import Silent
from isoflop.records import Corpus, RunConfig
from isoflop.store import Project
from isoflop.train import train_trunk
from isoflop.trials import Trial
from isoflop.tuning import carry_out
from isoflop.tuning.crew import Crew
from isoflop.tuning.layout import Layout
from isoflop.tuning.search import Search, trial_config


def trained_here(layout: Layout, trial: Trial, folder: Path) -> tuple[float, ...]:
    """The losses of a trial, as this process finds them."""
    config = trial_config(layout.tuning, trial.number, trial.values)
    counts = layout.tuning.token_counts
    runs = train_trunk(config, counts, layout.corpus, folder, first=len(trial.losses))
    return tuple(run.loss for run in runs)


def test_a_killed_node_costs_what_a_trial_did_since_its_last_checkpoint(
    nodes: Nodes, connection: None, corpus: Corpus, small: RunConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (other,) = nodes.worker_nodes
    mark, project, said = tmp_path / "mark", Project(tmp_path / "project"), Heard()
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.0)
    layout = laid_out(corpus, small, workers=2, planned=4)
    thread = when(mark, lambda pid: nodes.remove_node(other, allow_graceful=False))
    try:
        done = carry_out(project, layout, said, holding(mark, other.node_id))
    finally:
        thread.join()
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    assert [t.number for t in done.trials] == list(range(4))
    assert {t.state for t in done.trials} <= {"done", "pruned"}
    for trial in done.trials:
        assert trial.losses == trained_here(layout, trial, tmp_path / f"{trial.number}")
    resumed = [line for line in said.lines if "goes on from its last checkpoint" in line]
    assert len(resumed) == 1, said.lines
    assert resumed[0].startswith("trial ")
    assert done.sentence
    assert list((project.folder / "runs").iterdir()) == []


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from isoflop.cluster import connected
from isoflop.corpus import load_corpus
from isoflop.progress import Silent
from isoflop.records import RunConfig
from isoflop.store import Project
from isoflop.tuning import carry_out
from test_tune import laid_out
layout = laid_out(load_corpus(Path(sys.argv[3])), RunConfig.from_json(sys.argv[4]), planned=3)
with connected(sys.argv[1], Silent()) as place:
    carry_out(Project(sys.argv[2]), layout, Silent(), place)
"""


def test_a_killed_driver_goes_on_and_ends_as_one_machine_does(
    nodes: Nodes, corpus: Corpus, small: RunConfig, tmp_path: Path
) -> None:
    project, layout = Project(tmp_path / "project"), laid_out(corpus, small, planned=3)
    words = [
        nodes.address, str(project.folder), str(corpus.folder), small.to_json(), str(Path(__file__).parent)
    ]  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", DRIVER, *words]) as driver:
        until(lambda: driver.poll() is not None or len(times(project)) >= 2)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    before = times(project)
    with connected(nodes.address, Silent()) as place:
        there = carry_out(project, layout, Silent(), place)
        after = times(project)
        assert carry_out(project, layout, Silent(), place) == there
    assert before.items() <= after.items()
    assert times(project) == after
    here = carry_out(Project(tmp_path / "here"), layout, Silent())
    assert there.model_copy(update={"seconds": 0.0}) == here.model_copy(update={"seconds": 0.0})


def test_interrupted_it_goes_on_from_its_checkpoints(
    connection: None, corpus: Corpus, small: RunConfig, tmp_path: Path
) -> None:
    project, layout = Project(tmp_path / "project"), laid_out(corpus, small, planned=1)
    place = Cluster(checkpoint_seconds=0).place()
    crew = Crew(project, corpus, 1, Silent(), lambda: bool(times(project)), place)
    with pytest.raises(Interrupted):
        Search(project, layout).run(crew)
    before = times(project)
    assert before
    assert list((project.folder / "runs").glob("*/*.pt"))
    (trial,) = Search(project, layout).run(Crew(project, corpus, 1, Silent(), lambda: False, place))
    assert before.items() <= times(project).items()
    assert trial.losses == trained_here(layout, trial, tmp_path / "here")


def test_the_errors_of_a_cluster(
    connection: None, corpus: Corpus, small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, layout = Cluster().place(), laid_out(corpus, small, planned=2)
    wild = layout.tuning.config.model_copy(update={"lr_matrix": 1e30})
    tuning = layout.tuning.model_copy(update={"config": wild, "values": ("lr_head",)})
    project = Project(tmp_path / "wild")
    search = Search(project, replace(layout, tuning=tuning))
    trials = search.run(Crew(project, corpus, 2, Silent(), lambda: False, place))
    assert {t.state for t in trials} == {"failed"}
    monkeypatch.setattr(Path, "touch", lambda self: None)  # so that nobody sees the mark
    with pytest.raises(ProjectError, match="does not see the project's folder"):
        carry_out(Project(tmp_path / "unseen"), layout, Silent(), place)
