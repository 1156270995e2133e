"""What a server is started with."""

from __future__ import annotations

from pathlib import Path

from isoflop.records import Record

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(Record):
    """Limits are for each request, unless they say otherwise; 0 is never unlimited."""

    host: str = "127.0.0.1"
    port: int = 8000
    open: bool = False  # no keys, which is for loopback alone
    body_bytes: int = 1_000_000
    sound_bytes: int = 25_000_000  # of an upload to /v1/audio
    prompt_tokens: int | None = None  # None: what the engine holds
    completion_tokens: int | None = None  # None: what the engine holds
    answers: int = 8  # n, and texts of one request times 16
    concurrent: int = 64  # requests at once, in all; more are told to come again
    read_seconds: float = 10.0  # in which a client has to send its request
    seconds: float = 300.0  # that an answer may take
    mask: tuple[str, ...] = ()  # kinds of personal data that are masked in every prompt and answer
    vllm_names: bool = False  # metrics also under vLLM's own names
    audit: Path | None = None  # file of the audit log
    audit_text: bool = False  # also what was asked and answered, masked
    audit_full: str = "refuse"  # or "continue": what to do with requests when it cannot be written
    certificate: Path | None = None
    certificate_key: Path | None = None
    drain_seconds: float = 30.0  # that answers have to end at shutdown
