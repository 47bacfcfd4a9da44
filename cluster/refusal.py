"""Refusals: every request that is not answered gets an error of OpenAI's form, and learns which field to change."""

import re
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_VARIANT = re.compile(
    r"(constrained-)?(str|int)|list\[.*"
)  # which type of a union pydantic tried: no key of the client's


class Refused(Exception):
    """A request that this server does not answer, and why."""

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
    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        return JSONResponse(_body(self.status, self.message, self.param, self.code), self.status, headers)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error.response


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """What is wrong and where, but never the value: a NaN cannot be written in JSON."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Refused(400, "the body is not JSON", code="invalid_json").response
    unknown = first["type"] == "extra_forbidden"
    path = [str(place) for place in first["loc"][1:]]
    param = ".".join(place for place in path if unknown or not _VARIANT.fullmatch(place)) or None
    message = f"{param or 'body'}: {'unknown field' if unknown else first['msg'].removeprefix('Value error, ')}"
    return Refused(422, message, param, "unknown_parameter" if unknown else "invalid_value").response


async def _unroutable(_: Request, error: Exception) -> JSONResponse:
    """An unknown path or method, or a body that Python's JSON reader gave up on."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = "no such route; there are /v1/completions, /v1/infill, /v1/score and /v1/models"
    return JSONResponse(_body(error.status_code, message), error.status_code, error.headers)


async def _failed(_: Request, __: Exception) -> JSONResponse:
    """What went wrong stays in the log."""
    return Refused(500, "the server failed; its log says why", code="engine_error").response


HANDLERS = {Refused: _refused, RequestValidationError: _invalid, HTTPException: _unroutable, Exception: _failed}


def _body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
