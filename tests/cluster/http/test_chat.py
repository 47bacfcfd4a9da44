"""A model of conversations answers chat completions in OpenAI's form; any other says that it is no chat model."""

from collections.abc import Iterator

import openai
import pytest

from cluster.http.local import serving
from edlm.inference.generator import open_bundle
from tests.chats import CHATML, make_chat_bundle
from tests.cluster.asking import COMPLETIONS, ask, error, stream
from tests.cluster.conftest import PATIENT

CHAT = "/v1/chat/completions"
HELLO = {"role": "user", "content": "hello"}
RENDERED = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Iterator[str]:
    generator = open_bundle(make_chat_bundle(tmp_path_factory.mktemp("chat")))
    with serving(generator, "1/0", limits=PATIENT) as service:
        yield service.url


def test_an_answer_is_the_completion_of_the_rendered_conversation(chats):
    asked = {"seed": 1, "max_tokens": 6, "n": 2, "edlm": {"return": ["token_ids"]}}
    answer = ask(chats, CHAT, {"messages": [HELLO], **asked}).json()
    assert answer["object"] == "chat.completion"
    assert answer["edlm"]["prompt"] == [RENDERED]
    assert ask(chats, "/tokenizer_info", method="GET").json()["chat_template"] == CHATML
    tokens = ask(chats, "/tokenize", {"messages": [HELLO]}).json()["tokens"]
    same = ask(chats, COMPLETIONS, {"prompt": tokens, **asked}).json()
    messages = [choice["message"] for choice in answer["choices"]]
    assert messages == [{"role": "assistant", "content": choice["text"]} for choice in same["choices"]]
    assert [choice["token_ids"] for choice in answer["choices"]] == [one["token_ids"] for one in same["choices"]]
    assert answer["usage"] == same["usage"]


def test_parts_of_a_message_are_joined(chats):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    answer = ask(chats, CHAT, {"messages": [{"role": "user", "content": parts}], "max_tokens": 1})
    assert answer.json()["edlm"]["prompt"] == [RENDERED]


def test_a_streamed_message_is_the_whole_one_and_its_role_comes_once(chats):
    body = {"messages": [HELLO], "seed": 1, "max_tokens": 6, "n": 2}
    whole = [choice["message"]["content"] for choice in ask(chats, CHAT, body).json()["choices"]]
    parts = [choice for piece in stream(chats, CHAT, body) for choice in piece["choices"]]
    for index, content in enumerate(whole):
        deltas = [choice["delta"] for choice in parts if choice["index"] == index]
        assert "".join(delta["content"] for delta in deltas) == content
        assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)


@pytest.mark.parametrize("limit", [{"max_tokens": 3}, {"max_completion_tokens": 3}])
def test_the_length_has_two_names_and_else_is_the_rest_of_the_canvas_or_half_of_it(chats, limit):
    details = {"messages": [HELLO], "seed": 1, "stop": None}
    assert ask(chats, CHAT, {**details, **limit}).json()["usage"]["completion_tokens"] <= 3
    (model,) = ask(chats, "/v1/models", method="GET").json()["data"]
    answer = ask(chats, CHAT, {**details, "edlm": {"return": ["token_ids"]}}).json()
    length, prompt = model["edlm"]["length"], answer["usage"]["prompt_tokens"]
    assert len(answer["choices"][0]["token_ids"]) <= max(length - prompt, length // 2)
    refused = error(ask(chats, CHAT, {**details, "max_tokens": 4, "max_completion_tokens": 3}), 400)
    assert refused["param"] == "max_completion_tokens"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "pirate", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [HELLO], "tools": [{"type": "function"}]}, "tools"),
        ({"messages": [HELLO], "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": [HELLO], "stop": ""}, "stop"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_named(chats, body, param):
    assert error(ask(chats, CHAT, body), 400)["param"] == param


def test_logprobs_are_listed_with_the_message(chats):
    body = {"messages": [HELLO], "seed": 1, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    answer = ask(chats, CHAT, {**body, "edlm": {"return": ["token_ids"]}}).json()
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == len(choice["token_ids"])
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] < 0 for one in content)
    assert all(bytes(one["bytes"]).decode() == one["token"] for one in content)
    parts = [one for piece in stream(chats, CHAT, body) for one in piece["choices"] if one["logprobs"]]
    assert [one for part in parts for one in part["logprobs"]["content"]] == content
    assert ask(chats, CHAT, {**body, "logprobs": False, "top_logprobs": 0}).json()["choices"][0]["logprobs"] is None
    assert error(ask(chats, CHAT, {**body, "logprobs": False}), 400)["param"] == "top_logprobs"


def test_openais_client_chats(chats):
    with openai.OpenAI(base_url=f"{chats}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "chat", "messages": [HELLO], "seed": 1, "max_completion_tokens": 6}
        message = client.chat.completions.create(**asked, tool_choice="none").choices[0].message
        pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    deltas = [choice.delta for piece in pieces for choice in piece.choices]
    assert (message.role, deltas[0].role) == ("assistant", "assistant")
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert pieces[-1].usage is not None


@pytest.mark.parametrize("body", [{}, {"messages": [HELLO]}, {"messages": 1}])
def test_a_model_without_a_template_is_no_chat_model(url, body):
    refused = error(ask(url, CHAT, body), 404)
    assert (refused["param"], refused["code"]) == ("model", "not_a_chat_model")
    assert "/v1/completions" in refused["message"]
    assert error(ask(url, "/tokenize", {"messages": [HELLO]}), 404)["code"] == "not_a_chat_model"
