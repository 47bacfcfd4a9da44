"""Every request leaves one line and one count, and neither holds a word of what it said."""

import asyncio
import json
import logging

import pytest

from cluster.http.limits.settings import RequestLimits
from cluster.http.local import serving
from cluster.http.metrics.instruments import REQUESTS, PrometheusMetrics
from cluster.http.middleware.access_log import AccessLog, log_to_file
from cluster.http.middleware.api_keys import add_key
from edlm.inference.generator import TextGenerator
from tests.cluster.asking import COMPLETIONS, INFILL, JSON, ask, eventually
from tests.cluster.conftest import PATIENT

CANARY = "xyzzyplugh"


@pytest.fixture
def lines(caplog):
    """The log lines of the requests, read."""
    caplog.set_level(logging.INFO, "edlm.access")

    def read(count: int) -> list[dict]:
        eventually(lambda: len([entry for entry in caplog.records if entry.name == "edlm.access"]) >= count)
        messages = [record.getMessage() for record in caplog.records if record.name == "edlm.access"]
        assert all("\n" not in message and "\x1b" not in message for message in messages)
        return [json.loads(message) for message in messages]

    return read


def test_a_request_is_one_line_that_states_how_it_went(url, lines):
    ask(url, COMPLETIONS, {"prompt": "abc", "max_tokens": 5}, headers={**JSON, "x-request-id": "mine"})
    (line,) = lines(1)
    assert {
        "event": "request", "method": "POST", "endpoint": COMPLETIONS, "status": 200, "request_id": "mine",
        "key": "anybody", "code": None, "finish_reason": "length", "prompt_tokens": 3, "completion_tokens": 5,
    }.items() <= line.items()  # fmt: skip
    assert line["seconds"] > 0


def test_a_refusal_is_one_line_with_its_code(url, lines):
    ask(url, COMPLETIONS, {"prompt": [27]})
    ask(url, COMPLETIONS, "{")
    ask(url, COMPLETIONS, "{}", headers={"content-type": "text/plain"})
    # A line is written once the answer is out, so that the lines of two requests may change places.
    assert {line["code"] for line in lines(3)} == {"invalid_value", "invalid_json", "unsupported_media_type"}


def test_no_line_no_count_and_no_error_holds_what_was_said_or_a_key(generator, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    key = add_key(tmp_path / "keys", "anna")
    headers = {**JSON, "authorization": f"Bearer {key}"}
    with serving(generator, "7/0", request_limits=RequestLimits(keys=tmp_path / "keys"), limits=PATIENT) as service:
        url = service.url
        for path, body in [
            (COMPLETIONS, {"prompt": CANARY, "user": CANARY}),
            (COMPLETIONS, {"prompt": CANARY, "stop": CANARY, "stream": True, "stream_options": {"denoising": True}}),
            (COMPLETIONS, {"prompt": CANARY, "promt": CANARY}),
            (COMPLETIONS, {"prompt": CANARY, f"{CANARY} ": 1}),
            (COMPLETIONS, {"prompt": CANARY, key: 1}),
            (COMPLETIONS, {"model": CANARY}),
            (INFILL, {"parts": [CANARY, 200]}),
            ("/v1/score", {"text": CANARY, "edlm": {"energy": CANARY}}),
            ("/v1/tokenize", {"text": CANARY}),
            (f"/v1/{CANARY}", {}),
            (f"/v1/models/{CANARY}?key={key}", None),
        ]:
            ask(url, path, body, headers=headers, method="POST" if body is not None else "GET")
        ask(url, COMPLETIONS, {}, headers={**JSON, "authorization": f"Bearer {CANARY}"})
        monkeypatch.setattr(TextGenerator, "read", lambda _, prompt: {}[f"{prompt} {key}"])
        response = ask(url, COMPLETIONS, {"prompt": CANARY}, headers=headers)
        assert response.status_code == 500
        assert CANARY not in response.text
        metrics = ask(url, "/metrics", method="GET", headers=headers).text
    output = metrics + "".join(
        f"{entry.name} {entry.getMessage()}\n" for entry in caplog.records if entry.name != "httpx"
    )
    assert '"event": "failure"' in output
    assert "KeyError" in output
    assert CANARY not in output
    assert key not in output
    assert key.removeprefix("edlm-") not in output


def test_requests_are_counted_by_route_and_never_by_what_clients_make_up(service):
    before = service.metrics.value(REQUESTS, "other", "404", "none")
    for path in ("/a", "/b", "/v1/completions/"):
        ask(service.url, path, {})
    eventually(lambda: service.metrics.value(REQUESTS, "other", "404", "none") == before + 3)


def test_what_fails_in_the_middle_of_an_answer_is_logged_and_comes_no_further(caplog):
    caplog.set_level(logging.INFO, "edlm.access")

    async def broken(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("secret")

    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/", "method": "GET", "headers": []}
        await AccessLog(broken, PrometheusMetrics())(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(run())
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


@pytest.fixture
def written(tmp_path):
    """Log to a file as a replica does; yield the file."""
    loggers = [logging.getLogger(name) for name in ("edlm.access", "edlm", "cluster")]
    before, level = [list(logger.handlers) for logger in loggers], loggers[0].level
    log_to_file(tmp_path / "logs" / "replica.log")
    yield tmp_path / "logs" / "replica.log"
    loggers[0].propagate = True
    loggers[0].setLevel(level)
    added = {one for logger, kept in zip(loggers, before, strict=True) for one in logger.handlers if one not in kept}
    for handler in added:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def test_a_log_file_has_a_line_of_json_for_a_request_and_for_an_error_with_its_traceback(url, written):
    ask(url, COMPLETIONS, {"prompt": [27]}, headers={**JSON, "x-request-id": "mine"})
    eventually(lambda: "mine" in written.read_text())
    try:
        raise OSError("the disk is full")
    except OSError:
        logging.getLogger("cluster.serving.replica").exception("a model is not loaded")
    request, error = (json.loads(line) for line in written.read_text().splitlines())
    assert (request["event"], request["request_id"]) == ("request", "mine")
    assert (error["event"], error["level"], error["logger"]) == ("log", "ERROR", "cluster.serving.replica")
    assert error["message"].startswith("a model is not loaded\nTraceback")
    assert "OSError: the disk is full" in error["message"]
    assert written.stat().st_mode & 0o777 == 0o600
