"""The audit log: one line of JSON for each call, who and when and what model, but no text unless asked for.

A thread masks and writes what has gathered, then has the disk confirm it (fsync) before it takes more: a
call's line is on disk moments after its end. A full file becomes FILE.1, and older ones are renamed likewise.
Calls without a known key (401), which anybody can make, are counted: one line a second tells how many.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from isoflop.errors import ServeError
from isoflop.serve.calls import GATED, Call
from isoflop.serve.masking import KINDS, Masker
from isoflop.serve.meters import UNMATCHED
from isoflop.serve.settings import Settings

log = logging.getLogger(__name__)

MASKER = Masker(KINDS)  # of texts, whatever the server's policy for answers
WAITING = 10_000  # lines that may wait for the disk
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 5.0
CALL = b'"event": "call"'  # in each line of a call, and in no text: quotes in those are escaped
REFUSED_SECONDS = 1.0
TEXTS = ("asked", "answered")  # of a call, in lists
Values = dict[str, Any]


class Audit:
    """Observer and gate. `failing` is why it cannot write now, `missing` the lines that it could not so far.

    Raises ServeError where the file cannot be written at the start.
    """

    def __init__(self, file: Path, settings: Settings) -> None:
        self.file, self.settings = file.absolute(), settings
        self.failing, self.missing = "", 0
        self._untold = 0  # of `missing`
        self._torn = False  # the file ends within a line
        self._waiting = [_values("start")]  # lines
        self._refused, self._told_refused = 0, -math.inf  # calls, and when their number was last written
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
        with self._changed:
            if call.status == 401:
                self._refused += 1
            elif len(self._waiting) >= WAITING or call.error == GATED:  # those would fill what is full
                self._miss(1)
                return
            else:
                self._waiting.append(_values("call", **_told(call, text=self.settings.audit_text)))
            self._changed.notify()

    def refuses(self) -> str:
        behind = self.failing or len(self._waiting) > WAITING // 2
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
                self._changed.wait_for(
                    lambda: self._waiting or self._closing or self._due(), self._patience()
                )
                waiting, self._waiting = self._waiting, []
                if self._due() or (self._closing and self._refused):
                    waiting.append(_values("refused", calls=self._refused))
                    self._refused, self._told_refused = 0, time.monotonic()
            if waiting or rest or self._strict:
                rest = self._write(rest + b"".join(map(_line, waiting)))
            with self._changed:
                closing = self._closing and not self._waiting and not self._refused
        if lost := rest.count(CALL) + self._untold:
            log.error("the audit log %s ends: %d calls are missing", self.file, lost)

    def _due(self) -> bool:
        """Whether the number of refused calls is to be written. While none can, they are counted alone."""
        passed = time.monotonic() - self._told_refused
        return self._refused > 0 and not self.failing and passed >= REFUSED_SECONDS

    def _patience(self) -> float | None:
        """Seconds after which to look whether something is to be done, though nobody says so."""
        # Without more to write, nobody knows whether it could be; but who refuses gets no more.
        if self.failing and self._strict:
            return RETRY_SECONDS
        left = self._told_refused + REFUSED_SECONDS - time.monotonic()
        return left if left > 0 else None

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
                self._waiting.insert(0, _values("missing", calls=self._untold))
            self.failing, self._untold = "", 0


def _values(event: str, **values: Any) -> Values:
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}


def _line(values: Values) -> bytes:
    """A line of the log; texts in it are masked here, which takes longer than all else."""
    texts = {name: [_masked(text) for text in values[name]] for name in TEXTS if name in values}
    return json.dumps({**values, **texts}).encode() + b"\n"


def _told(call: Call, *, text: bool) -> Values:
    ended = time.monotonic() if call.ended is None else call.ended
    return {
        "id": call.id,
        "key": call.key.id if call.key else None,
        "name": call.key.name if call.key else None,
        "route": call.route or UNMATCHED,
        "model": call.model,
        "model_hash": call.model_hash,
        "role": call.role,
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "seconds": round(ended - call.began, 6),
        "first_token_seconds": None if call.first is None else round(call.first - call.began, 6),
        "status": call.status,
        "error": call.error,
        "masked": dict(call.masked),
        **(_texts(call) if text else {}),
    }


def _texts(call: Call) -> Values:
    return {"asked": call.asked, "answered": [call.answered[n] for n in sorted(call.answered)]}


def _masked(text: str) -> str:
    try:
        return MASKER.mask(text).text
    except Exception as error:
        return f"left out, for it could not be masked ({type(error).__name__})"
