"""The project folder: a ledger of records, artifacts named by their content, one lock.

    PROJECT/ledger.db               every record, one row each (SQLite, or any SQLAlchemy URL)
    PROJECT/artifacts/NAME-HASH/    weights and other files
    PROJECT/.lock, .lock.owner      held by the one process that does the work; readers never need it

A record that was put is on disk; an artifact's folder exists only when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import psutil
from filelock import FileLock, Timeout
from pydantic import ValidationError

from isoflop.errors import CorruptError, IsoflopError, ProjectError
from isoflop.records import Record

if TYPE_CHECKING:  # SQLAlchemy takes 0.2 s to import, so only a ledger that is opened does it
    import sqlalchemy as sa

R = TypeVar("R", bound=Record)


class Row(NamedTuple):
    """A record as the ledger keeps it: `body` is its JSON."""

    kind: str
    id: str
    body: str


class Project:
    """A folder that holds everything one study made: `folder` is its path, `ledger` its records.

    `url` puts the ledger in another database. With `create=False` it must be there already.

    Raises:
        ProjectError: not a project, not writable, out of reach, or made by a newer isoflop.
        CorruptError: the ledger is damaged.
    """

    def __init__(self, folder: Path | str, *, url: str | None = None, create: bool = True) -> None:
        self.folder = Path(folder).expanduser()
        if create:
            with disk_errors(f"the project {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(url or self.folder / "ledger.db", create=create)
        self.listeners: list[Callable[[str, str, Record], None]] = []  # told kind, id and record of each put

    def put(self, kind: str, record: Record, id: str | None = None) -> str:
        """Keep `record` under `id` (else its own `id`, else its digest), which is returned.

        Putting the same id again replaces the record, and makes it the latest of its kind.
        """
        name: str = id or getattr(record, "id", None) or record.digest()
        self.ledger.write(Row(kind, name, record.to_json()))
        for tell in self.listeners:
            tell(kind, name, record)
        return name

    def get(self, kind: str, id: str, cls: type[R]) -> R | None:
        """The record, or None."""
        return next(self._records(cls, self.ledger.rows(kind, id=id)), None)

    def all(self, kind: str, cls: type[R]) -> list[R]:
        """Every record of a kind, in the order in which they were put."""
        return list(self._records(cls, self.ledger.rows(kind)))

    def latest(self, kind: str, cls: type[R]) -> R | None:
        """The record of a kind that was put last, or None."""
        return next(self._records(cls, self.ledger.rows(kind, newest=True)), None)

    def find(self, id_prefix: str, *, kind: str | None = None) -> Row:
        """The one record whose id is `id_prefix`, or else starts with it.

        Raises:
            ProjectError: none, or several.
        """
        found = list(self.ledger.rows(kind, prefix=id_prefix))
        rows = [row for row in found if row.id == id_prefix] or found
        if len(rows) == 1:
            return rows[0]
        some = "".join(f"; {row.kind} {row.id}" for row in rows[:5])
        message = f"{id_prefix!r} begins {len(rows) or 'no'} ids in {self.folder}{some}"
        hint = "write more of the id, or name the kind" if rows else "check the id and the project"
        raise ProjectError(message, hint=hint)

    def delete(self, kind: str, id: str) -> None:
        """Forget a record, if there is one."""
        self.ledger.delete(kind, id)

    def _records(self, cls: type[R], rows: Iterator[Row]) -> Iterator[R]:
        for row in rows:
            try:
                yield cls.from_json(row.body)
            except ValidationError as exc:
                why = ": ".join(str(exc).splitlines()[1:3])  # the first field that does not fit
                message = f"{row.kind} {row.id} in {self.ledger.name} is not a {cls.__name__}: {why}"
                hint = "another version of isoflop wrote it: use that version, or a new project folder"
                raise ProjectError(message, hint=hint) from exc

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that works in this project.

        Raises:
            ProjectError: another process is (its number and machine are in the message).
        """
        owner = self.folder / ".lock.owner"
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            with disk_errors(f"the project {self.folder}"):
                lock.acquire()
        except Timeout:
            user = "another process"
            with suppress(FileNotFoundError):  # it has only just started, or only just ended
                user = owner.read_text()
            hint = "wait until it has finished, stop it, or use another --project"
            raise ProjectError(f"the project {self.folder} is in use by {user}", hint=hint) from None
        try:
            atomic_write(owner, f"process {os.getpid()} on {socket.gethostname()}")
            self._sweep()
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def _sweep(self) -> None:
        """Delete what killed writers of this machine left behind."""
        for temp in self.folder.glob(f"artifacts/.tmp-{socket.gethostname()}-*-*"):
            if not psutil.pid_exists(int(temp.name.rsplit("-", 2)[1])):
                shutil.rmtree(temp, ignore_errors=True)

    def add_artifact(self, name: str, write: Callable[[Path], object]) -> str:
        """Keep the files that `write(folder)` puts in an empty folder; returns `artifacts/NAME-HASH`.

        The folder appears whole or not at all, and the same content twice is kept once.

        Raises:
            ProjectError: the name cannot be a folder's, or the disk is full or not writable.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ProjectError(f"an artifact cannot be named {name!r}", hint="use letters, digits and . _ -")
        folder = self.folder / "artifacts"
        temp = folder / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
        with disk_errors(f"the artifact {name} in {folder}"):
            try:
                temp.mkdir(parents=True)
                write(temp)
                target = folder / f"{name}-{content_hash(temp)[:16]}"
                for path in (*temp.rglob("*"), temp):
                    _fsync(path)
                _rename_unless_there(temp, target)
            finally:
                shutil.rmtree(temp, ignore_errors=True)  # is gone already when all went well
        return target.relative_to(self.folder).as_posix()

    def verify_artifact(self, rel: str) -> None:
        """Check an artifact's files against the hash in its name.

        Raises:
            CorruptError: it is missing, or its content differs.
        """
        folder = self.folder / rel
        found = content_hash(folder)[:16] if folder.is_dir() else "missing"
        if found != folder.name.rpartition("-")[2]:
            hint = "delete the folder and make it again, or restore it from a copy"
            raise CorruptError(f"the artifact {folder} is damaged: its content's hash is {found}", hint=hint)


class Ledger:
    """The table of records, in any database that SQLAlchemy knows; safe for many writers at once.

    Each call is one short transaction on its own connection, so a ledger crosses forks and threads.
    """

    def __init__(self, place: Path | str, *, create: bool) -> None:
        import sqlalchemy as sa

        self.name = "of that URL"
        try:
            file = isinstance(place, Path)
            url = sa.URL.create("sqlite", database=str(place)) if file else sa.make_url(str(place))
            self.name = url.render_as_string().removeprefix("sqlite:///")  # without the password
            self._engine = _engine(url)
        except (sa.exc.SQLAlchemyError, ImportError) as exc:
            hint = "give a SQLAlchemy URL, such as postgresql+psycopg://HOST/NAME, and install its driver"
            raise ProjectError(f"the ledger {self.name} cannot be opened: {exc}", hint=hint) from exc
        self._writer = self._engine.execution_options(immediate=True)
        self._table = _tables()[0]
        with self._errors():
            self._open(create, missing=isinstance(place, Path) and not place.is_file())

    def _open(self, create: bool, missing: bool) -> None:
        version, known = 0, len(MIGRATIONS)
        if not missing:
            with self._engine.connect() as connection:
                version = _version(connection)
        if version > known:
            made = f"was made by a newer isoflop (schema {version}, this one knows {known})"
            hint = "upgrade isoflop (pip install --upgrade isoflop), or use another project"
            raise ProjectError(f"the ledger {self.name} {made}", hint=hint)
        if version == 0 and not create:
            hint = "check the path; `isoflop run --project FOLDER` makes a project"
            raise ProjectError(f"there is no project here: {self.name} is not a ledger", hint=hint)
        if version < known:
            self._migrate()

    def _migrate(self) -> None:
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # is kept in the file
        meta = _tables()[1]
        with self._writer.begin() as connection:
            for step in MIGRATIONS[_version(connection) :]:
                step(connection)
            connection.execute(meta.delete().where(meta.c.key == "schema_version"))
            connection.execute(meta.insert().values(key="schema_version", value=str(len(MIGRATIONS))))

    def write(self, row: Row) -> None:
        """Insert or replace one row, later than every other of its kind."""
        table, now = self._table, time.time()
        peers = table.select().where(table.c.kind == row.kind)
        with self._errors(), self._writer.begin() as connection:
            last = connection.execute(peers.order_by(table.c.created.desc()).limit(1)).first()
            created = max(now, math.nextafter(last.created, math.inf)) if last else now
            connection.execute(table.delete().where(table.c.kind == row.kind, table.c.id == row.id))
            values = {**row._asdict(), "sha256": _sha256(row.body), "created": created}
            connection.execute(table.insert().values(values))

    def rows(
        self, kind: str | None, *, id: str | None = None, prefix: str = "", newest: bool = False
    ) -> Iterator[Row]:
        """The rows of a kind, an id or its prefix, oldest first; or the newest only."""
        table = self._table
        wanted = [table.c[name] == value for name, value in (("kind", kind), ("id", id)) if value is not None]
        query = table.select().where(table.c.id.startswith(prefix, autoescape=True), *wanted)
        query = query.order_by(table.c.created.desc()).limit(1) if newest else query.order_by("created")
        with self._errors(), self._engine.connect() as connection:
            found = connection.execute(query).all()
        for row in found:
            if _sha256(row.body) != row.sha256:
                message = f"the record {row.kind} {row.id} in {self.name} is damaged: its hash does not match"
                hint = "restore the ledger from a copy, or delete this record and make it again"
                raise CorruptError(message, hint=hint)
            yield Row(row.kind, row.id, row.body)

    def delete(self, kind: str, id: str) -> None:
        """Remove one row, if it is there."""
        table = self._table
        with self._errors(), self._writer.begin() as connection:
            connection.execute(table.delete().where(table.c.kind == kind, table.c.id == id))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say in a sentence what the database means."""
        from sqlalchemy.exc import DBAPIError

        try:
            yield
        except DBAPIError as exc:
            raise _explain(self.name, exc.orig) from exc


