"""Where the texts of one request take their randomness from, and that each can be made again by itself."""

import pytest

from tests.cluster.asking import COMPLETIONS, INFILL, ask, stream

PROMPTS = ["the "] * 4


def answer(url, path=COMPLETIONS, **body):
    response = ask(url, path, {"max_tokens": 32, **body} if path == COMPLETIONS else body)
    assert response.status_code == 200, response.text
    return response.json()


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_prompts_without_a_seed_have_a_stream_each(url):
    actual = answer(url, prompt=PROMPTS, n=2)
    assert len(set(texts(actual))) == len(set(actual["edlm"]["seeds"])) == 8
    assert actual["edlm"]["streams"] == "independent"


def test_prompts_with_a_seed_share_their_streams(url):
    actual = answer(url, prompt=PROMPTS, n=2, seed=7)
    assert len(set(texts(actual))) == 2
    assert (actual["edlm"]["seeds"], actual["edlm"]["streams"]) == ([7, 8] * 4, "shared")


def test_independent_streams_of_neighbouring_seeds_share_no_text(url):
    first, two = (answer(url, prompt="ab", n=4, seed=seed, edlm={"streams": "independent"}) for seed in (1, 2))
    assert not set(texts(first)) & set(texts(two))
    shared = [answer(url, prompt="ab", n=4, seed=seed) for seed in (1, 2)]
    assert texts(shared[0])[1:] == texts(shared[1])[:3]


def test_shared_streams_can_be_asked_for_without_a_seed(url):
    actual = answer(url, prompt=PROMPTS, edlm={"streams": "shared"})
    assert len(set(texts(actual))) == 1
    assert actual["edlm"]["seeds"] == [actual["edlm"]["seed"]] * 4


@pytest.mark.parametrize("more", [{}, {"seed": 3}, {"seed": 3, "edlm": {"streams": "independent"}}, {"best_of": 3}])
def test_each_text_is_made_again_alone_by_its_seed(url, more):
    request = {"prompt": ["ab", "c"], "n": 2, **more, "max_tokens": 8}
    actual = answer(url, **request)
    for i, (text, seed) in enumerate(zip(texts(actual), actual["edlm"]["seeds"], strict=True)):
        assert texts(answer(url, prompt=request["prompt"][i // 2], max_tokens=8, seed=seed)) == [text]


def test_a_request_is_made_again_by_the_seed_and_streams_that_its_answer_names(url):
    actual = answer(url, prompt=PROMPTS, n=2)
    same = answer(url, prompt=PROMPTS, n=2, seed=actual["edlm"]["seed"], edlm={"streams": actual["edlm"]["streams"]})
    assert texts(same) == texts(actual)
    assert texts(answer(url, prompt="the ", seed=actual["edlm"]["seed"])) == texts(actual)[:1]


def test_infills_without_a_seed_have_a_stream_each(url):
    actual = answer(url, INFILL, parts=["ab", 8], n=3)
    assert len(set(texts(actual))) == 3
    assert actual["edlm"]["streams"] == "independent"
    for text, seed in zip(texts(actual), actual["edlm"]["seeds"], strict=True):
        assert texts(answer(url, INFILL, parts=["ab", 8], seed=seed)) == [text]
    assert answer(url, INFILL, parts=["ab", 8], n=3, seed=1)["edlm"]["seeds"] == [1, 2, 3]


def test_a_stream_names_the_seed_of_each_choice(url):
    details = stream(url, COMPLETIONS, {"prompt": PROMPTS, "max_tokens": 8})[-1]["edlm"]["details"]
    assert len(set(details["seeds"])) == 4
    assert all(0 <= seed < 2**53 for seed in details["seeds"]), "every reader of JSON keeps them"


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**53, 2**63 - 1])
def test_seeds_of_64_bits_are_streams_of_their_own(url, seed):
    actual = answer(url, prompt="ab", n=2, seed=seed)
    assert actual["edlm"]["seed"] == actual["edlm"]["seeds"][0] == seed
    assert texts(answer(url, prompt="ab", seed=actual["edlm"]["seeds"][1])) == texts(actual)[1:]
    assert texts(actual)[0] not in texts(answer(url, prompt="ab", n=2, seed=seed % 2**32 + 2))
    assert ask(url, "/v1/score", {"text": "ab", "seed": seed, "draws": 2}).status_code == 200
