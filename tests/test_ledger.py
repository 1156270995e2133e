"""The ledger keeps everything that was put, from many processes at once, or says in a sentence why not."""

import json
import re
import sqlite3
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from postgres import PASSWORD, Server
from stored import SPAWN, files, interval

from isoflop import ledger
from isoflop.errors import CorruptError, ProjectError
from isoflop.records import CorpusConfig, Interval
from isoflop.store import Project


@pytest.fixture
def own(tmp_path: Path) -> Project:
    """A new project with its ledger in its folder."""
    return Project(tmp_path / "project")


def sql(project: Project, statement: str) -> None:
    """Change the ledger behind the project's back."""
    with project.ledger._engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_what_was_put_is_got_also_by_another_project_object(fresh: Project) -> None:
    assert fresh.put("interval", interval(0.5), id="x") == "x"
    again = Project(fresh.folder, create=False)
    assert again.get("interval", "x", Interval) == interval(0.5)
    assert again.get("interval", "y", Interval) is None
    assert again.get("gain", "x", Interval) is None


def test_the_id_is_the_argument_or_the_records_own_or_its_digest(fresh: Project) -> None:
    config = CorpusConfig(seed=3)
    assert fresh.put("config", config) == config.digest()
    assert fresh.get("config", config.digest(), CorpusConfig) == config


def test_putting_again_replaces_and_makes_it_the_latest(fresh: Project) -> None:
    for id, value in [("a", 1), ("b", 2), ("a", 3), ("a", 3)]:
        fresh.put("interval", interval(value), id=id)
    assert [record.value for record in fresh.all("interval", Interval)] == [2, 3]
    assert fresh.latest("interval", Interval) == interval(3)


