"""The project folder: one lock, artifacts that are whole or not there, files that are old or new."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import SPAWN, files, interval

from isoflop.errors import CorruptError, ProjectError
from isoflop.records import Interval
from isoflop.store import Project, atomic_write, content_hash

HOLD = """
import sys
from isoflop.store import Project
with Project(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_locked_project_names_its_user_and_still_reads_and_writes(fresh: Project) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(fresh.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ProjectError, match=rf"in use by process {holder.pid} on \S+$"), fresh.lock():
            pass
        fresh.put("interval", interval(1), id="x")
        assert Project(fresh.folder, create=False).latest("interval", Interval) == interval(1)
        holder.kill()
    with fresh.lock():  # a killed holder holds nothing
        assert (fresh.folder / ".lock.owner").read_text().split()[1] == str(os.getpid())
    assert not (fresh.folder / ".lock.owner").exists()


def test_a_second_lock_in_the_same_process_is_refused(fresh: Project) -> None:
    with fresh.lock(), pytest.raises(ProjectError, match=f"process {os.getpid()}"), fresh.lock():
        pass


def test_nothing_is_made_when_the_project_must_exist(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(ProjectError, match="there is no project here"):
            Project(folder, create=False)
    assert files(tmp_path) == ["empty"]


def test_a_file_in_the_projects_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ProjectError, match=r"the project .*file.* cannot be written"):
            Project(folder)


@pytest.mark.parametrize("name", ["a b", "50%", "what?", "#1", "é"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    Project(tmp_path / name).put("interval", interval(1), id="x")
    assert (tmp_path / name / "ledger.db").is_file()
    assert Project(tmp_path / name, create=False).latest("interval", Interval) == interval(1)


def test_the_module_itself_is_light() -> None:
    code = "import sys, isoflop.store; print({'torch', 'sqlalchemy', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"set()\n"


def write_two(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")


def test_an_artifact_is_named_by_its_content_and_kept_once(fresh: Project) -> None:
    rel = fresh.add_artifact("model", write_two)
    assert rel == f"artifacts/model-{content_hash(fresh.folder / rel)[:16]}"
    assert files(fresh.folder / rel) == ["config.json", "deep", "deep/weights"]
    assert fresh.add_artifact("model", write_two) == rel
    assert files(fresh.folder / "artifacts") == [
        rel.removeprefix("artifacts/") + tail for tail in ("", "/config.json", "/deep", "/deep/weights")
    ]
    fresh.verify_artifact(rel)


def test_the_content_hash_is_that_of_a_sha256sum_listing(tmp_path: Path) -> None:
    write_two(tmp_path)
    # find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum
    assert content_hash(tmp_path)[:16] == "3fc1db95a9bf2f01"


def append(path: Path) -> None:
    path.write_text(path.read_text() + " ")


def rename(path: Path) -> None:
    path.rename(path.with_name("other.json"))


def add(path: Path) -> None:
    path.with_name("added").write_text("")


@pytest.mark.parametrize("damage", [append, rename, add, Path.unlink])
def test_a_changed_artifact_is_corrupt(fresh: Project, damage: Callable[[Path], None]) -> None:
    rel = fresh.add_artifact("model", write_two)
    damage(fresh.folder / rel / "config.json")
    with pytest.raises(CorruptError, match=rel):
        fresh.verify_artifact(rel)


def test_a_missing_artifact_is_corrupt(fresh: Project) -> None:
    with pytest.raises(CorruptError, match=r"artifacts/model-00 is damaged: .* missing"):
        fresh.verify_artifact("artifacts/model-00")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_an_artifacts_name_is_a_folders(fresh: Project, name: str) -> None:
    with pytest.raises(ProjectError, match="cannot be named"):
        fresh.add_artifact(name, write_two)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "weights"),
        RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
    ],
)
def test_a_full_disk_leaves_no_part_of_an_artifact(fresh: Project, error: Exception) -> None:
    def write(folder: Path) -> None:
        write_two(folder)
        raise error

    with pytest.raises(ProjectError, match="the disk is full: the artifact model") as caught:
        fresh.add_artifact("model", write)
    assert "free some space" in caught.value.hint
    assert files(fresh.folder / "artifacts") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, FileNotFoundError])
def test_other_errors_of_the_writer_pass_and_leave_nothing(
    fresh: Project, error: type[BaseException]
) -> None:
    def write(folder: Path) -> None:
        write_two(folder)
        raise error

    with pytest.raises(error):
        fresh.add_artifact("model", write)
    assert files(fresh.folder / "artifacts") == []


def test_two_writers_of_the_same_content(fresh: Project) -> None:
    rels: list[str] = []

    def write(folder: Path) -> None:
        write_two(folder)
        if not rels:  # the other one overtakes while this one writes
            rels.append("")
            rels[0] = fresh.add_artifact("model", write)

    assert fresh.add_artifact("model", write) == rels[0]
    fresh.verify_artifact(rels[0])


def add_slowly(folder: Path) -> None:
    def write(temp: Path) -> None:
        write_two(temp)
        os._exit(9)  # as a kill would end it

    Project(folder).add_artifact("model", write)


def test_what_a_killed_writer_left_is_swept_by_the_next_lock(fresh: Project) -> None:
    process = SPAWN.Process(target=add_slowly, args=(fresh.folder,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(files(fresh.folder / "artifacts")) == 4

    def write(temp: Path) -> None:  # a living writer's folder is left alone
        with fresh.lock():
            write_two(temp)

    rel = fresh.add_artifact("model", write)
    assert os.listdir(fresh.folder / "artifacts") == [Path(rel).name]


def test_atomic_write_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", "é")
    atomic_write(tmp_path / "file", b"\0new")
    assert (tmp_path / "file").read_bytes() == b"\0new"
    assert files(tmp_path) == ["file"]


def test_atomic_write_on_a_full_disk_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    atomic_write(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProjectError, match=r"the disk is full: the file .*file could not be written"):
        atomic_write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert files(tmp_path) == ["file"]
