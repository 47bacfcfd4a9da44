"""Request bodies: JSON parsing with a specific error for each kind of malformed input."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import Response

from cluster.http.errors import APIError


def require_json(headers: Headers) -> None:
    """Raise APIError unless the headers declare an uncompressed JSON body."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise APIError(415, "send the header content-type: application/json", code="unsupported_media_type")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        message = "the body is compressed, by its header content-encoding; send it as it is, without that header"
        raise APIError(415, message, code="unsupported_encoding")


def read_json(body: bytes) -> Any:
    """Parse the body; raise APIError if it is not UTF-8 JSON or exceeds the limits of Python's parser."""
    if not body:
        raise APIError(400, "the body is empty; send a JSON object", code="invalid_json")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} (0x{body[error.start]:02x}) is not part of a character"
        raise APIError(400, f"the body is not UTF-8: {what}", code="invalid_encoding") from None
    try:
        return json.loads(text, parse_constant=_no_number, parse_int=_integer, parse_float=_number)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise APIError(400, f"the body is not JSON: {error.msg} at {where}", code="invalid_json") from None
    except RecursionError:
        raise APIError(400, "the body nests lists or objects too deeply", code="too_deep") from None


class JsonRoute(APIRoute):
    """Route whose body, if it has one, must be declared as JSON and is parsed by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_and_handle(request: Request) -> Response:
            require_json(request.headers)
            body = await request.body()
            return await handle(_Parsed(request, body, read_json(body)))

        return read_and_handle


class _Parsed(Request):
    """Request with its body already parsed."""

    def __init__(self, request: Request, body: bytes, tree: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._bytes, self._tree = body, tree

    async def body(self) -> bytes:
        return self._bytes

    async def json(self) -> Any:
        return self._tree


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        message = f"a number of the body has {len(digits.lstrip('-'))} digits, more than any field holds"
        raise APIError(400, message, code="number_too_long") from None


def _number(digits: str) -> float:
    """Return the number, as an integer if it is one: JSON does not tell 1.0 from 1."""
    number = float(digits)
    return int(number) if number.is_integer() else number


def _no_number(word: str) -> float:
    raise APIError(400, f"the body is not JSON: {word} is not a number in JSON", code="invalid_json")
