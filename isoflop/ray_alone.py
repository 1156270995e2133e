"""Ray on this machine, for nobody else: whoever reaches it can run what they like."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL = "local"  # the address of Ray on this machine


@contextmanager
def ray_alone() -> Iterator[None]:
    """Ray that is started in this block keeps to loopback and asks for a token; it must not be imported
    before, for it reads the first of these as it is."""
    before = dict(os.environ)
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # off, Ray keeps to loopback, on Linux too
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_AUTO_CONNECT": "0",  # else what still runs as it ends would start another one
    }  # fmt: skip
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
