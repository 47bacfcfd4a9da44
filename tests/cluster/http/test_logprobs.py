"""Log-probabilities have OpenAI's and vLLM's forms, name their distribution, and are left out of no answer."""

import math

import pytest

from tests.bundles import LENGTH
from tests.cluster.asking import COMPLETIONS, ask, error, stream

GENERATED = {"generated": "p_theta", "prompt": None, "prompt_distribution": None}
ECHOED = {"generated": "p_theta", "prompt": "left_to_right", "prompt_distribution": "another distribution"}


def test_a_choice_lists_its_tokens_their_logprobs_and_the_likeliest(url):
    body = {"prompt": "ab", "max_tokens": 8, "seed": 1, "n": 2, "logprobs": 3}
    answer = ask(url, COMPLETIONS, body).json()
    assert answer["edlm"]["logprobs"] == GENERATED
    for choice in answer["choices"]:
        found = choice["logprobs"]
        assert "".join(found["tokens"]) == choice["text"]
        assert found["text_offset"] == list(range(8))
        for token, log_p, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
            assert top[token] == log_p < 0
            assert len(top) in (3, 4)
            assert sum(map(math.exp, top.values())) <= 1 + 1e-5
    plain = ask(url, COMPLETIONS, {**body, "logprobs": None}).json()
    assert [choice["text"] for choice in plain["choices"]] == [choice["text"] for choice in answer["choices"]]
    assert (plain["choices"][0]["logprobs"], plain["edlm"]["logprobs"]) == (None, None)


def joined(parts: list[dict]) -> dict[str, list]:
    """The log-probabilities of the chunks of a choice, put together."""
    found = [part["logprobs"] for part in parts if part["logprobs"]]
    return {name: [item for part in found for item in part[name]] for name in found[0]}


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"stop": ["th", "e"]}, {"suffix": "cd"}, {"max_tokens": 30}])
def test_a_stream_sends_each_with_the_text_of_its_token(url, more):
    body = {"prompt": "ab", "max_tokens": 8, "seed": 1, "n": 2, "logprobs": 1, "edlm": {"steps": 12}, **more}
    choices = ask(url, COMPLETIONS, body).json()["choices"]
    sent = [choice for piece in stream(url, COMPLETIONS, body) for choice in piece["choices"]]
    for choice in choices:
        parts = [part for part in sent if part["index"] == choice["index"]]
        assert joined(parts) == choice["logprobs"]
        for part in parts:  # of letters, each of which is a token
            assert "".join((part["logprobs"] or {"tokens": []})["tokens"]) == part["text"]
    if "stop" not in more:
        assert sum(part["logprobs"] is not None for part in sent) > len(choices)


def test_a_prompt_is_scored_exactly_and_its_end_given_its_beginning(url):
    body = {"prompt": "the a", "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = ask(url, COMPLETIONS, body).json()
    (choice,) = answer["choices"]
    assert answer["edlm"]["logprobs"] == ECHOED
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == "the a"
    # Summed over all last letters, the probability is that of the rest.
    letters = " abcdefghijklmnopqrstuvwxyz"
    choices = ask(url, COMPLETIONS, {**body, "prompt": [f"the{letter}" for letter in letters]}).json()["choices"]
    last = [one["logprobs"]["token_logprobs"][-1] for one in choices]
    assert sum(map(math.exp, last)) == pytest.approx(1, abs=1e-4)
    assert {one["logprobs"]["token_logprobs"][0] for one in choices} == {choice["logprobs"]["token_logprobs"][0]}


def test_lm_eval_scores_a_continuation(url):
    context, continuation = [20, 8, 5], [0, 1, 2]
    body = {"model": "tiny", "prompt": [[*context, *continuation]], "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "seed": 1234, "echo": True}  # fmt: skip
    answer = ask(url, COMPLETIONS, body).json()
    (choice,) = answer["choices"]
    assert len(choice["logprobs"]["token_logprobs"]) == 7
    # As lm-eval reads it: without the context and the generated token; greedy if each token is the likeliest.
    scored = slice(len(context), -1)
    assert all(log_p < 0 for log_p in choice["logprobs"]["token_logprobs"][scored])
    assert len(choice["logprobs"]["top_logprobs"][scored]) == 3
    again = ask(url, COMPLETIONS, {**body, "temperature": 1, "max_tokens": 0}).json()["choices"][0]
    assert again["logprobs"]["token_logprobs"] == choice["logprobs"]["token_logprobs"][:-1]
    likeliest = max(choice["logprobs"]["top_logprobs"][-1].values())
    assert choice["logprobs"]["token_logprobs"][-1] == likeliest, "at temperature 0 it is the likeliest"


def test_a_stop_and_a_suffix_cut_the_logprobs_with_the_tokens(url):
    body = {"prompt": "ab", "max_tokens": 8, "seed": 1, "logprobs": 0, "edlm": {"return": ["token_ids"]}}
    (whole,) = ask(url, COMPLETIONS, body).json()["choices"]
    for more in ({"stop": whole["text"][4]}, {"suffix": "cd"}, {"suffix": "cd", "stop": list("aeiou")}):
        for choice in ask(url, COMPLETIONS, {**body, **more}).json()["choices"]:
            assert len(choice["logprobs"]["token_logprobs"]) == len(choice["token_ids"])


def test_scoring_a_prompt_is_paid_for(url):
    size = 2**14 + 2
    refused = error(ask(url, COMPLETIONS, {"prompt": "a" * size, "max_tokens": 0, "echo": True, "logprobs": 1}), 400)
    assert refused["code"] == "work_limit_exceeded"


@pytest.mark.parametrize("value", [-1, 21, "1", 1.5])
def test_more_than_twenty_likeliest_are_refused(url, value):
    assert error(ask(url, COMPLETIONS, {"logprobs": value}), 400)["param"] == "logprobs"


def test_truncation_is_another_distribution_and_leaves_logprobs_those_of_the_model(url):
    body = {"prompt": "ab", "max_tokens": LENGTH - 2, "seed": 1, "logprobs": 5}
    for more in ({"top_k": 5}, {"top_p": 0.3}, {"top_k": 5, "top_p": 0.9, "temperature": 1.5}):
        answer = ask(url, COMPLETIONS, {**body, **more, "edlm": {"candidates": 1}}).json()
        assert answer["edlm"]["distribution"] == "another distribution"
        assert {"top_k": more.get("top_k"), "top_p": more.get("top_p", 1.0)}.items() <= answer["edlm"].items()
        found = answer["choices"][0]["logprobs"]
        assert len(found["top_logprobs"][0]) <= 5 if "top_k" in more else len(found["top_logprobs"][0]) <= 6
    assert ask(url, COMPLETIONS, {**body, "top_k": -1, "top_p": 1}).json()["edlm"]["distribution"] is None