def _create_tables(connection: sa.Connection) -> None:
    _tables()[0].metadata.create_all(connection)


# The schema's version is the number of steps done. Never change a step: append one.
MIGRATIONS: list[Callable[[sa.Connection], None]] = [_create_tables]


def _tables() -> tuple[sa.Table, sa.Table]:
    """The tables `records` and `meta`."""
    from sqlalchemy import Column, Double, Index, MetaData, String, Table, Text

    records = Table(
        "records",
        MetaData(),
        Column("kind", String(64), primary_key=True),
        Column("id", String(128), primary_key=True),
        Column("body", Text, nullable=False),  # JSON
        Column("sha256", String(64), nullable=False),  # of the body
        Column("created", Double, nullable=False),  # seconds since 1970, rising within a kind
        Index("records_by_age", "kind", "created"),
    )
    key, value = Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
    return records, Table("meta", records.metadata, key, value)


def _engine(url: sa.URL) -> sa.Engine:
    import sqlalchemy as sa

    sqlite = url.get_backend_name() == "sqlite"  # there a read locks nothing, and a write waits its turn
    options = {"isolation_level": None, "timeout": 60.0} if sqlite else {}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=options)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if sqlite and connection.get_execution_options().get("immediate"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _version(connection: sa.Connection) -> int:
    import sqlalchemy as sa

    if not sa.inspect(connection).has_table("meta"):
        return 0
    meta = _tables()[1]
    return int(connection.execute(meta.select().where(meta.c.key == "schema_version")).one().value)


def _explain(ledger: str, cause: BaseException | None) -> IsoflopError:
    code = getattr(cause, "sqlite_errorname", "")
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or "Could not decode" in str(cause):
        hint = "restore it from a copy; or move it away and start again, the artifacts are kept"
        return CorruptError(f"the ledger {ledger} is damaged: {cause}", hint=hint)
    hint = "check that its disk has room, its folder can be written, its server answers"
    return ProjectError(f"the ledger {ledger} cannot be used: {cause}", hint=hint)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        ProjectError: the disk is full or not writable; the old content is still there.
    """
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with disk_errors(f"the file {path}"):
        try:
            temp.write_bytes(data.encode() if isinstance(data, str) else data)
            _fsync(temp)
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
        _fsync(path.parent)


def content_hash(folder: Path) -> str:
    """SHA-256 of the lines `sha256  relative/name` of the folder's files, sorted by name.

    The same as `find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` in that folder.
    """
    lines = []
    for name in sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return _sha256("".join(lines))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_unless_there(temp: Path, target: Path) -> None:  # same name, same content
    try:
        temp.rename(target)
    except OSError as exc:
        if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    _fsync(target.parent)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Say in a sentence that the disk refuses; writers in Rust or C++ raise their own types of error."""
    try:
        yield
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
        raise ProjectError(f"{what} cannot be written: {exc}", hint="check the path and its owner") from exc
    except Exception as exc:
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(exc, "errno", None) in full or any(os.strerror(code) in str(exc) for code in full):
            hint = "free some space and run the same command again: what is finished is kept"
            raise ProjectError(f"the disk is full: {what} could not be written", hint=hint) from exc
        raise