def test_records_that_belong_together_are_all_kept_in_their_order_or_none(
    own: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    own.listeners.append(lambda kind, id, record: told.append(id))
    with own.ledger.kept_open():
        own.put_all("interval", {"b": interval(1), "a": interval(2)})
        assert Project(own.folder).all("interval", Interval) == [interval(1), interval(2)]

        def fails(text: str) -> str:
            if text == interval(4).to_json():
                raise MemoryError
            return "hash"

        monkeypatch.setattr(ledger, "_sha256", fails)
        with pytest.raises(MemoryError):
            own.put_all("interval", {"a": interval(3), "c": interval(4)})
        monkeypatch.undo()
    assert own.all("interval", Interval) == [interval(1), interval(2)]
    assert told == ["b", "a"]
    assert not list(own.folder.glob("ledger.db-*"))  # the last connection is closed


def test_order_is_kept_when_the_clock_stands_still_or_goes_back(
    fresh: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, now in enumerate([1e9, 1e9, 1e9 - 60, 1e9 + 1]):
        monkeypatch.setattr("time.time", lambda now=now: now)
        fresh.put("interval", interval(i), id=f"{i}")
    assert [record.value for record in fresh.all("interval", Interval)] == [0, 1, 2, 3]
    assert fresh.latest("interval", Interval) == interval(3)


def test_kinds_are_apart_and_an_empty_kind_is_empty(fresh: Project) -> None:
    fresh.put("a", interval(1), id="x")
    fresh.put("b", interval(2), id="x")
    fresh.delete("a", "x")
    fresh.delete("a", "never there")
    assert fresh.all("a", Interval) == []
    assert fresh.latest("a", Interval) is None
    assert fresh.all("b", Interval) == [interval(2)]


def test_a_record_of_another_class_is_named(fresh: Project) -> None:
    fresh.put("interval", interval(1), id="x")
    with pytest.raises(ProjectError, match=r"interval x in .*ledger.* is not a CorpusConfig: .*value"):
        fresh.get("interval", "x", CorpusConfig)


def test_find_by_prefix(fresh: Project) -> None:
    for kind, id in [
        ("run", "ab12"),
        ("run", "ab"),
        ("run", "cd"),
        ("fit", "cd"),
        ("run", "%"),
        ("run", "_"),
    ]:
        fresh.put(kind, interval(1), id=id)
    kind, id, body = fresh.find("ab1")
    assert (kind, id, json.loads(body)["value"]) == ("run", "ab12", 1)
    assert fresh.find("ab").id == "ab"  # exact before longer
    assert fresh.find("%").id == "%"
    assert fresh.find("cd", kind="fit").kind == "fit"


@pytest.mark.parametrize(("prefix", "message"), [("z", "no ids"), ("a", "2 ids .*ab; run ac"), ("", "3 ids")])
def test_find_refuses_none_and_several(fresh: Project, prefix: str, message: str) -> None:
    for id in ("ab", "ac", "d"):
        fresh.put("run", interval(1), id=id)
    with pytest.raises(ProjectError, match=message):
        fresh.find(prefix)


def put_fifty(folder: Path, writer: int) -> None:
    project = Project(folder)
    for i in range(50):
        project.put("interval", interval(i), id=f"{writer}-{i}")


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_four_processes_writing_at_once_lose_nothing(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = tmp_path / "made by whoever is first"
    if where == "postgresql":
        folder.mkdir()
        (folder / "ledger.url").write_text(request.getfixturevalue("postgres").new())
    writers = [SPAWN.Process(target=put_fifty, args=(folder, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    project = Project(folder, create=False)
    rows = list(project.ledger.rows("interval"))
    assert len(rows) == 200
    for writer in range(4):  # each one's in the order in which it wrote
        mine = [row.id for row in rows if row.id.startswith(f"{writer}-")]
        assert mine == [f"{writer}-{i}" for i in range(50)]


def test_a_ledger_that_is_held_too_long_is_said(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "WAIT_SECONDS", 0.2)
    waiting = Project(fresh.folder)
    with fresh.ledger._writer.begin():
        with pytest.raises(
            ProjectError, match=r"the ledger .* is locked: another process has held it for 0\.2 s"
        ) as caught:
            waiting.put("interval", interval(1), id="x")
        assert "run the same command again" in caught.value.hint
        assert waiting.all("interval", Interval) == []  # readers wait for nobody
    waiting.put("interval", interval(1), id="x")


def test_a_newer_ledger_is_refused(fresh: Project) -> None:
    sql(fresh, "UPDATE meta SET value = '7' WHERE key = 'schema_version'")
    message = r"was made by a newer isoflop \(schema 7, this one knows 1\)"
    with pytest.raises(ProjectError, match=message) as caught:
        Project(fresh.folder)
    assert "upgrade isoflop" in caught.value.hint


def test_an_older_ledger_is_migrated_once_or_not_at_all(
    fresh: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_note(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE records ADD COLUMN note TEXT"))

    def fail(connection: sa.Connection) -> None:
        raise RuntimeError("power cut")

    def columns() -> list[str]:
        return [column["name"] for column in sa.inspect(fresh.ledger._engine).get_columns("records")]

    fresh.put("interval", interval(1), id="x")
    monkeypatch.setattr(ledger, "MIGRATIONS", [*ledger.MIGRATIONS, add_note, fail])
    with pytest.raises(RuntimeError):
        Project(fresh.folder)
    assert "note" not in columns()
    monkeypatch.setattr(ledger, "MIGRATIONS", ledger.MIGRATIONS[:-1])
    for _ in range(2):
        assert Project(fresh.folder).get("interval", "x", Interval) == interval(1)
    assert "note" in columns()


def test_a_file_that_is_no_ledger_is_corrupt(own: Project) -> None:
    (own.folder / "ledger.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(CorruptError, match=r"ledger\.db is damaged: file is not a database"):
        Project(own.folder)


def test_a_truncated_ledger_is_corrupt(own: Project) -> None:
    for i in range(20):
        own.put("config", CorpusConfig(sources=("x" * 10_000,)), id=f"{i}")
    file = own.folder / "ledger.db"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CorruptError, match=r"ledger\.db is damaged: .*malformed"):
        Project(own.folder).all("config", CorpusConfig)


def test_a_changed_record_is_corrupt(fresh: Project) -> None:
    fresh.put("interval", interval(0.5), id="x")
    sql(fresh, "UPDATE records SET body = replace(body, '0.5', '0.6')")
    with pytest.raises(CorruptError, match=r"interval x in .* is damaged: its hash does not match"):
        fresh.get("interval", "x", Interval)


def test_a_record_that_is_no_text_is_corrupt(own: Project) -> None:
    own.put("interval", interval(0.5), id="x")
    sql(own, "UPDATE records SET body = CAST(x'ff' AS TEXT)")
    with pytest.raises(CorruptError, match=r"ledger\.db is damaged: Could not decode"):
        own.get("interval", "x", Interval)


def test_a_ledger_elsewhere_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    with pytest.raises(ProjectError, match="no project here"):
        Project(tmp_path / "project", url=url, create=False)
    Project(tmp_path / "project", url=url).put("interval", interval(1), id="x")
    again = Project(tmp_path / "project", url=url, create=False)
    assert again.latest("interval", Interval) == interval(1)
    written = (tmp_path / "project" / "ledger.url").stat().st_mtime_ns
    assert Project(tmp_path / "project").latest("interval", Interval) == interval(1)  # is remembered
    assert (tmp_path / "project" / "ledger.url").stat().st_mtime_ns == written  # a reader writes nothing
    assert not (tmp_path / "project" / "ledger.db").exists()


def test_a_second_ledger_does_not_hide_the_first(own: Project, tmp_path: Path) -> None:
    Project(own.folder, url=f"sqlite:///{own.folder}/ledger.db")
    for folder, first in [(own.folder, "ledger.db"), (tmp_path / "other", "a.db")]:
        if first == "a.db":
            Project(folder, url=f"sqlite:///{tmp_path}/a.db")
        with pytest.raises(ProjectError, match=rf"the ledger of {folder} is \S*{first}, not .*b\.db"):
            Project(folder, url=f"sqlite:///{tmp_path}/b.db")
    assert not (tmp_path / "b.db").exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("no url", "the ledger's URL cannot be read"),
        (
            "nosuchdatabase://me:secret@host/x",
            r"the ledger nosuchdatabase://me:\*\*\*@host/x cannot be opened",
        ),
        ("sqlite:////no/such/folder/x", "the ledger /no/such/folder/x cannot be used: unable to open"),
        ("postgresql://me:secret@nosuchhost.invalid/x", "nosuchhost.invalid/x cannot be used: failed to res"),
        ("postgres://me@nosuchhost.invalid/x?password=secret", "nosuchhost.invalid/x cannot be used"),
        ("postgresql://me:secret@127.0.0.1:1/x", "port 1 failed: Connection refused$"),
        ("postgresql://me:sec@ret@host/x", "the ledger's URL cannot be read"),
    ],
)
def test_a_ledger_that_cannot_be_opened_is_named_without_its_password(
    tmp_path: Path, url: str, says: str
) -> None:
    with pytest.raises(ProjectError, match=says) as caught:
        Project(tmp_path, url=url)
    assert not {"secret", "sec", "ret@"} & set(re.findall(r"\w+@?", caught.value.message + caught.value.hint))
    assert files(tmp_path) == []


def test_a_ledger_on_a_server_is_remembered_without_its_password(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD")
    name = postgres.new_name()
    with pytest.raises(ProjectError, match="no password supplied") as caught:
        Project(tmp_path / "project", url=postgres.url(name))
    assert "PGPASSWORD or ~/.pgpass" in caught.value.hint
    with pytest.raises(ProjectError, match="password authentication failed") as caught:
        Project(tmp_path / "project", url=postgres.url(name, "wrong"))
    assert "wrong" not in caught.value.message + caught.value.hint
    Project(tmp_path / "project", url=postgres.url(name, quote(PASSWORD, safe=""))).put("a", interval(1), "x")
    assert PASSWORD.encode() not in b"".join(f.read_bytes() for f in (tmp_path / "project").iterdir())
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert Project(tmp_path / "project", create=False).get("a", "x", Interval) == interval(1)
    assert Project(tmp_path / "another folder", url=postgres.url(name)).latest("a", Interval) == interval(1)


def put_again(folder: Path, writer: int) -> None:
    for i in range(25):
        Project(folder).put("interval", interval(i), id=f"{i}")


def test_machines_that_put_the_same_ids_at_once_keep_each_once(postgres: Server, tmp_path: Path) -> None:
    url = postgres.new()
    writers = []
    for number in range(4):  # each with a folder of its own
        folder = tmp_path / f"{number}"
        Project(folder, url=url)
        writers.append(SPAWN.Process(target=put_again, args=(folder, number)))
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    found = Project(tmp_path / "0").all("interval", Interval)
    assert sorted(record.value for record in found) == list(range(25))
    assert found[-1] == interval(24)


def test_a_server_that_is_stopped_in_mid_work_is_said_and_nothing_is_lost(
    postgres: Server, tmp_path: Path
) -> None:
    project = Project(tmp_path / "project", url=postgres.new())
    project.put("interval", interval(1), id="x")
    postgres.stop()
    try:
        with pytest.raises(ProjectError, match=r"the ledger postgresql.* cannot be used: [^\n]*$") as caught:
            project.put("interval", interval(2), id="y")
    finally:
        postgres.start()
    assert PASSWORD not in str(caught.value)
    assert project.all("interval", Interval) == [interval(1)]
    project.put("interval", interval(2), id="y")
    assert project.latest("interval", Interval) == interval(2)


def cut(project: Project) -> None:
    """Begin to delete every record, and lose the server."""
    with project.ledger._writer.begin() as connection:
        connection.execute(project.ledger._table.delete())
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_writer_that_was_cut_in_its_turn_leaves_nothing(postgres: Server, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", url=postgres.new())
    project.put("interval", interval(1), id="x")
    with pytest.raises(sa.exc.DBAPIError):
        cut(project)
    project.put("interval", interval(2), id="y")  # its turn is over
    assert project.all("interval", Interval) == [interval(1), interval(2)]


def test_a_full_disk_refuses_a_record_and_keeps_the_others(own: Project) -> None:
    own.put("interval", interval(1), id="x")

    def shrink(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    sa.event.listen(own.ledger._engine, "connect", shrink)
    with pytest.raises(ProjectError, match="disk is full"):
        own.put("config", CorpusConfig(sources=("x" * 100_000,)))
    assert Project(own.folder).all("interval", Interval) == [interval(1)]
