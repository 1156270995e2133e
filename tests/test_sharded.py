"""Checkpoints of a model that is shared out to ranks: whole or not there, and runs that go on from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from disks import Disk
from hearing import save_to, stops_after

from isoflop import checkpoint, parallel, sharded
from isoflop.branches import Branches
from isoflop.devices import device_for
from isoflop.errors import CorruptError, ProjectError
from isoflop.families import find
from isoflop.interrupt import Interrupted
from isoflop.progress import Silent
from isoflop.records import Corpus, RunConfig

CLOSE = 1e-5


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def weight(state: dict[str, object] | None) -> float:
    """The first element of what a test saved."""
    assert state is not None
    return float(state["nested"][0]["weight"].full_tensor()[0, 0])  # type: ignore[index]


def test_checkpoints_of_shards_are_whole_or_not_there(
    corpus: Corpus, small: RunConfig, tmp_path: Path, sole_rank: None
) -> None:
    model = parallel.shard(find("isoflop").build(small.model, 0), device_for())
    mesh = parallel.mesh_of(model)

    def save(step: int, name: str) -> None:
        with torch.no_grad():
            model.table.fill_(step)
        sharded.save(tmp_path, {"nested": [{"weight": model.table}], "other": (step, None)}, step)
        assert checkpoint.index(tmp_path)[-1]["file"] == name

    def load() -> dict[str, object] | None:
        return sharded.load(tmp_path, mesh, Silent())

    assert load() is None
    (tmp_path / ".checkpoint-000000001.tmp").mkdir()  # of a writer that was killed in the middle ...
    (tmp_path / "checkpoint-000000001").mkdir()  # ... or just before it named its folder
    save(1, "checkpoint-000000001")
    save(2, "checkpoint-000000002")
    save(3, "checkpoint-000000003")
    save(3, "checkpoint-000000003.1")  # the end of a branch, after a checkpoint at its last step
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["checkpoint-000000003", "checkpoint-000000003.1"]
    save(4, "checkpoint-000000004")
    state = load()
    assert weight(state) == 4
    assert state is not None
    assert state["other"] == (4, None)
    damage(max((tmp_path / "checkpoint-000000004").glob("*.distcp")))
    assert weight(load()) == 3
    (tmp_path / "checkpoint-000000003.1" / "rest.pt").unlink()
    with pytest.raises(CorruptError, match="no checkpoint"):
        load()


def test_a_sharded_checkpoint_on_a_full_disk_says_so_and_leaves_nothing(
    corpus: Corpus, small: RunConfig, disk: Disk, sole_rank: None
) -> None:
    model = parallel.shard(find("isoflop").build(small.model, 0), device_for())
    folder = disk.folder / "run"
    folder.mkdir()

    def save(step: int) -> None:
        with torch.no_grad():
            model.table.fill_(step)
        sharded.save(folder, {"nested": [{"weight": model.table}, model.state_dict()]}, step)

    disk.resize(4096, "remount")
    save(1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    disk.resize(disk.used() + disk.used() // 2, "remount")  # for half of another
    with pytest.raises(ProjectError, match=r"the disk is full: the checkpoint .* not be written") as caught:
        save(2)
    assert "run the same command again" in caught.value.hint
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(folder.glob(".*"))
    assert weight(sharded.load(folder, parallel.mesh_of(model), Silent())) == 1
    disk.resize(16 * 1024, "remount")
    save(2)
    assert weight(sharded.load(folder, parallel.mesh_of(model), Silent())) == 2


def branches(config: RunConfig, corpus: Corpus, folder: Path, stop: int) -> list[float] | None:
    """The losses of a trunk's branches in this process, or None when it was stopped after `stop` steps."""
    folder.mkdir(exist_ok=True)
    work = Branches(
        config, [20 * 256, 40 * 256], corpus, folder, role="ladder", progress=Silent(), stage="train",
        checkpoint_seconds=1e9, stopping=stops_after(stop),
    )  # fmt: skip
    try:
        return [run.loss for run in work.run(partial(save_to, folder / "weights.pt"), 2)]
    except Interrupted:
        return None


def test_a_sharded_trunk_that_is_stopped_in_a_cooldown_goes_on(
    corpus: Corpus, small: RunConfig, tmp_path: Path, sole_rank: None
) -> None:
    expected = branches(small, corpus, tmp_path / "undisturbed", stop=10**9)
    config = small.model_copy(update={"shard": True})
    assert branches(config, corpus, tmp_path / "sharded", stop=18) is None
    assert branches(config, corpus, tmp_path / "sharded", stop=10**9) == pytest.approx(expected, abs=CLOSE)
    weights, others = (torch.load(tmp_path / name / "weights.pt") for name in ("sharded", "undisturbed"))
    assert weights.keys() == others.keys()
    assert all(torch.allclose(w, others[name], atol=1e-4) for name, w in weights.items())
