"""Texts that share steps: each is the text of its request alone, and no unmasked token changes.

Admission and order are in test_engine_scheduling.py, faults in test_engine_faults.py.
"""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data.tokenizer_kinds import Bytes
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import open_bundle
from edlm.inference.progress import NOT_YET
from edlm.inference.request import Limits
from edlm.inference.stop_strings import cut
from edlm.sampling.state import StepResult
from tests.bundles import LENGTH, make_bundle
from tests.engines import PATIENT, SECONDS, alone, echo, gated, new_request, recorded, requests
from tests.inference.test_generator import uniform_generator
from tests.vocabularies import KINDS, GivenTokenizer


@settings(max_examples=12, deadline=None)
@given(
    some=st.lists(requests(), min_size=1, max_size=7), slots=st.integers(1, 5), step=st.sampled_from([1e-6, 0.01, 10.0])
)
def test_every_text_is_a_function_of_its_request_and_the_model_in_any_batch(generator, some, slots, step):
    limits = Limits(slots=slots, step_seconds=step, waiting=100, patience_seconds=1e6)
    with InferenceEngine(generator, "1", limits) as engine:
        futures = [future for asked in some for future in engine.submit([asked])]
        for asked, future in zip(some, futures, strict=True):
            assert future.result(SECONDS) == alone(generator, asked)
        assert engine.backlog_seconds == 0


def test_it_takes_the_very_steps_that_the_sampler_takes(generator, engine):
    asked = new_request((1, 2), 30, seed=3, steps=5, candidates=3)
    steps: list[StepResult] = []
    expected = alone(generator, asked, steps.append)
    (future,) = engine.submit([asked])
    assert future.result(SECONDS) == expected
    progress, unmasked_at, block = future.progress(), [NOT_YET] * 30, -1
    canvases = ((0, 10, 2), (10, 16, 6), (16, 22, 6), (22, 28, 6), (28, 30, 10))
    for step in steps:
        block += step.t[0].item() == 1
        start, stop, context = canvases[block]
        number = 5 * (block + 1) - round(5 * step.s[0].item())
        for place in torch.nonzero(step.unmasked[0, context : context + stop - start])[:, 0].tolist():
            unmasked_at[start + place] = number
    assert progress.unmasked_at == tuple(unmasked_at)
    assert progress.steps == 25


@settings(max_examples=12, deadline=None)
@given(some=st.lists(requests(), min_size=1, max_size=5))
def test_what_is_given_or_unmasked_never_changes_and_no_position_is_masked_again(generator, some):
    mask = generator.mask
    with InferenceEngine(generator, "1", Limits(slots=3, waiting=100, patience_seconds=1e6)) as engine:
        futures = engine.submit(some)
        seen = [(future.progress(), recorded(future)) for future in futures]
        texts = [future.result(SECONDS) for future in futures]
        engine.drain(SECONDS)
    for (first, later), future, text in zip(seen, futures, texts, strict=True):
        states = [first, *later]
        assert [state.status for state in later].count("done") == (first.status != "done")
        assert states[-1] is future.progress()
        assert future.progress().status == "done"
        for before, after in zip(states, later, strict=False):
            assert after.step >= before.step
            assert after.committed >= before.committed
            for position, (was, now) in enumerate(zip(before.tokens, after.tokens, strict=True)):
                assert now == was or was == mask
                assert after.unmasked_at[position] == before.unmasked_at[position] or was == mask
        last = states[-1]
        assert last.tokens[: len(text.tokens)] == text.tokens
        for state in states:  # every state can be seen_steps from the last one
            seen_steps = tuple(
                token if NOT_YET < at <= state.step else mask
                for token, at in zip(last.tokens, last.unmasked_at, strict=True)
            )
            assert state.tokens == seen_steps
            assert state.masked == state.tokens.count(mask)
            assert mask not in state.tokens[: state.committed]


def test_thousands_of_texts_of_two_users_never_hold_a_token_of_the_other():
    generator, mine = echo(), {"a": 3, "b": 17}
    kinds = [
        {"steps": 1}, {"steps": 3, "candidates": 4}, {"steps": 2, "candidates": 2, "energy": "conditional"},
        {"steps": 2, "candidates": 3, "window": (0.6, 1.0)}, {"steps": 1, "candidates": 0, "energy": "conditional"},
    ]  # fmt: skip
    every = [
        new_request((mine[key],), [5, 14][seed % 7 == 0], seed, key=key, **kinds[seed % len(kinds)])
        for seed in range(1000)
        for key in mine
    ]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for asked, future in zip(every, engine.submit(every), strict=True):
            assert set(future.result(SECONDS).tokens) == {mine[asked.key]}


def test_a_text_without_a_hole_is_itself_and_costs_nothing(engine):
    (future,) = engine.submit([new_request((1, 2, 3), None)])
    assert future.result(SECONDS).tokens == (1, 2, 3)
    assert engine.statistics().passes["denoiser"] == 0


def test_steps_that_unmask_nothing_the_text_needs_are_left_out(generator, engine):
    asked = new_request((), 3, seed=5, steps=300)
    steps: list[StepResult] = []
    expected = alone(generator, asked, steps.append)
    (future,) = engine.submit([asked])
    text = future.result(SECONDS)
    assert text == expected
    assert [bool((step.xs[0, :3] == generator.mask).any()) for step in steps] == [True] * (len(steps) - 1) + [False]
    assert text.cost.denoiser_calls == sum(int(step.unmasked.any()) for step in steps) <= LENGTH


