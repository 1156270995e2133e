"""The ledger: a table of records that many processes, on many machines, may write at once.

SQLite in a file, or a PostgreSQL server by its URL. Writers take turns, so that the order of records is that
in which they were put, whatever the machines' clocks say; readers wait for nobody.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from isoflop.errors import CorruptError, IsoflopError, ProjectError

if TYPE_CHECKING:  # SQLAlchemy takes 0.2 s to import, so only a ledger that is opened does it
    import sqlalchemy as sa


LOCK_NOT_AVAILABLE = "55P03"  # as PostgreSQL says that a lock was waited for in vain
WAIT_SECONDS = 60.0  # of a writer for its turn; then whoever has the ledger is not coming back


def _backend(name: str) -> tuple[dict[str, Any], str]:
    """How an engine is made, and what a writer says first, to have its turn.

    Its turn begins with what was put before, which a transaction of PostgreSQL sees at no higher level of
    isolation.
    """
    if name == "sqlite":
        return {"connect_args": {"isolation_level": None, "timeout": WAIT_SECONDS}}, "BEGIN IMMEDIATE"
    if name == "postgresql":
        wait = f"{1000 * WAIT_SECONDS:.0f}ms"
        return (
            {
                "connect_args": {"connect_timeout": 10, "client_encoding": "utf8"},
                "isolation_level": "READ COMMITTED",
            },
            f"SET LOCAL lock_timeout = '{wait}'; SET LOCAL idle_in_transaction_session_timeout = '{wait}'; "
            "SELECT pg_advisory_xact_lock(hashtext('isoflop ledger'))",
        )
    return {}, ""


class Row(NamedTuple):
    """A record as the ledger keeps it: `body` is its JSON."""

    kind: str
    id: str
    body: str


class Ledger:
    """The table of records, in SQLite or PostgreSQL; safe for many writers at once.

    Each call is one short transaction on its own connection, so a ledger crosses forks and threads. `name`
    says where it is, without a password.
    """

    def __init__(self, place: Path | str, *, create: bool) -> None:
        import sqlalchemy as sa

        url = place_url(place)
        self.name = url.render_as_string().removeprefix("sqlite:///")  # without the password
        try:
            self._engine = _engine(url)
        except (sa.exc.SQLAlchemyError, ImportError) as exc:
            message = f"the ledger {self.name} cannot be opened: {exc}"
            raise ProjectError(message, hint="install its driver: pip install 'isoflop[postgres]'") from exc
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

    def write(self, rows: Sequence[Row]) -> None:
        """Insert or replace rows in one transaction, each later than every other of its kind."""
        import sqlalchemy as sa

        table, now = self._table, time.time()
        with self._errors(), self._writer.begin() as connection:
            for row in rows:
                of_kind = table.c.kind == row.kind
                last = connection.scalar(sa.select(sa.func.max(table.c.created)).where(of_kind))
                created = now if last is None else max(now, math.nextafter(last, math.inf))
                connection.execute(table.delete().where(of_kind, table.c.id == row.id))
                values = {**row._asdict(), "sha256": _sha256(row.body), "created": created}
                connection.execute(table.insert(), values)

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
    def kept_open(self) -> Iterator[None]:
        """For many writes: SQLite does more at the end of a file's last connection than in a transaction."""
        if self._engine.dialect.name != "sqlite":
            yield
            return
        with self._errors():
            connection = self._engine.connect()
            _version(connection)  # opens the file, and leaves no transaction open
        try:
            yield
        finally:
            connection.close()

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

    options, take_turn = _backend(url.get_backend_name())
    engine = sa.create_engine(url, poolclass=sa.NullPool, **options)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if take_turn and connection.get_execution_options().get("immediate"):
            connection.exec_driver_sql(take_turn)

    return engine


def _version(connection: sa.Connection) -> int:
    import sqlalchemy as sa

    if not sa.inspect(connection).has_table("meta"):
        return 0
    meta = _tables()[1]
    return int(connection.execute(meta.select().where(meta.c.key == "schema_version")).one().value)


def place_url(place: Path | str) -> sa.URL:
    """The URL of a ledger's place: a file for SQLite, or a SQLAlchemy URL, where postgresql:// will do.

    Raises ProjectError, which does not repeat it, when it is no URL or a password in it breaks it.
    """
    import sqlalchemy as sa

    if isinstance(place, Path):
        return sa.URL.create("sqlite", database=str(place.absolute()))
    try:
        url = sa.make_url(place.replace("postgres://", "postgresql://", 1))
    except (sa.exc.ArgumentError, ValueError):
        url = None
    sqlite = url is not None and url.drivername.startswith("sqlite")
    if url is None or (not sqlite and "@" in f"{url.host} {url.database} {url.query}"):
        hint = "write it as postgresql://USER@HOST:PORT/NAME; in a password, @ is written as %40"
        raise ProjectError("the ledger's URL cannot be read", hint=hint)
    if sqlite and url.database:
        return url.set(database=str(Path(url.database).absolute()))
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    hidden = url.query.get("password")
    if isinstance(hidden, str):  # where SQLAlchemy would print it
        url = url.difference_update_query(["password"]).set(password=hidden)
    return url


def without_password(url: sa.URL) -> sa.URL:
    """The same place, fit to be shown or stored."""
    return type(url).create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)


def _explain(ledger: str, cause: BaseException | None) -> IsoflopError:
    code = getattr(cause, "sqlite_errorname", "")
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or "Could not decode" in str(cause):
        hint = "restore it from a copy; or move it away and start again, the artifacts are kept"
        return CorruptError(f"the ledger {ledger} is damaged: {cause}", hint=hint)
    if code.startswith("SQLITE_BUSY") or getattr(cause, "sqlstate", "") == LOCK_NOT_AVAILABLE:
        return ProjectError(
            f"the ledger {ledger} is locked: another process has held it for {WAIT_SECONDS:g} s",
            hint="end that process if it hangs, and run the same command again: what is finished is kept",
        )
    why = " ".join(str(cause).strip().partition("\n")[0].split())  # servers and drivers add advice
    if "://" in ledger:
        hint = "check its server, user and NAME; the password is read from PGPASSWORD or ~/.pgpass"
    else:
        hint = "check that its disk has room and its folder can be written"
    return ProjectError(f"the ledger {ledger} cannot be used: {why}", hint=hint)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
