"""Small real things that many tests share: a corpus, a shape, a finished project."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from disks import Disk
from filelock import FileLock
from finished import BUDGET, LADDER_SHARE, Home
from postgres import PASSWORD, Server

from isoflop.corpus import build_corpus
from isoflop.pipeline import REPORT, corpus_of
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Result, RunConfig
from isoflop.store import Project

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster as Nodes

THREADS = torch.get_num_threads()
STDLIB = Path(sysconfig.get_paths()["stdlib"])

# A file is one worker's: where the longest came last, a worker would end alone with one.
LONGEST_FIRST = (
    "test_cli", "test_interrupt", "test_cluster", "test_distributed", "test_train", "test_cli_ablate",
    "test_improve", "test_serve_replicas", "test_tune", "test_cluster_tune", "test_ladder", "test_graphs",
    "test_extend", "test_engines", "test_distill",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def same_everywhere() -> Iterator[None]:
    """The recipe as on a machine without units for 16 bits: what is compared to rounding has 32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.devices.preferred_precision", lambda: "float32")
        yield


@pytest.fixture(autouse=True)
def same_threads() -> None:
    """What was trained with all cores before leaves no second thread: the other worker's tests would wait."""
    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Budgets are of this thread's own seconds, however busy the machine and other tests' threads are."""
    monkeypatch.setattr(time, "monotonic", time.thread_time)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """What a module's engines run on."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in llama.cpp's format, in a folder of its own; never to be changed."""
    for package in ("gguf", "xllamacpp"):
        pytest.importorskip(package, reason="the extra isoflop[gguf] is not installed")
    from gguf_models import written

    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


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


@pytest.fixture(scope="module")
def connection(nodes: Nodes) -> Iterator[None]:
    """This process is connected to the nodes; their processes are kept from one test to the next."""
    from isoflop.cluster import connected

    with connected(nodes.address, Silent()):
        yield


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, sources: tuple[str, ...]) -> tuple[Path, Result]:
    """The main job, done once on a small compute budget; every worker of the tests has its copy."""
    from isoflop import run

    config = CorpusConfig(vocab_size=512, heldout_share=0.1)
    job = partial(run, sources, budget=BUDGET, ladder_share=LADDER_SHARE, corpus_config=config)
    done = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        done = done.parent  # of all workers
    done, folder = done / "job", tmp_path_factory.mktemp("job") / "project"
    with FileLock(done.with_suffix(".lock")):
        if not done.exists():
            part = done.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a worker whose job failed
            job(project=part)
            part.rename(done)
    shutil.copytree(done, folder)
    home = Project(folder)
    key, result = home.find("", kind="result").id, home.latest("result", Result)
    assert result is not None
    moved = {"model": str(folder / "artifacts" / Path(result.model).name), "report": str(folder / REPORT)}
    home.put("result", result.model_copy(update=moved), key)
    return folder, job(project=folder)  # it is done: nothing is trained


@pytest.fixture(scope="session")
def home(project: tuple[Path, Result]) -> Home:
    """The same as its stages read it."""
    found = Project(project[0])
    return found, corpus_of(found), Path(project[1].model)
