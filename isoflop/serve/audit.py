"""The audit log: one line of JSON for each call, who and when and what model, but no text unless asked for.

A thread writes what has gathered, then has the disk confirm it (fsync) before it takes more: a call's line is
on disk moments after its end. A full file becomes FILE.1, and older ones are renamed likewise.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from isoflop.errors import ServeError
from isoflop.serve.calls import GATED, Call
from isoflop.serve.masking import KINDS, Masker
from isoflop.serve.settings import Settings

log = logging.getLogger(__name__)

MASKER = Masker(KINDS)  # of texts, whatever the server's policy for answers
WAITING = 10_000  # lines that may wait for the disk
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 5.0
CALL = b'"event": "call"'  # in each line of a call, and in no text: quotes in those are escaped
PATH_LENGTH = 200  # of what is no path of ours, and may be anything


class Audit:
    """Observer and gate. `failing` is why it cannot write now, `missing` the lines that it could not so far.

    Raises ServeError where the file cannot be written at the start.
    """

    def __init__(self, file: Path, settings: Settings) -> None:
        self.file, self.settings = file.absolute(), settings
        self.failing, self.missing = "", 0
        self._untold = 0  # of `missing`
        self._torn = False  # the file ends within a line
        self._lines = [_line("start", datetime.now(UTC))]
        self._closing, self._changed = False, threading.Condition()
        files = settings.audit_files
        self._files = RotatingFileHandler(self.file, backupCount=files, delay=True)  # for its renaming alone
        try:
            if self.file.exists() and not self.file.is_file():
                raise OSError(None, "it is not a file")
            handle = self._open()
            os.fchmod(handle, 0o600)
            os.close(handle)
        except OSError as exc:
            hint = "check the path and its owner, or name another file with --audit"
            raise ServeError(f"the audit log {file} cannot be written: {exc.strerror}", hint=hint) from exc
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    @property
    def policy(self) -> str:
        """What becomes of requests, in a sentence for who starts the server."""
        if self.settings.audit_full == "refuse":
            then = "refused (503)"
        else:
            then = "answered all the same, and their number is written when it can be"
        return f"Every call is written to {self.file}; while it cannot be, requests are {then}."

    def began(self, call: Call) -> None:
        """Nothing yet."""

    def ended(self, call: Call) -> None:
        line = _line("call", datetime.now(UTC), **_told(call, text=self.settings.audit_text))
        with self._changed:
            if len(self._lines) >= WAITING or call.error == GATED:  # those would fill what is full
                self._miss(1)
            else:
                self._lines.append(line)
                self._changed.notify()

    def refuses(self) -> str:
        behind = self.failing or len(self._lines) > WAITING // 2
        return "the audit log cannot be written now" if behind and self._strict else ""

    def close(self) -> None:
        """Write what waits, if the disk takes it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    @property
    def _strict(self) -> bool:
        return self.settings.audit_full == "refuse"

    def _miss(self, lines: int) -> None:
        self.missing += lines
        self._untold += lines

    def _work(self) -> None:
        rest, closing = b"", False
        while not closing:
            with self._changed:
                # Without more to write, nobody knows whether it could be; but who refuses gets no more.
                wait = RETRY_SECONDS if self.failing and self._strict else None
                self._changed.wait_for(lambda: self._lines or self._closing, wait)
                lines, self._lines = self._lines, []
            if lines or rest or self._strict:
                rest = self._write(rest + b"".join(lines))
            with self._changed:
                closing = self._closing and not self._lines
        if lost := rest.count(CALL) + self._untold:
            log.error("the audit log %s ends: %d calls are missing", self.file, lost)

    def _write(self, data: bytes) -> bytes:
        """What could not be written, and shall be tried again."""
        try:
            if self.file.exists() and self.file.stat().st_size + len(data) > self.settings.audit_bytes:
                self._files.doRollover()
            handle = self._open()
            try:
                while data:
                    written = os.write(handle, data)
                    self._torn = data[written - 1 : written] != b"\n"
                    data = data[written:]
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as exc:
            return self._failed(exc, data)
        self._went_well()
        return b""

    def _open(self) -> int:
        """Anew for each write: the file may have been moved by who collects it."""
        return os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _failed(self, exc: OSError, data: bytes) -> bytes:
        if not self.failing:
            log.error("the audit log %s cannot be written: %s. %s", self.file, exc.strerror, self.policy)
        with self._changed:
            self.failing = str(exc.strerror)
            if self._strict:
                return data
            keep = data.find(b"\n") + 1 if self._torn else 0  # the end of a line that has begun
            self._miss(data[keep:].count(CALL))
            return data[:keep]

    def _went_well(self) -> None:
        with self._changed:
            if self.failing:
                log.warning(
                    "the audit log %s is written again; %d calls are missing", self.file, self._untold
                )
            if self._untold:
                self._lines.insert(0, _line("missing", datetime.now(UTC), calls=self._untold))
            self.failing, self._untold = "", 0


def _line(event: str, at: datetime, **values: object) -> bytes:
    named = {"time": at.isoformat(timespec="milliseconds"), "event": event, **values}
    return json.dumps(named).encode() + b"\n"


def _told(call: Call, *, text: bool) -> dict[str, object]:
    ended = time.monotonic() if call.ended is None else call.ended
    return {
        "id": call.id,
        "key": call.key.id if call.key else None,
        "name": call.key.name if call.key else None,
        "route": call.route or call.path[:PATH_LENGTH],
        "model": call.model,
        "model_hash": call.model_hash,
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "seconds": round(ended - call.began, 6),
        "first_token_seconds": None if call.first is None else round(call.first - call.began, 6),
        "status": call.status,
        "error": call.error,
        "masked": dict(call.masked),
        **({"asked": _masked(call.asked), "answered": _masked(call.answered)} if text else {}),
    }


def _masked(text: str) -> str:
    try:
        return MASKER.mask(text).text
    except Exception as error:
        return f"left out, for it could not be masked ({type(error).__name__})"
