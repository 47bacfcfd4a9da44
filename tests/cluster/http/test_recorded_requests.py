"""Requests that real programs sent are answered: recorded by running them against this endpoint, and replayed.

Each has the program and its version, and the status it was answered with; only the model's name was changed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.http.local import serving
from edlm.inference.generator import open_bundle
from tests.chats import make_chat_bundle
from tests.cluster.asking import ask, error, events
from tests.cluster.conftest import PATIENT

RECORDED = json.loads(Path(__file__).with_name("recorded_requests.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chat_url(tmp_path_factory) -> Iterator[str]:
    generator = open_bundle(make_chat_bundle(tmp_path_factory.mktemp("chat")))
    with serving(generator, "1/0", limits=PATIENT) as service:
        yield service.url


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["client"])
def test_a_request_of_a_real_program_is_answered_as_it_was(url, chat_url, recorded):
    body: dict[str, Any] = json.loads(recorded["body"] or "{}")
    at = chat_url if body.get("model") == "chat" else url
    response = ask(
        at, recorded["path"], recorded["body"].encode(), method=recorded["method"], headers=recorded["headers"]
    )
    if recorded["status"] != 200:
        assert error(response, recorded["status"])["code"] == "not_a_chat_model"
        return
    assert response.status_code == 200, response.text
    if body.get("stream"):
        assert events(response.text)[-1] == "[DONE]"
    elif "completions" in recorded["path"]:
        prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [""]
        choices = response.json()["choices"]
        assert len(choices) == len(prompts) * body.get("n", 1)
        asked = body.get("logprobs") not in (None, False)
        assert all((choice["logprobs"] is not None) == asked for choice in choices)
