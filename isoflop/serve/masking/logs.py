"""No personal data in logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from isoflop.serve.masking.masker import KINDS, Masker

_FORMATTER = logging.Formatter()


@contextmanager
def masked_logs() -> Iterator[None]:
    """In this block personal data is masked in what records will show: message, arguments, traceback, stack.

    It is where records are made: some libraries have handlers of their own, which no filter of ours would
    see. What cannot be masked is not logged; a sentence says so.
    """
    masker, before = Masker(KINDS), logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        _mask(record, masker)
        return record

    logging.setLogRecordFactory(made)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


def _mask(record: logging.LogRecord, masker: Masker) -> None:
    try:
        message = masker.mask(record.getMessage()).text
        trace = record.exc_text or (_FORMATTER.formatException(record.exc_info) if record.exc_info else "")
        trace, stack = masker.mask(trace).text, masker.mask(record.stack_info or "").text
    except Exception as error:
        message = f"a record of {record.name} is left out: it could not be masked ({type(error).__name__})"
        trace = stack = ""
    record.msg, record.args, record.exc_info = message, None, None
    record.exc_text, record.stack_info = trace or None, stack or None
