"""What a server is started with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isoflop.records import Record
from isoflop.serve.replicas.counts import Replicas

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOSS_INCREASE = 0.01  # share of a model's loss that what it is served as may have more, as of `improve`


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
    rate_storage: str = "memory://"  # of keys' limits: redis://HOST:PORT where several servers share them
    read_seconds: float = 10.0  # in which a client has to send its request, and takes up some of its answer
    seconds: float = 300.0  # that an answer may take
    mask: tuple[str, ...] = ()  # kinds of personal data that are masked in every prompt and answer
    vllm_names: bool = False  # metrics also under vLLM's own names
    audit: Path | None = None  # file of the audit log
    audit_text: bool = False  # also what was asked and answered, masked
    audit_full: Literal["refuse", "continue"] = "refuse"  # requests, when it cannot be written
    audit_bytes: int = 100_000_000  # of the audit log before a new file is begun
    audit_files: int = 10  # older ones that are kept
    certificate: Path | None = None
    certificate_key: Path | None = None
    replicas: Replicas | None = None  # None: models are opened in this process
    drain_seconds: float = 30.0  # that answers have to end at shutdown
