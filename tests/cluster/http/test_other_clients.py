"""Requests of other servers' clients, one each: none gets a 4xx that vLLM would not give, but for CORS."""

import gzip
from typing import Any

import pytest

from tests.cluster.asking import COMPLETIONS, JSON, ask, error, events

MODEL = {"model": "tiny", "prompt": "ab"}
LONG = ["\n\n", "Question:", "</s>", "<|im_end|>", "a" * 65]
# As the client of the name sends it; OpenAI's, by its Python library.
COMPLETED: dict[str, dict[str, Any]] = {
    "openai": {"max_tokens": 4},
    "openai: echo, suffix, n, user": {"max_tokens": 4, "echo": True, "suffix": "cd", "n": 2, "user": "me"},
    "openai: every field null": dict.fromkeys(
        ("best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
         "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user")
    ),
    "openai: token ids": {"prompt": [1, 2]},
    "openai: lists of token ids": {"prompt": [[1, 2], [3]]},
    "openai: nine prompts": {"prompt": ["ab"] * 9, "max_tokens": 1},
    "openai: neutral values": {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "top_p": 1, "n": 1},
    "openai: store and metadata": {"store": True, "metadata": {"a": "b"}},
    "openai: no tokens": {"max_tokens": 0, "echo": True},
    "openai: five stops, one of 65 letters": {"stop": LONG},
    "openai: best_of": {"best_of": 2, "max_tokens": 4},
    "openai: a temperature": {"temperature": 0.7},
    "openai: logprobs": {"logprobs": 3},
    "openai: logprobs of the prompt": {"logprobs": 1, "echo": True, "max_tokens": 0},
    "openai: a nucleus": {"top_p": 0.9},
    "vllm: the likeliest": {"top_k": 5},
    "vllm: a negative seed": {"seed": -1},
    "vllm: the largest seed": {"seed": 2**63 - 1},
    "vllm: fields at neutral values": {
        "repetition_penalty": 1.0, "ignore_eos": False, "min_tokens": 0, "top_k": -1, "min_p": 0.0,
        "skip_special_tokens": True, "spaces_between_special_tokens": True, "use_beam_search": False,
        "length_penalty": 1.0, "add_special_tokens": True, "priority": 0, "request_id": "one", "stop_token_ids": [],
        "return_tokens_as_token_ids": False, "include_stop_str_in_output": False, "logits_processors": None,
        "guided_json": None, "structured_outputs": None, "response_format": None, "truncate_prompt_tokens": None,
    },
    "vllm bench serve": {
        "repetition_penalty": 1.0, "max_tokens": 4, "logprobs": None, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    },
    "sglang's bench_serving": {
        "temperature": 0.0, "best_of": 1, "max_tokens": 4, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    },
    "guidellm": {
        "max_tokens": 4, "stream": True, "stop": None, "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "javascript: whole numbers with a fraction": {"max_tokens": 4.0, "n": 1.0, "seed": 3.0, "temperature": 1.0},
    "aiperf": {"max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    "langchain's defaults": {"temperature": 0.7, "max_tokens": 4, "n": 1, "top_p": 1, "seed": None, "logit_bias": None},
    "langchain: batch": {"prompt": ["ab", "ab"], "temperature": 1, "max_tokens": 4},
    "litellm": {"max_tokens": 4, "temperature": 1, "extra_body": {}},
    "llm": {"max_tokens": 4, "stream": True},
    "lm-eval: generate_until": {"max_tokens": 4, "temperature": 0, "stop": LONG[:4], "seed": 1234},
    "lm-eval: loglikelihood": {
        "prompt": [[1, 2, 3]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COMPLETED)
def test_a_completion_is_answered(url, name):
    body = {**MODEL, **COMPLETED[name]}
    response = ask(url, COMPLETIONS, body)
    assert response.status_code == 200, response.text
    if body.get("stream"):
        assert events(response.text)[-1] == "[DONE]"
    else:
        assert all(choice["finish_reason"] in ("stop", "length") for choice in response.json()["choices"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/health", None),
        ("GET", "/ping", None),
        ("GET", "/version", None),
        ("GET", "/metrics", None),
        ("HEAD", "/", None),
        ("HEAD", "/readyz", None),
        ("HEAD", "/healthz", None),
        ("POST", "/tokenize", {"prompt": "test", "add_special_tokens": False}),
        ("POST", "/tokenize", {"model": "tiny", "prompt": "test", "return_token_strs": True}),
        ("POST", "/v1/tokenize", {"prompt": "test"}),
        ("POST", "/detokenize", {"model": "tiny", "tokens": [1, 2]}),
        ("GET", "/tokenizer_info", None),
    ],
)
def test_a_route_of_vllm_is_answered(url, method, path, body):
    response = ask(url, path, body, method=method)
    assert response.status_code == 200, response.text


def test_the_first_model_has_the_fields_that_benchmarks_read_where_no_model_is_named(url):
    first = ask(url, "/v1/models", method="GET").json()["data"][0]
    assert first["id"] == first["root"] == MODEL["model"]  # `vllm bench serve` reads both, sglang's the first


@pytest.mark.parametrize(("method", "path"), [("GET", "/get_server_info"), ("POST", "/flush_cache")])
def test_a_route_of_sglang_alone_is_unknown_in_openais_form(url, method, path):
    response = ask(url, path, None, method=method)  # sglang's bench_serving goes on without an answer
    assert response.status_code == 404, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"stream_options": {"include_usage": True}}, 400),
        ({"max_tokens": "four"}, 400),
        ({"prompt": {"a": "b"}}, 400),
        ({"model": "other"}, 404),
        ({"logit_bias": {"1": 5}}, 400),
        ({"response_format": {"type": "json_object"}}, 400),
        ({"guided_grammar": "a+"}, 400),
    ],
)
def test_what_is_refused_is_refused_with_the_status_of_openai(url, request_, status):
    assert error(ask(url, COMPLETIONS, {**MODEL, **request_}), status)["param"] == next(iter(request_))


