"""The server's socket and its loop: uvicorn, with what it does in silence made safe."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any

import uvicorn
from fastapi import APIRouter
from starlette.types import ASGIApp

from isoflop.errors import ServeError
from isoflop.interrupt import ASKING
from isoflop.serve.app import build_app
from isoflop.serve.connections import bounded
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.masking import masked_logs
from isoflop.serve.opening import closed
from isoflop.serve.settings import Settings

KEEP_ALIVE = 30  # seconds that a connection may wait for its next request
BACKLOG = 2048
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # where all addresses are reached from here


def serve(
    gateway: Gateway, opening: Callable[[], Awaitable[dict[str, Model]]], tell: Callable[[str], None], *,
    more: Sequence[APIRouter] = (), beside: Sequence[AbstractAsyncContextManager[Any]] = (),
) -> None:  # fmt: skip
    """Open the gateway's models, `tell` its URL, and serve until SIGINT or SIGTERM.

    The port is taken first: clients wait while models load. `more` are further routes, and `beside` are
    entered while it serves. Logs go to stderr, without personal data. Raises ServeError where the server
    would be open to others, or cannot listen.
    """
    app, settings = build_app(gateway, more), gateway.settings
    check_certificate(settings)
    logging.basicConfig(level=logging.WARNING)
    with masked_logs(), listening(settings) as taken:
        how = config(app, settings)
        with asyncio.Runner(loop_factory=how.get_loop_factory()) as runner:  # uvloop, where there is one
            runner.run(_serve(gateway, uvicorn.Server(how), taken, opening, tell, beside))


async def _serve(
    gateway: Gateway, server: uvicorn.Server, taken: socket.socket,
    opening: Callable[[], Awaitable[dict[str, Model]]], tell: Callable[[str], None],
    beside: Sequence[AbstractAsyncContextManager[Any]],
) -> None:  # fmt: skip
    gateway.models = await opening()
    try:
        with _ends_in_order():
            tell(url(gateway.settings, taken))
            async with AsyncExitStack() as entered:
                for each in beside:
                    await entered.enter_async_context(each)
                await server.serve(sockets=[taken])
    finally:
        await closed(gateway.models)


def config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """No word of what serves, no trust in headers about where a request came from, an end to waiting."""
    return uvicorn.Config(
        app,
        http=bounded(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The server's socket. Raises ServeError."""
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0][0]
        taken = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ServeError(
            f"{host} port {port} cannot be served at: {error.strerror or error}",
            hint="end what listens there, or give another --port; 0 takes a free one",
        ) from None
    with taken:
        yield taken


def check_certificate(settings: Settings) -> None:
    """Raises ServeError where the certificate and its key cannot be used."""
    if settings.certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.certificate, settings.certificate_key
        )
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"the certificate {settings.certificate} cannot be used: {error.strerror or error}",
            hint="give --certificate and --certificate-key, both PEM files, that belong together",
        ) from None


def url(settings: Settings, taken: socket.socket) -> str:
    """Where the server is for a client on this machine."""
    host = ANYWHERE.get(settings.host, settings.host)
    scheme = "http" if settings.certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{taken.getsockname()[1]}"


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """uvicorn hears the signals that ask to end, and raises them again when done: in this block in vain."""
    before = {number: signal.signal(number, lambda *_: None) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
