"""A stream says each letter once and for good, shows every state that is asked for, and ends with what made it."""

import pytest
import torch

from cluster.http.local import serving
from edlm.inference.request import Limits
from tests.bundles import LENGTH
from tests.cluster.asking import COMPLETIONS, INFILL, ask, error, events, states, stream, texts
from tests.inference.test_generator import uniform_generator
from tests.vocabularies import GivenTokenizer

LONG = {"prompt": "the ", "max_tokens": 40, "seed": 4}


def whole(url: str, path: str, request: dict) -> dict:
    answer = ask(url, path, request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_pieces_of_a_stream_are_the_whole_text(url):
    request = {**LONG, "n": 3, "edlm": {"steps": 12, "candidates": 4}}
    pieces = stream(url, COMPLETIONS, request)
    choices = whole(url, COMPLETIONS, request)["choices"]
    assert texts(pieces) == {choice["index"]: choice["text"] for choice in choices}
    assert len({piece["id"] for piece in pieces}) == 1
    assert all(piece["object"] == "text_completion" and piece["choices"] for piece in pieces)
    last = [[piece for piece in pieces if piece["choices"][0]["index"] == i][-1] for i in range(3)]
    assert [piece["choices"][0]["finish_reason"] for piece in last] == ["length"] * 3
    assert sum(piece["choices"][0]["finish_reason"] is not None for piece in pieces) == 3


@pytest.mark.parametrize("name", ["unigram", "llama", "word-piece", "clip", "words", "full-stops"])
def test_texts_of_every_kind_of_tokenizer_are_streamed_whole_and_read_on_from_their_prompts(name):
    generator = uniform_generator(GivenTokenizer(name))
    prompt = [token for token in range(3, 300) if token < generator.tokenizer.size][-2:]
    with serving(generator, "1", limits=Limits(patience_seconds=600)) as service:
        for seed, fields in enumerate(({}, {"stop": ["e", "a", "\ufffd"]}, {"suffix": ""}, {"echo": True})):
            most = LENGTH - 2 if "suffix" in fields else 40
            request = {"prompt": prompt, "max_tokens": most, "seed": 10 * seed, "n": 8, "edlm": {"steps": 5}, **fields}
            answer = whole(service.url, COMPLETIONS, {**request, "edlm": {"steps": 5, "return": ["token_ids"]}})
            assert texts(stream(service.url, COMPLETIONS, request)) == {
                choice["index"]: choice["text"] for choice in answer["choices"]
            }
            before = "" if fields.get("echo") else generator.tokenizer.decode(prompt)
            for choice in answer["choices"]:
                together = generator.tokenizer.decode([*prompt, *choice["token_ids"]])
                assert together.startswith(before)
                assert (before + choice["text"] == together) or choice["finish_reason"] == "stop"


def test_the_last_piece_states_what_made_it(url):
    pieces = stream(url, COMPLETIONS, LONG)
    assert pieces[-1]["choices"][0]["finish_reason"] == "length", "a client that asked for nothing meets no empty piece"
    details, of_whole = pieces[-1]["edlm"]["details"], whole(url, COMPLETIONS, LONG)["edlm"]
    assert {**details, "seconds": 0} == {**of_whole, "seconds": 0}


def test_the_usage_comes_on_request_in_a_piece_of_its_own(url):
    pieces = stream(url, COMPLETIONS, {**LONG, "stream_options": {"include_usage": True}})
    assert all(piece["usage"] is None for piece in pieces[:-1])
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole(url, COMPLETIONS, LONG)["usage"]
    assert pieces[-1]["edlm"]["details"]["seed"] == 4


def test_an_echo_comes_first(url):
    echoed = texts(stream(url, COMPLETIONS, {**LONG, "echo": True}))[0]
    assert echoed == "the " + texts(stream(url, COMPLETIONS, LONG))[0]


def test_no_letter_of_a_stop_string_is_ever_sent(url):
    text = whole(url, COMPLETIONS, LONG)["choices"][0]["text"]
    for stop in (text[20:23], text[30], text[39], text[38:40] + "x"):
        request = {**LONG, "stop": [stop, text[25:27] + "zzz"]}
        pieces = stream(url, COMPLETIONS, request)
        (choice,) = whole(url, COMPLETIONS, request)["choices"]
        assert texts(pieces)[0] == choice["text"]
        assert stop not in texts(pieces)[0]
        assert pieces[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_a_text_before_a_suffix_is_streamed_too(url):
    request = {"prompt": "ab", "max_tokens": 6, "suffix": "cd", "seed": 3}
    pieces = stream(url, COMPLETIONS, {**request, "stream_options": {"denoising": True}})
    assert texts(pieces)[0] == whole(url, COMPLETIONS, request)["choices"][0]["text"]
    assert sorted(position for state in states(pieces) for position, *_ in state["unmasked"]) == list(range(6))


def test_states_unmask_every_position_once_and_spell_the_text(url):
    request = {**LONG, "n": 2, "edlm": {"steps": 12, "candidates": 4, "return": ["trajectory", "token_ids"]}}
    pieces = stream(url, COMPLETIONS, {**request, "stream_options": {"denoising": True}})
    for index, choice in enumerate(whole(url, COMPLETIONS, request)["choices"]):
        actual = states(pieces, index)
        unmasked = sorted(token for state in actual for token in state["unmasked"])
        assert [position for position, *_ in unmasked] == list(range(40))
        assert [token for _, token, _, _ in unmasked] == choice["token_ids"]
        assert "".join(text for _, _, text, _ in unmasked) == choice["text"]
        assert [step for *_, step in unmasked] == choice["unmasked_at"]
        assert [state["step"] for state in actual] == sorted({state["step"] for state in actual})
        masked = [state["masked"] for state in actual]
        assert masked == sorted(masked, reverse=True)
        assert masked[-1] == 0
        assert all(state["positions"] == 40 and 0 <= state["t"] <= 1 for state in actual)
        assert all(piece["choices"] == [] for piece in pieces if "state" in piece.get("edlm", {}))


def test_states_show_what_was_scored(url):
    request = {"max_tokens": LENGTH, "seed": 4, "edlm": {"steps": 3, "candidates": 4, "energy": "step"}}
    actual = states(stream(url, COMPLETIONS, {**request, "stream_options": {"denoising": True}}))
    weighed = [state for state in actual if state["scored_step"] is not None]
    assert weighed
    for state in weighed:
        assert (state["candidates"], state["block"]) == (4, 4)
        assert [len(group) for group in state["energies"]] == [4] * 3
        assert all(0 <= pick < 4 for pick in state["picked"])
        assert 1 <= state["ess"] <= 4
    plain = states(stream(url, INFILL, {"parts": [5], "edlm": {"candidates": 1}}))
    assert all(state["energies"] is None and state["block"] is None for state in plain)


def test_states_hold_the_candidates_of_each_scored_step_once_if_the_request_asks_for_them(url):
    request = {"max_tokens": LENGTH, "seed": 4, "edlm": {"steps": 3, "candidates": 4, "energy": "step"}}
    options = {"denoising": True, "candidate_tokens": True}
    actual = states(stream(url, COMPLETIONS, {**request, "stream_options": options}))
    shown = [state for state in actual if "candidate_tokens" in state]
    scored = [state["scored_step"] for state in shown]
    assert scored == sorted({state["scored_step"] for state in actual} - {None})
    for state in shown:
        found = state["candidate_tokens"]
        unmasked = {position: (token, text) for position, token, text, step in state["unmasked"]}
        for column, (position, group) in enumerate(zip(found["positions"], found["groups"], strict=True)):
            chosen = state["picked"][group]
            assert unmasked[position] == (found["tokens"][chosen][column], found["texts"][chosen][column])
    bare = states(stream(url, COMPLETIONS, {**request, "stream_options": {"denoising": True}}))
    assert bare
    assert all("candidate_tokens" not in state for state in bare)


def test_candidates_of_a_text_before_a_suffix_are_counted_from_its_first_token(url):
    request = {"prompt": "ab", "max_tokens": 6, "suffix": "cd", "seed": 3, "edlm": {"steps": 1, "candidates": 2}}
    options = {"denoising": True, "candidate_tokens": True}
    (state,) = [
        state
        for state in states(stream(url, COMPLETIONS, {**request, "stream_options": options}))
        if "candidate_tokens" in state
    ]
    assert state["candidate_tokens"]["positions"] == list(range(6))


def test_candidates_without_states_are_refused(url):
    for given in ({}, {"denoising": False}):
        body = {**LONG, "stream": True, "stream_options": {"candidate_tokens": True, **given}}
        assert error(ask(url, COMPLETIONS, body), 400)["param"] == "stream_options.candidate_tokens"


def test_an_infill_shows_its_states_and_then_its_text(url):
    request = {"parts": ["ab", 3, "c"], "seed": 1, "n": 2}
    pieces = stream(url, INFILL, request)
    for index, choice in enumerate(whole(url, INFILL, request)["choices"]):
        (ended,) = [choice for piece in pieces for choice in piece["choices"] if choice["index"] == index]
        assert (ended["text"], ended["tokens"]) == (choice["text"], choice["tokens"])
        actual = states(pieces, index)
        given = [token for token in actual[0]["unmasked"] if token[3] == 0]
        assert given == [[0, 1, "a", 0], [1, 2, "b", 0], [5, 3, "c", 0]]
        assert sorted(position for state in actual for position, *_ in state["unmasked"]) == list(range(6))
    assert all(piece["object"] == "infill.chunk" for piece in pieces)
    assert "details" in pieces[-1]["edlm"]
    assert not states(stream(url, INFILL, {**request, "stream_options": {"denoising": False}}))


def test_a_text_with_nothing_to_fill_is_streamed(url):
    (piece,) = [piece for piece in stream(url, INFILL, {"parts": ["ab"]}) if piece["choices"]]
    assert piece["choices"][0]["text"] == "ab"


def test_an_error_before_the_first_step_keeps_its_status(url):
    assert error(ask(url, COMPLETIONS, {"prompt": [27], "stream": True}), 400)["param"] == "prompt"
    late = {**LONG, "stream": True, "edlm": {"timeout_seconds": 1e-9}}
    assert error(ask(url, COMPLETIONS, late), 504)["code"] == "deadline_exceeded"


def test_an_error_later_ends_the_stream_without_its_end(url):
    slow = {"max_tokens": 4096, "seed": 1, "stream": True, "edlm": {"steps": 12, "timeout_seconds": 1.5}}
    response = ask(url, COMPLETIONS, slow)
    assert response.status_code == 200
    *pieces, last = events(response.text)
    assert last["error"]["code"] == "deadline_exceeded"
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert "[DONE]" not in response.text
    assert texts(pieces)[0], "what was certain was sent"


def test_weights_that_give_no_number_fail_their_request_alone(generator):
    with torch.no_grad():
        next(generator.energies["step"].parameters()).fill_(torch.nan)
    with serving(generator, "1/0") as service:
        assert error(ask(service.url, COMPLETIONS, {"seed": 1}), 500)["code"] == "numerical_error"
        assert ask(service.url, COMPLETIONS, {"edlm": {"candidates": 1}}).status_code == 200


@pytest.mark.parametrize("value", [0, "true"])
def test_stream_is_true_or_false(url, value):
    assert error(ask(url, COMPLETIONS, {"stream": value}), 400)["param"] == "stream"
