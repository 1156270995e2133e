"""Server-sent events, made cheaply: what all chunks of an answer share is written once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TYPE = "text/event-stream"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # proxies hold streams back otherwise
]
DONE = "data: [DONE]\n\n"
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
HOLE = "\x00"  # in no document: JSON writes it otherwise


def event(document: Mapping[str, Any]) -> str:
    """A document as one event."""
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n"


def around(document: Mapping[str, Any]) -> tuple[str, str]:
    """An event before and after the value of its one HOLE."""
    before, _, after = event(document).partition(json.dumps(HOLE))
    return before, after
