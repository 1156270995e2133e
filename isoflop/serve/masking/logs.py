"""No personal data in logs."""

from __future__ import annotations

import logging

from isoflop.serve.masking.masker import KINDS, Masker

_FORMATTER = logging.Formatter()


class LogFilter(logging.Filter):
    """Masks what a record will show: its message with its arguments, its traceback, its stack.

    On a handler it sees the records of every logger that the handler serves, on a logger its own alone. What
    cannot be masked is not logged; a sentence says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masker = Masker(KINDS)

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = self._masker.mask(record.getMessage()).text
            trace = record.exc_text or (
                _FORMATTER.formatException(record.exc_info) if record.exc_info else ""
            )
            trace, stack = self._masker.mask(trace).text, self._masker.mask(record.stack_info or "").text
        except Exception as error:
            message = (
                f"a record of {record.name} is left out: it could not be masked ({type(error).__name__})"
            )
            trace = stack = ""
        record.msg, record.args, record.exc_info = message, None, None
        record.exc_text, record.stack_info = trace or None, stack or None
        return True