def test_a_compressed_body_is_refused(url):
    headers = {**JSON, "content-encoding": "gzip"}
    assert error(ask(url, COMPLETIONS, gzip.compress(b"{}"), headers=headers), 415)["code"]


def test_browsers_of_other_sites_are_let_in_by_no_header(url):
    response = ask(url, COMPLETIONS, method="OPTIONS", headers={"origin": "http://other", **JSON})
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_tokens_have_the_form_of_vllm(url):
    answer = ask(url, "/tokenize", {"prompt": "ab", "return_token_strs": True, "mm_processor_kwargs": {}}).json()
    vllms = {"count": 2, "max_model_len": 12, "tokens": [1, 2], "token_strs": ["a", "b"]}
    assert vllms.items() <= answer.items()
    assert answer["edlm"]["ignored"] == ["mm_processor_kwargs"]
    assert ask(url, "/detokenize", {"tokens": answer["tokens"]}).json()["prompt"] == "ab"


@pytest.mark.parametrize("suffix", [None, "cd"])
@pytest.mark.parametrize("prompt", ["The 5", "", "a" * 40])
def test_no_tokens_are_generated_on_request(url, prompt, suffix):
    request = {"prompt": prompt, "max_tokens": 0, "n": 2, "suffix": suffix}
    if len(prompt) + len(suffix or "") > 12 and suffix is not None:
        assert error(ask(url, COMPLETIONS, request), 400)["param"] == "suffix"
        return
    answer = ask(url, COMPLETIONS, request).json()
    assert [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]] == [("", "length")] * 2
    assert (answer["usage"]["completion_tokens"], answer["edlm"]["denoiser_calls"]) == (0, 0)
    (read,) = answer["edlm"]["prompt"]
    echoed = ask(url, COMPLETIONS, {**request, "echo": True, "n": 1})
    assert echoed.json()["choices"][0]["text"] == read
    *pieces, end = events(ask(url, COMPLETIONS, {**request, "echo": True, "stream": True}).text)
    assert end == "[DONE]"
    assert [choice["text"] for piece in pieces for choice in piece["choices"]] == [read] * 2
