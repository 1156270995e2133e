"""Alerts by webhook, for servers that no Prometheus watches."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from isoflop.records import Record
from isoflop.serve.calls import Call
from isoflop.serve.drift import Prompt, Watch, prompts_differ, ratings_fall
from isoflop.serve.feedback import UP
from isoflop.serve.objectives import Objectives
from isoflop.serve.webhook import Webhook
from isoflop.served import now as utc

FIRING, RESOLVED = "firing", "resolved"
SHARE = 0.95  # of requests, whose first token the objective is of
KEPT = 100_000  # calls at most in the window


class Watching(Record):
    """How closely; times are in seconds."""

    every: float = 10.0  # it looks
    window: float = 300.0  # of the calls that it looks at
    least: int = 20  # calls in it, for a share to mean something
    cooldown: float = 1800.0  # before it says the same again
    reference: int = 500  # prompts, and 100 ratings, that later ones are compared with
    block: int = 200  # prompts, and 40 ratings, that are compared at once
    false_alarms: float = 0.001  # share of blocks that may seem to differ when nothing has changed


class Alert(Record):
    """What is posted; `text` is what Slack and its like show."""

    alert: str
    state: str
    text: str
    value: float | None  # None: resolved
    objective: float | None
    server: str
    at: str  # UTC, ISO 8601


class Broken(NamedTuple):
    name: str
    text: str
    value: float
    objective: float


class Seen(NamedTuple):
    """What the window has of a call."""

    ended: float
    first: float | None  # seconds to the first token
    failed: bool


class Alerts:
    """Watches calls (an Observer) and ratings while it is entered, and posts what breaks an objective."""

    def __init__(
        self, webhook: Webhook, promised: Objectives, *, server: str, watching: Watching | None = None
    ) -> None:
        self._webhook, self._promised, self._server = webhook, promised, server
        self._how = how = watching or Watching()
        self._calls: deque[Seen] = deque(maxlen=KEPT)
        self._prompts = Watch(prompts_differ(how.false_alarms), reference=how.reference, block=how.block)
        self._ratings = Watch(
            ratings_fall(how.false_alarms), reference=how.reference // 5, block=how.block // 5
        )
        self._told: dict[str, float] = {}  # when each alert was last delivered
        self._firing: set[str] = set()  # delivered, and not yet resolved

    def began(self, call: Call) -> None:
        call.characters = ()

    def ended(self, call: Call) -> None:
        if 400 <= call.status < 500:  # the client's own
            return
        now = time.monotonic() if call.ended is None else call.ended
        self._calls.append(Seen(now, None if call.first is None else call.first - call.began, call.failed))
        while self._calls[0].ended < now - self._how.window:
            self._calls.popleft()
        if call.model and call.prompt_tokens and not call.scored:
            self._prompts.add(Prompt(call.prompt_tokens, call.characters or ()))

    def rated(self, rating: str) -> None:
        self._ratings.add(rating == UP)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._how.every)
            now = time.monotonic()
            for alert in await asyncio.to_thread(self.due, now):  # the tests take milliseconds
                if await self._webhook.post(alert.model_dump(mode="json")):
                    self.delivered(alert, now)

    def due(self, now: float) -> list[Alert]:
        """What is to be told now: what newly breaks, or still does after the cool-down, and what is over."""
        broken = list(self._broken(now))
        found = [
            self._alert(b.name, FIRING, b.text, b.value, b.objective) for b in broken
            if now - self._told.get(b.name, -math.inf) >= self._how.cooldown
        ]  # fmt: skip
        over = sorted(self._firing - {b.name for b in broken})
        return found + [self._alert(name, RESOLVED, f"{name} is over", None, None) for name in over]

    def delivered(self, alert: Alert, now: float) -> None:
        """It need not be said again soon."""
        if alert.state == FIRING:
            self._told[alert.alert] = now
            self._firing.add(alert.alert)
        else:
            self._firing.discard(alert.alert)

    def _alert(self, name: str, state: str, text: str, value: float | None, objective: float | None) -> Alert:
        return Alert(
            alert=name, state=state, text=f"{self._server}: {text}", value=value, objective=objective,
            server=self._server, at=utc(),
        )  # fmt: skip

    def _broken(self, now: float) -> Iterator[Broken]:
        seen = [call for call in list(self._calls) if call.ended >= now - self._how.window]
        firsts = [call.first for call in seen if call.first is not None]
        when = f"in the last {self._how.window / 60:g} minutes"
        if len(firsts) >= self._how.least:
            first, promised = float(np.quantile(firsts, SHARE)), self._promised.first_token
            if first > promised:
                text = f"{when} {1 - SHARE:.0%} of requests had no first token in {first:.3g} s; "
                yield Broken("first-token-slow", f"{text}the objective is {promised:g} s", first, promised)
        if len(seen) >= self._how.least:
            share, promised = sum(call.failed for call in seen) / len(seen), self._promised.errors
            if share > promised:
                text = f"{when} {share:.1%} of {len(seen):,} requests failed; "
                yield Broken("errors", f"{text}the objective is {promised:.2%}", share, promised)
        for name, watch in (("prompts-changed", self._prompts), ("ratings-fell", self._ratings)):
            shift = watch.look()
            if shift is not None:
                text = f"{shift.words}: {shift.before:.3g} on average in the reference, {shift.now:.3g} now "
                yield Broken(name, f"{text}(p = {shift.p:.1g})", shift.now, shift.before)
