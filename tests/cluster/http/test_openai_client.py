"""OpenAI's own Python client works unchanged: whole and streamed texts, several choices, stops, models and errors."""

from collections.abc import Iterator

import openai
import pytest

from cluster.http.limits.settings import RequestLimits
from cluster.http.local import serving
from cluster.http.middleware.api_keys import add_key
from edlm.inference.request import Limits
from tests.cluster.conftest import PATIENT


@pytest.fixture(scope="module")
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_whole_text(client):
    answer = client.completions.create(model="tiny", prompt="the ", max_tokens=9, n=2, seed=3, user="me")
    assert [len(choice.text) for choice in answer.choices] == [9, 9]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 18
    assert answer.system_fingerprint == "7/" + "0" * 64
    assert answer.model_extra is not None
    assert answer.model_extra["edlm"]["seed"] == 3


def test_settings_of_our_own_go_in_the_extra_body(client):
    settings = {"steps": 8, "candidates": 4, "energy": "conditional"}
    answer = client.completions.create(model="tiny", prompt="a", seed=3, extra_body={"edlm": settings})
    assert settings.items() <= answer.model_extra["edlm"].items()


def test_a_stream_in_pieces(client):
    request = {"model": "tiny", "prompt": "the ", "max_tokens": 30, "seed": 3, "n": 2}
    whole = client.completions.create(**request)
    texts = ["", ""]
    for piece in client.completions.create(**request, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].text  # as everybody writes it: each piece has a choice
    assert texts == [choice.text for choice in whole.choices]
    *pieces, last = client.completions.create(**request, stream=True, stream_options={"include_usage": True})
    assert (last.choices, last.usage) == ([], whole.usage)
    assert all(piece.usage is None for piece in pieces)
    assert sorted(piece.choices[0].finish_reason or "" for piece in pieces)[-2:] == ["length", "length"]


def test_states_pass_by_a_client_that_does_not_know_them(client):
    request = {"model": "tiny", "prompt": "a", "max_tokens": 20, "seed": 3, "stream": True}
    seen = list(client.completions.create(**request, extra_body={"stream_options": {"denoising": True}}))
    text = "".join(piece.choices[0].text for piece in seen if piece.choices)
    assert text == client.completions.create(**{**request, "stream": False}).choices[0].text
    assert any("state" in (piece.model_extra or {}).get("edlm", {}) for piece in seen)


def test_a_stop_string(client):
    request = {"model": "tiny", "prompt": "a", "max_tokens": 30, "seed": 3}
    whole = client.completions.create(**request).choices[0].text
    (choice,) = client.completions.create(**request, stop=[whole[10:12]]).choices
    assert (choice.text, choice.finish_reason) == (whole[: whole.index(whole[10:12])], "stop")


def test_tokens_as_a_prompt_and_a_suffix(client):
    assert client.completions.create(model="tiny", prompt=[1, 2], max_tokens=2, suffix="c").usage.prompt_tokens == 3


def test_the_models(client):
    (model,) = client.models.list().data
    assert client.models.retrieve("tiny").id == model.id == "tiny"


def test_errors_are_of_its_own_classes_and_name_their_field(client):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt="a", n=81)
    assert wrong.value.param == "n"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt="a", logit_bias={"1": 3})
    assert (wrong.value.param, wrong.value.code) == ("logit_bias", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="greater than or equal to 0"):
        client.completions.create(model="tiny", prompt="a", max_tokens=-1)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.NotFoundError, match="no chat model"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


def test_an_error_within_a_stream_is_raised(client):
    request = {"model": "tiny", "prompt": "a", "max_tokens": 4096, "stream": True}
    late = {"edlm": {"steps": 12, "candidates": 1, "timeout_seconds": 1.5}}
    with pytest.raises(openai.APIError, match="the deadline passed"):
        list(client.completions.create(**request, extra_body=late))


def test_keys_and_busy_servers(generator, tmp_path):
    key = add_key(tmp_path / "keys", "anna")
    with serving(generator, "7/0", request_limits=RequestLimits(keys=tmp_path / "keys"), limits=PATIENT) as service:
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=key) as client:
            assert client.completions.create(model="tiny", prompt="a").choices
        with (
            openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.completions.create(model="tiny", prompt="a")
    request_limits = RequestLimits(work_per_second=1e-3, burst_seconds=1.0)
    with (
        serving(generator, "7/0", request_limits=request_limits, limits=Limits(patience_seconds=600)) as service,
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client,
    ):
        client.completions.create(model="tiny", prompt="a")
        with pytest.raises(openai.RateLimitError) as busy:
            client.completions.create(model="tiny", prompt="a")
        assert int(busy.value.response.headers["retry-after"]) >= 1
