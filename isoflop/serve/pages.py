"""The page at /: plain files that need nothing from elsewhere, as the guard's content policy demands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from isoflop.serve.calls import call_of

FOLDER = Path(__file__).parent / "page"
PAGES = {
    "/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/stream.js": "stream.js",
    "/page.svg": "page.svg",
}  # fmt: skip


def page_router() -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)
    for path, name in PAGES.items():
        router.add_api_route(path, _sends(FOLDER / name), methods=["GET", "HEAD"])
    return router


def _sends(file: Path) -> Callable[[Request], FileResponse]:
    def send(request: Request) -> FileResponse:
        call_of(request.scope)  # now it has its route
        return FileResponse(file)

    return send
