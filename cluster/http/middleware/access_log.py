"""Access log: one id, one log line and one count per request, without any of its content."""

import json
import logging
import re
import secrets
import sys
import time
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.http.errors import FAILED
from cluster.http.metrics import instruments
from cluster.http.metrics.instruments import Metrics
from cluster.http.request_context import RequestContext

REQUEST_ID = "x-request-id"
CLIENT_CLOSED = 499  # nginx's status for a client that closed the connection before the response
_PROPER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MODELS = "/v1/models"
PATHS = frozenset(
    {
        "/", "/healthz", "/readyz", "/health", "/ping", "/version", "/metrics", "/openapi.json", "/v1/completions",
        "/v1/chat/completions", "/v1/infill", "/v1/score", _MODELS, "/v1/tokenize", "/v1/detokenize",
        "/tokenize", "/detokenize", "/tokenizer_info",
    }
)  # fmt: skip
FILE_BYTES, OLD_FILES = 2**26, 4  # of one log file, and those that are kept beside it
log = logging.getLogger("edlm.access")


class AccessLog:
    """Outermost ASGI middleware; converts every uncaught exception into an error response and a log line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context, status = RequestContext(request_id(Headers(scope=scope))), 0
        context.enter(scope)

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = context.request_id
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            # Without the error message, which may quote the request.
            log.error(_line(context, event="failure", error=type(error).__name__, at=_frames(error)))
            context.code = FAILED.code
            if not status:
                await FAILED.response(scope, receive, note)
        finally:
            self._leave(context, endpoint(scope["path"]), scope["method"], status or CLIENT_CLOSED)

    def _leave(self, context: RequestContext, endpoint: str, method: str, status: int) -> None:
        self.metrics.add(instruments.REQUESTS, 1, endpoint, str(status), context.finish_reason or "none")
        self.metrics.observe(instruments.E2E_SECONDS, context.seconds, endpoint)
        if status == CLIENT_CLOSED or context.finish_reason == "cancelled":
            self.metrics.add(instruments.CANCELLED, 1)
        # `endpoint` is a known route or `other`: an unknown path is content chosen by the client.
        log.info(_line(context, event="request", method=method, endpoint=endpoint, status=status))


def endpoint(path: str) -> str:
    """Return the route of a path, or `other`, so that clients cannot increase the number of metric labels."""
    if path.startswith(_MODELS + "/"):
        return _MODELS
    return path if path in PATHS else "other"


def request_id(headers: Headers) -> str:
    """Return the id sent by the client if it is well-formed, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _PROPER_ID.fullmatch(given) else secrets.token_hex(16)


def log_to_standard_error() -> None:
    """Write one line of JSON per request to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def log_to_file(path: Path) -> None:
    """Write these lines to a file, too, with the warnings and errors of the project's other loggers.

    The file is its owner's alone. It is rotated: at most `OLD_FILES` + 1 files of `FILE_BYTES` are kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    log.setLevel(logging.INFO)
    log.propagate = False  # to "edlm", which has the same handler
    for logger in (log, logging.getLogger("edlm"), logging.getLogger("cluster")):
        logger.addHandler(handler)


class _JsonLines(logging.Formatter):
    """Formatter of a log file: a request's line as it is, any other record as a line of JSON, with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == log.name:
            return record.getMessage()
        described = {"time": _now(), "event": "log", "level": record.levelname, "logger": record.name}
        return json.dumps({**described, "message": super().format(record)})


def _line(context: RequestContext, **facts: object) -> str:
    """Encode the facts as one line of JSON; control characters are escaped."""
    described = {
        "time": _now(),
        "request_id": context.request_id,
        "key": context.key,
        "seconds": round(context.seconds, 4),
        "code": context.code,
        "finish_reason": context.finish_reason,
        "prompt_tokens": context.prompt_tokens,
        "completion_tokens": context.completion_tokens,
        "ignored": list(context.ignored),
    }
    return json.dumps(facts | described)


def _frames(error: Exception) -> list[str]:
    """Return file, line and function of each traceback frame, without the source, which may hold a literal."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
