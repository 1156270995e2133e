"""What went wrong, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from isoflop.serve.calls import call_of
from isoflop.serve.protocol import EngineError, RequestError

RETRY_SECONDS = 1  # after which a request that found no engine may be sent again
TYPES = {401: "authentication_error", 403: "permission_error"}  # beside the two usual ones
CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 415: "unsupported_media_type"}
WORDS = {404: "there is no {path}", 405: "{path} does not take {method}"}

log = logging.getLogger(__name__)


def failure(
    message: str, *, status: int, code: str | None = None, param: str | None = None, kind: str | None = None
) -> dict[str, Any]:
    """The body of an answer that is an error; `kind` is its type where the status does not tell it."""
    kind = kind or TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def failed(
    message: str, *, status: int, code: str | None = None, param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """An answer that is an error."""
    body = failure(message, status=status, code=code, param=param)
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def described(error: Exception) -> RequestError:
    """Any error as what a client is told of it; of what nobody foresaw it is told nothing, but the log is."""
    match error:
        case RequestError():
            return error
        case EngineError():
            return RequestError(f"{error}; send the request again", status=503, code="engine_failed")
        case TimeoutError():
            return RequestError(
                "the answer took longer than this server allows", status=504, code="time_limit"
            )
    frames = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__)))
    log.error("an answer failed: %s in %s", type(error).__name__, frames)  # its message may quote a prompt
    return RequestError("the server failed; its log says why", status=500, code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's shape, and note in its call what went wrong."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        found = described(error)
        call_of(request.scope).error = found.code or TYPES.get(found.status, "invalid_request_error")
        headers = {"Retry-After": str(RETRY_SECONDS)} if found.status == 503 else {}
        return failed(found.message, status=found.status, code=found.code, param=found.param, headers=headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return await told(request, validation(error.errors(), error.body))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        call_of(request.scope).error = CODES.get(error.status_code, "invalid_request_error")
        said = WORDS.get(error.status_code, str(error.detail))
        message = said.format(path=request.url.path, method=request.method)
        return failed(message, status=error.status_code, headers=error.headers)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (RequestError, EngineError, TimeoutError):
        app.add_exception_handler(kind, told)


def validation(errors: Sequence[Any], body: Any) -> RequestError:
    """The first of the mistakes that pydantic found, with the name of the parameter.

    An unknown name comes before others: typed wrong, it explains what is missing.
    """
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    param = _place(first, body)
    if first["type"] == "extra_forbidden":
        return RequestError(f"{param} is not known here", code="unknown_parameter", param=param)
    if first["type"] == "missing":
        return RequestError(f"{param or 'the body'} is missing", param=param)
    alike = dict.fromkeys(
        e["msg"] for e in errors if e["loc"][:2] == first["loc"][:2]
    )  # forms that it may have
    said = ", or ".join(
        msg.removeprefix("Input ") if i == 0 else msg.removeprefix("Input should be ")
        for i, msg in enumerate(alike)
    )
    return RequestError(f"{param or 'the body'} {said}", param=param)


def _place(error: Any, body: Any) -> str | None:
    """The path of the parameter in the body, without pydantic's names of the forms that it tried."""
    path, value = [], body
    for part in error["loc"][1:]:
        last = error["type"] == "missing" and part == error["loc"][-1]
        if last or (isinstance(value, Mapping) and part in value):
            path.append(str(part))
            value = value.get(part) if isinstance(value, Mapping) else None
        elif isinstance(value, list) and isinstance(part, int):
            path.append(str(part))
            value = value[part]
    return ".".join(path) or None
