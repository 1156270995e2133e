"""The project folder: a ledger of records, artifacts named by their content, one lock.

    PROJECT/ledger.db               every record, one row each; or, in its place,
    PROJECT/ledger.url              the PostgreSQL server that has them, without a password
    PROJECT/artifacts/NAME-HASH/    weights and other files
    PROJECT/.lock, .lock.owner      held by the one process that does the work; readers never need it

The lock is the folder's: machines with folders of their own may fill one ledger at the same time. Each trains
what the ledger has not when it looks; what two do at once is done twice and kept once.

A record that was put is on disk; an artifact's folder exists only when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
from filelock import FileLock, Timeout
from pydantic import ValidationError

from isoflop.errors import CorruptError, ProjectError
from isoflop.ledger import Ledger, Row, place_url, without_password
from isoflop.records import Record

LEDGER_URL = "ledger.url"
HASH_DIGITS = 16  # of a folder's content, in the names of artifacts

R = TypeVar("R", bound=Record)


class Project:
    """A folder that holds everything one study made: `folder` is its path, `ledger` its records.

    `url` puts the ledger in another database, which the folder remembers without the password. With
    `create=False` it must be there already.

    Raises:
        ProjectError: not a project, not writable, out of reach, made by a newer isoflop, or its ledger is
            elsewhere than `url` says.
        CorruptError: the ledger is damaged.
    """

    def __init__(self, folder: Path | str, *, url: str | None = None, create: bool = True) -> None:
        self.folder = Path(folder).expanduser()
        if create:
            with disk_errors(f"the project {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
        place = self._ledger_place(url)
        self.ledger = Ledger(place, create=create)
        if url is not None and self.folder.is_dir() and not (self.folder / LEDGER_URL).exists():
            atomic_write(self.folder / LEDGER_URL, without_password(place_url(url)).render_as_string())
        self.listeners: list[Callable[[str, str, Record], None]] = []  # told kind, id and record of each put

    def _ledger_place(self, url: str | None) -> Path | str:
        """Where the ledger is; a second one beside it would hide the first."""
        file, remembered = self.folder / "ledger.db", self.folder / LEDGER_URL
        known: Path | str | None = file if file.is_file() else None
        with suppress(FileNotFoundError, NotADirectoryError):
            known = remembered.read_text()
        if url is None:
            return known or file
        if known is not None and place_url(known) != without_password(place_url(url)):
            shown = place_url(url).render_as_string()
            raise ProjectError(
                f"the ledger of {self.folder} is {known}, not {shown}",
                hint="leave --ledger out, or use another --project",
            )
        return url

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
                target = folder / f"{name}-{content_hash(temp)[:HASH_DIGITS]}"
                try:
                    keep_folder(temp, target)
                except OSError as exc:  # it is there: same name, same content
                    if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    _fsync(folder)
            finally:
                shutil.rmtree(temp, ignore_errors=True)  # is gone already when all went well
        return target.relative_to(self.folder).as_posix()

    def verify_artifact(self, rel: str) -> None:
        """Check an artifact's files against the hash in its name.

        Raises:
            CorruptError: it is missing, or its content differs.
        """
        folder = self.folder / rel
        found = content_hash(folder)[:HASH_DIGITS] if folder.is_dir() else "missing"
        if found != folder.name.rpartition("-")[2]:
            hint = "delete the folder and make it again, or restore it from a copy"
            raise CorruptError(f"the artifact {folder} is damaged: its content's hash is {found}", hint=hint)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        ProjectError: its folder is not there, or the disk is full or not writable; the old content stays.
    """
    if not path.parent.exists():
        raise ProjectError(
            f"there is no folder {path.parent} for {path.name}", hint="make it, or check the path"
        )
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with disk_errors(f"the file {path}"):
        try:
            temp.write_bytes(data.encode() if isinstance(data, str) else data)
            _fsync(temp)
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
        _fsync(path.parent)


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the lines `sha256  relative/name` of a folder's files, sorted by name.

    The same as `find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` in that folder.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = []
    for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()):
        with (path / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_folder(temp: Path, target: Path) -> None:
    """Give a finished folder its name, all of it on disk first: `target` is whole, or not there.

    Raises OSError, EEXIST or ENOTEMPTY when another folder has the name.
    """
    for path in (*temp.rglob("*"), temp):
        _fsync(path)
    temp.rename(target)
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
