"""Small real things that many tests share: a corpus, a shape, a finished project."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch.distributed as dist
from disks import Disk
from finished import Home
from postgres import PASSWORD, Server

from isoflop.corpus import build_corpus
from isoflop.pipeline import corpus_of
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Result, RunConfig
from isoflop.store import Project

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster as Nodes

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="session", autouse=True)
def same_everywhere() -> Iterator[None]:
    """The recipe as on a machine without units for 16 bits: what is compared to rounding has 32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.devices.preferred_precision", lambda: "float32")
        yield


@pytest.fixture(scope="session")
def sources() -> tuple[str, ...]:
    """About 1.5 MB of real text."""
    return (str(STDLIB / "asyncio"), str(STDLIB / "email"), str(STDLIB / "unittest"), str(STDLIB / "json"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, sources: tuple[str, ...]) -> Corpus:
    config = CorpusConfig(sources=sources, vocab_size=512, heldout_share=0.1)
    return build_corpus(config, tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def small(corpus: Corpus) -> RunConfig:
    """A run of some seconds' fraction: 60 steps of a tiny model."""
    model = shape(32, corpus.vocab_size, n_layers=2, context=64)
    return recipe(model, 60 * 256, batch_tokens=256, warmup_tokens=1024, eval_tokens=2048)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of this session's own; its user's password is where its driver looks for it."""
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        server = Server(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def sole_rank() -> Iterator[None]:
    """This process in a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    if sys.platform != "linux" or not shutil.which("mount") or not disk.resize(64):
        pytest.skip("a small disk cannot be mounted here: that takes Linux and root")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], check=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """A new project, with its ledger in its folder or on a server."""
    if request.param == "sqlite":
        return Project(tmp_path / "project")
    return Project(tmp_path / "project", url=request.getfixturevalue("postgres").new())


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """A Ray cluster of two nodes of one CPU each; the first is the driver's."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
    started = Nodes(initialize_head=True, head_node_args=head)
    started.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield started
    assert not ray.is_initialized(), "a test left this process connected"
    started.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def connection(nodes: Nodes) -> Iterator[None]:
    """This process is connected to the nodes."""
    from isoflop.cluster import connected

    with connected(nodes.address, Silent()):
        yield


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, sources: tuple[str, ...]) -> tuple[Path, Result]:
    """The main job, done once on a small compute budget."""
    from isoflop import run

    folder = tmp_path_factory.mktemp("job") / "project"
    config = CorpusConfig(vocab_size=512, heldout_share=0.1)
    return folder, run(sources, budget="1.6e12flops", project=folder, ladder_share=0.5, corpus_config=config)


@pytest.fixture(scope="session")
def home(project: tuple[Path, Result]) -> Home:
    """The same as its stages read it."""
    found = Project(project[0])
    return found, corpus_of(found), Path(project[1].model)
