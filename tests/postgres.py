"""A PostgreSQL server in a folder, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import count
from pathlib import Path

import pytest

USER, PASSWORD = "isoflop", "a secret/word"


def programs() -> Path | None:
    """The folder of the newest installed server's programs; distributions keep them off the path."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/postgres"), *Path("/usr").glob("pgsql-*/bin/postgres")]
    on_path = shutil.which("postgres")
    if on_path is not None:
        found.append(Path(on_path).resolve())
    return max((path.parent for path in found), key=lambda folder: folder.parent.name, default=None)


class Server:
    """Listens on a socket in its folder only; asks for a password."""

    def __init__(self, folder: Path) -> None:
        bin = programs()
        if bin is None:
            pytest.skip("no PostgreSQL server is installed here")
        self.bin, self.folder, self.numbers = bin, folder, count()
        self.as_user: list[str] = []
        if os.getuid() == 0:  # which the server refuses to be
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres")
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        self.call("initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256",
                  f"--username={USER}", f"--pwfile={folder}/password")  # fmt: skip

    def call(self, program: str, *words: str) -> None:
        command = [*self.as_user, str(self.bin / program), "-D", str(self.folder / "data"), *words]
        with (self.folder / "log").open("a") as log:  # a server that is started keeps the file open
            done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        assert done.returncode == 0, (self.folder / "log").read_text()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=40"
        self.call("pg_ctl", "-w", "-o", options, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-w", "-m", "immediate", "stop")

    def url(self, name: str, password: str = "", user: str = USER) -> str:
        """Of a database on it."""
        return f"postgresql://{user}{password and ':'}{password}@/{name}?host={self.folder}"

    def new(self) -> str:
        """The URL of a new, empty database."""
        return self.url(self.new_name())

    def new_name(self) -> str:
        import psycopg

        name = f"ledger{next(self.numbers)}"
        where = f"host={self.folder} user={USER} dbname=postgres"
        with psycopg.connect(where, password=PASSWORD, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return name