@pytest.mark.parametrize("stop", [("a",), ("ab", "ba"), ("zzzz",), (" the",)])
def test_a_stop_string_ends_a_text_as_if_it_had_been_written_to_the_end(generator, stop):
    every = [new_request((), 40, seed, steps=3, stop=stop) for seed in range(12)]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        texts = [future.result(SECONDS) for future in engine.submit(every)]
    for asked, text in zip(every, texts, strict=True):
        whole = alone(generator, asked).text
        ends = [at for at in (whole.find(string) for string in stop) if at >= 0]
        assert text.text == whole[: min(ends, default=len(whole))]
        assert text.finish_reason == ("stop" if ends else "length")
        assert generator.tokenizer.decode(text.tokens) == text.text


@pytest.mark.parametrize("name", KINDS)
def test_a_stop_string_ends_texts_of_every_kind_of_tokenizer_where_it_ends_the_whole(name):
    generator = uniform_generator(GivenTokenizer(name))
    stops = ("e", " c", "\ufffd\ufffd", "살", ".")
    prompt = [token for token in (7, 20) if token < generator.tokenizer.size]
    every = [new_request(tuple(prompt), 40, seed, steps=4) for seed in range(12)]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        wholes = [future.result(SECONDS) for future in engine.submit(every)]
        texts = [future.result(SECONDS) for future in engine.submit([replace(asked, stop=stops) for asked in every])]
    for asked, whole, text in zip(every, wholes, texts, strict=True):
        assert whole == alone(generator, asked)
        end = cut(whole.text, stops)
        assert text.text == whole.text[:end]
        assert text.finish_reason == (whole.finish_reason if end is None else "stop")
        assert text.tokens == whole.tokens[: len(text.tokens)]
        together = generator.tokenizer.decode([*prompt, *text.tokens])
        assert together.startswith(generator.tokenizer.decode(prompt) + text.text)


def test_a_text_that_has_ended_takes_no_more_steps(generator, engine):
    asked = new_request((), 12 * LENGTH, seed=2, steps=4)
    stop = (alone(generator, asked).text[:2],)
    (future,) = engine.submit([new_request((), 12 * LENGTH, seed=2, steps=4, stop=stop)])
    text = future.result(SECONDS)
    assert (text.text, text.tokens, text.finish_reason) == ("", (), "stop")
    assert text.cost.denoiser_calls <= 4


def test_a_stop_string_in_the_prompt_ends_nothing(generator, engine):
    prompt = generator.read("stop here")
    asked = new_request(prompt, 5, seed=1)
    (future,) = engine.submit([new_request(prompt, 5, seed=1, stop=("stop here",))])
    assert future.result(SECONDS) == alone(generator, asked)


def test_documents_end_where_they_end_alone_and_stops_fall_between_the_bytes_of_a_letter():
    generator = uniform_generator(Bytes())
    every = [new_request((), 120, seed, steps=steps) for seed in range(5) for steps in (1, 3)]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        texts = [future.result(SECONDS) for future in engine.submit(every)]
        for asked, text in zip(every, texts, strict=True):
            expected = alone(generator, asked)
            assert text == expected
            assert text.cost.denoiser_calls <= expected.cost.denoiser_calls
        assert {text.finish_reason for text in texts} == {"stop", "length"}
        stops = [alone(generator, asked).text[9:11] for asked in every]
        again = [replace(asked, stop=(stop,)) for asked, stop in zip(every, stops, strict=True)]
        cut = [future.result(SECONDS) for future in engine.submit(again)]
    for asked, stop, text in zip(every, stops, cut, strict=True):
        whole = alone(generator, asked).text
        assert text.text == whole[: whole.find(stop)]
        assert generator.tokenizer.decode(text.tokens).startswith(text.text)


def test_new_texts_are_of_the_new_model_and_running_ones_of_the_old(tmp_path):
    old, new = open_bundle(make_bundle(tmp_path)), echo()
    expected = alone(old, new_request((3,), 30, 1))
    with gated(old) as (engine, gate):
        (before,) = engine.submit([new_request((3,), 30, 1)])
        gate.wait()
        engine.swap(new, "2")
        (after,) = engine.submit([new_request((3,), 30, 1)])
        gate.let(100_000)
        assert (before.version, after.version, engine.version) == ("1", "2", "2")
        assert after.result(SECONDS).tokens == (3,) * 30
        assert before.result(SECONDS) == expected


def test_a_model_that_no_text_needs_any_more_is_dropped(tmp_path):
    old = open_bundle(make_bundle(tmp_path))
    with InferenceEngine(old, "1", PATIENT) as engine:
        (future,) = engine.submit([new_request((), 200, 1)])
        engine.swap(echo(), "2")
        gone = weakref.ref(old.denoiser.network)
        del old
        future.result(SECONDS)
        engine.submit([new_request((3,))])[0].result(SECONDS)
        gc.collect()
        assert gone() is None


def test_of_two_swaps_the_last_one_stands(generator):
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for version in ("2", "3"):
            engine.swap(echo() if version == "3" else generator, version)
        (future,) = engine.submit([new_request((3,), 6)])
        assert future.result(SECONDS).tokens == (3,) * 6
        assert (future.version, engine.model.version) == ("3", "3")
