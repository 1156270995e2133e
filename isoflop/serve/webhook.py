"""A POST of JSON to a URL that may itself be a secret: no log has more of it than the host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from isoflop.errors import IsoflopError

logger = logging.getLogger(__name__)

AGAIN = (408, 425, 429)  # and 5xx: statuses after which it is worth trying again


class Webhook:
    """Raises IsoflopError, without the URL, where it cannot be read."""

    def __init__(
        self, url: str, *, attempts: int = 5, wait_seconds: float = 1.0, timeout_seconds: float = 10.0
    ) -> None:
        try:
            parts = urlsplit(url)
            found = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            found = False
        if not found:
            raise IsoflopError(
                "the URL for alerts cannot be read", hint="write it as https://HOST/PATH, without spaces"
            )
        self.shown = f"{parts.scheme}://{parts.hostname}"
        self._url = url
        self._attempts, self._wait, self._timeout = attempts, wait_seconds, timeout_seconds

    async def post(self, document: Mapping[str, Any]) -> bool:
        """Whether it arrived; after an attempt that failed it waits, twice as long each time."""
        why = ""
        timeout = aiohttp.ClientTimeout(self._timeout)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as client:  # its proxies
            for attempt in range(self._attempts):
                if attempt:
                    await asyncio.sleep(self._wait * 2 ** (attempt - 1))
                try:
                    async with client.post(self._url, json=document, allow_redirects=False) as response:
                        status = response.status
                except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
                    why = type(error).__name__  # its words may have the URL
                    continue
                if 200 <= status < 300:
                    return True
                why = f"status {status}"
                if status < 500 and status not in AGAIN:
                    break
        logger.warning("an alert could not be delivered to %s: %s", self.shown, why)
        return False
