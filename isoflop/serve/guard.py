"""The door: who may ask, how much, and how often. Closed but for what it lets in."""

from __future__ import annotations

import base64
import binascii
import logging
import time
import traceback
from collections.abc import Sequence
from urllib.parse import urlsplit

from isoflop.errors import IsoflopError, ServeError
from isoflop.serve.calls import GATED, Call, Gate, Observer
from isoflop.serve.exchange import App, Exchange, Message, Receive, Refusal, Send
from isoflop.serve.keys import SCOPES, Key, KeyRefused, Keys
from isoflop.serve.rates import Rates
from isoflop.serve.settings import LOOPBACK, Settings

log = logging.getLogger(__name__)

LIVE = "/health/live"  # all that is answered without a key
FEEDBACK = "/v1/feedback"  # costs no computation, but room in the ledger
SOON = ("retry-after", "1")


class Guard:
    """ASGI middleware around an app: makes each request's `Call` (scope["state"]["call"]), tells observers.

    It answers for itself where a limit is broken or the app fails. Raises ServeError where it would be open
    to others than this machine.
    """

    def __init__(
        self, app: App, settings: Settings, keys: Keys | None, observers: Sequence[Observer] = ()
    ) -> None:
        if settings.open and settings.host not in LOOPBACK:
            hint = "leave --open out and make a key: isoflop keys new NAME"
            raise ServeError(f"a server on {settings.host} cannot be open: others could use it", hint=hint)
        if not settings.open and keys is None:
            raise ServeError(
                "a server needs keys", hint="name a --project, whose keys open it, or give --open"
            )
        self.app, self.settings, self.keys, self.observers = app, settings, keys, observers
        self.gates = [observer for observer in observers if isinstance(observer, Gate)]
        self.rates = Rates(settings.rate_storage)
        self.running = 0  # calls that compute

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        settings, call = self.settings, Call(path=scope["path"])
        scope.setdefault("state", {})["call"] = call
        sound = call.path.startswith("/v1/audio/")
        limit = settings.sound_bytes if sound else settings.body_bytes
        exchange = Exchange(scope, receive, send, call, most=limit, seconds=settings.read_seconds)
        if call.path == LIVE:
            await self._answer(exchange)
            return
        try:
            await self._admitted(exchange)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        finally:
            call.ended, call.error = time.monotonic(), exchange.error or call.error
            for observer in self.observers:
                observer.ended(call)

    async def _admitted(self, exchange: Exchange) -> None:
        """Let a call in, if it may, and count what it uses. Raises Refusal."""
        await self._admit(exchange)
        call, computes = exchange.call, _computes(exchange)
        if computes and self.running >= self.settings.concurrent:
            message = f"{self.running} requests are being answered, which is the most"
            raise Refusal(503, "overloaded", message, headers=[SOON])
        self.running += computes
        try:
            if computes and call.key is not None:
                exchange.told += await self.rates.admit(call.key)
            elif call.path == FEEDBACK and call.key is not None:
                await self.rates.admit_rating(call.key)
            for observer in self.observers:
                observer.began(call)
            await self._answer(exchange)
        finally:
            self.running -= computes
            if call.key is not None:
                await self.rates.spend(call.key, call.prompt_tokens + call.completion_tokens)

    async def _answer(self, exchange: Exchange) -> None:
        """The app's answer, or a sentence that there is none."""
        try:
            await self.app(exchange.scope, exchange.receive, exchange.send)
        except Exception as exc:
            if not exchange.over:  # else it found that the request was
                _log_failure(exchange.call, exc)
                await exchange.refuse(Refusal(500, "internal_error", "the server failed; its log says where"))

    async def _admit(self, exchange: Exchange) -> None:
        """Who may ask this. Raises Refusal."""
        for gate in self.gates:
            if why := gate.refuses():
                raise Refusal(503, GATED, why, headers=[SOON])
        if self.settings.open:
            _check_site(exchange)
        else:
            exchange.call.key = await self._key(exchange)
        exchange.check_announced()

    async def _key(self, exchange: Exchange) -> Key:
        """The key that came with the request, if it opens this path."""
        assert self.keys is not None
        sent = _sent_key(exchange)
        if sent is None:
            message = "an API key is needed: send it as Authorization: Bearer KEY"
            raise Refusal(401, "missing_api_key", message, headers=_challenges(exchange, ""))
        try:
            key = await self.keys.check(sent)
        except KeyRefused as exc:
            headers = _challenges(exchange, ', error="invalid_token"')
            raise Refusal(401, "invalid_api_key", str(exc), headers=headers) from exc
        except IsoflopError as exc:
            log.error("keys cannot be read: %s", exc.message)
            raise Refusal(503, "keys_unavailable", "keys cannot be checked now", headers=[SOON]) from exc
        wanted = _scopes(exchange.call.path)
        if not set(wanted) & set(key.scopes):
            exchange.call.key = key
            said = f'Bearer realm="isoflop", error="insufficient_scope", scope="{wanted[0]}"'
            message = f"this API key has no scope {' or '.join(wanted)}"
            raise Refusal(403, "insufficient_scope", message, headers=[("www-authenticate", said)])
        return key


def _computes(exchange: Exchange) -> bool:
    """Whether an engine may have to work for it; pages, lists of models and ratings need none."""
    path = exchange.call.path
    return exchange.scope["method"] == "POST" and _scopes(path) == ("infer",) and path != FEEDBACK


def _scopes(path: str) -> tuple[str, ...]:
    """Of which a key needs one."""
    first = path.split("/")[1] if path.startswith("/") else ""
    return {"metrics": ("metrics", "admin"), "admin": ("admin",), "health": SCOPES}.get(first, ("infer",))


def _sent_key(exchange: Exchange) -> str | None:
    """From `Bearer KEY`; or, where a browser gets something, from `Basic` as the password.

    Browsers add what they were once told to whatever another site's page makes them post, so that opens
    nothing that acts.
    """
    scheme, _, sent = exchange.headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return sent.strip()
    if scheme.lower() == "basic" and exchange.scope["method"] in ("GET", "HEAD"):
        try:
            return base64.b64decode(sent, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def _challenges(exchange: Exchange, error: str) -> list[tuple[str, str]]:
    """How to send a key; a browser that opens a page then asks its user for it."""
    found = [("www-authenticate", f'Bearer realm="isoflop"{error}')]
    if exchange.scope["method"] == "GET" and b"text/html" in exchange.headers.get(b"accept", b""):
        found.append(("www-authenticate", 'Basic realm="isoflop: any name, and an API key", charset="UTF-8"'))
    return found


def _check_site(exchange: Exchange) -> None:
    """Without keys, whatever page a browser on this machine shows could ask: by a name of its own that leads
    here, or by sending what it need not read the answer of. Raises Refusal."""
    host = exchange.headers.get(b"host", b"").decode("latin-1")
    origin = exchange.headers.get(b"origin")
    own = f"{exchange.scope.get('scheme', 'http')}://{host}"
    if _name(host) not in LOOPBACK or (origin is not None and origin.decode("latin-1") != own):
        raise Refusal(403, "other_site", "a server without keys answers only this machine's own requests")


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _log_failure(call: Call, exc: BaseException) -> None:
    """Where it failed, without its message: that may quote what was asked."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    frames = "".join(traceback.format_tb(exc.__traceback__))
    log.error("%s %s: %s\n%s", call.id, call.route or repr(call.path), type(exc).__name__, frames)
