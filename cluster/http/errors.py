"""Error responses in OpenAI's format; each names the request field at fault where there is one."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cluster.http.request_context import request_context

ROUTES = "/v1/completions, /v1/chat/completions, /v1/infill, /v1/score, /v1/models, /v1/tokenize and /v1/detokenize"
UNROUTABLE = {404: "not_found", 405: "method_not_allowed"}  # code by status, as Ray's proxy says (`proxy_refusals`)
MAX_NAME = 128  # characters of a field name that an error quotes
_VARIANT = re.compile(r"<.*>")  # tag of a union variant (`schemas.field_types`), not a key sent by the client


class APIError(Exception):
    """Rejection of a request: HTTP status, message, field at fault and error code."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_seconds = retry_after_seconds

    @property
    def body(self) -> dict[str, Any]:
        return _body(self.status, self.message, self.param, self.code)

    @property
    def headers(self) -> Mapping[str, str]:
        headers = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, APIError)
    request_context(request.scope).code = error.code
    return error.response


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Report the first invalid field and its error, but never the value: JSON cannot represent NaN."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    unknown = first["type"] == "extra_forbidden"
    path = [str(part) for part in first["loc"][1:]]
    named = ".".join(part for part in path if unknown or not _VARIANT.fullmatch(part))
    param = named.encode("ascii", "backslashreplace").decode()[:MAX_NAME] or None
    message = f"{param}: {'unknown field' if unknown else first['msg'].removeprefix('Value error, ')}"
    if param is None:
        message = (
            "the body is not a JSON object" if "type" in first["type"] else first["msg"].removeprefix("Value error, ")
        )
    code = "unknown_parameter" if unknown else "invalid_value"
    return await _refused(request, APIError(400, message, param, code))


async def _unroutable(request: Request, error: Exception) -> JSONResponse:
    """Handle an unknown path or method, or a body that Python's JSON parser cannot read."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"unknown route; the routes are {ROUTES}"
    code = UNROUTABLE.get(error.status_code)
    request_context(request.scope).code = code
    return JSONResponse(_body(error.status_code, message, code=code), error.status_code, error.headers)


async def _failed(_: Request, __: Exception) -> JSONResponse:
    """Return a generic error; the cause stays in the log."""
    return FAILED.response


FAILED = APIError(500, "the server failed; see its log", code="engine_error")
HANDLERS = {APIError: _refused, RequestValidationError: _invalid, HTTPException: _unroutable, Exception: _failed}


def _body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
