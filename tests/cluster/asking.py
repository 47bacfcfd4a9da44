"""Asking the endpoint over real HTTP, and reading what it says."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

COMPLETIONS, INFILL, SCORE = "/v1/completions", "/v1/infill", "/v1/score"
JSON = {"content-type": "application/json"}
SECONDS = 60


def ask(url: str, path: str, body: Any = None, method: str = "POST", **options: Any) -> httpx.Response:
    """One request; `body` is sent as JSON, or as it is where it is text, bytes or an iterator."""
    if isinstance(body, dict):
        body = json.dumps(body)
    # Without `verify` it does not read the certificates of the world for each request, which takes longer than most.
    options = {"headers": JSON, "timeout": SECONDS, "trust_env": False, "verify": False, **options}
    return httpx.request(method, url + path, content=body, **options)


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a refusal, which has OpenAI's form."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Nothing, as soon as the condition holds; an assertion fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.005)


def events(text: str) -> list[Any]:
    """The data of a stream's events, JSON decoded; the end is the word [DONE]. Comments, which keep alive, are none."""
    *pieces, end = text.split("\n\n")
    assert end == "", "a stream ends with an empty line"
    pieces = [piece for piece in pieces if not piece.startswith(":")]
    assert all(piece.startswith("data: ") for piece in pieces)
    data = [piece.removeprefix("data: ") for piece in pieces]
    return [event if event == "[DONE]" else json.loads(event) for event in data]


def stream(url: str, path: str, body: dict[str, Any], **options: Any) -> list[Any]:
    """The events of a stream that was not cut."""
    response = ask(url, path, {**body, "stream": True}, **options)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, end = events(response.text)
    assert end == "[DONE]"
    return pieces


def states(pieces: list[Any], index: int = 0) -> list[dict[str, Any]]:
    """The states of one choice."""
    actual = [piece["edlm"]["state"] for piece in pieces if "state" in piece.get("edlm", {})]
    return [state for state in actual if state["index"] == index]


def texts(pieces: list[Any]) -> dict[int, str]:
    """The text of each choice, put together."""
    actual: dict[int, str] = {}
    for piece in pieces:
        for choice in piece["choices"]:
            actual[choice["index"]] = actual.get(choice["index"], "") + choice["text"]
    return actual
