"""Texts that share steps: each is the text of its request alone, and no unmasked token changes.

What the engine does when something goes wrong is in test_engine_faults.py.
"""

import gc
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data.tokenizer_kinds import Bytes
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import Cancelled, Full, Limits
from edlm.inference.stop_strings import cut
from edlm.inference.text import NOT_YET, Progress
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult
from tests.bundles import LENGTH, make_bundle
from tests.engines import PATIENT, SECONDS, alone, echo, gated, job, jobs, recorded
from tests.inference.test_generator import uniform_generator
from tests.vocabularies import KINDS, GivenTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("continuous"))


@pytest.fixture(scope="module")
def generator(folder) -> TextGenerator:
    return open_bundle(folder)


@pytest.fixture
def engine(generator):
    with InferenceEngine(generator, "1", PATIENT) as engine:
        yield engine


# ---------------------------------------------------------------- what is written


@settings(max_examples=12, deadline=None)
@given(some=st.lists(jobs(), min_size=1, max_size=7), slots=st.integers(1, 5), step=st.sampled_from([1e-6, 0.01, 10.0]))
def test_every_text_is_a_function_of_its_request_and_the_model_in_any_batch(generator, some, slots, step):
    limits = Limits(slots=slots, step_seconds=step, waiting=100, patience_seconds=1e6)
    with InferenceEngine(generator, "1", limits) as engine:
        tickets = [ticket for asked in some for ticket in engine.submit([asked])]
        for asked, ticket in zip(some, tickets, strict=True):
            assert ticket.result(SECONDS) == alone(generator, asked)
        assert engine.backlog_seconds == 0


def test_it_takes_the_very_steps_that_the_sampler_takes(generator, engine):
    asked = job((1, 2), 30, seed=3, steps=5, candidates=3)
    steps: list[StepResult] = []
    expected = alone(generator, asked, steps.append)
    (ticket,) = engine.submit([asked])
    assert ticket.result(SECONDS) == expected
    progress, unmasked_at, block = ticket.progress(), [NOT_YET] * 30, -1
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
@given(some=st.lists(jobs(), min_size=1, max_size=5))
def test_what_is_given_or_unmasked_never_changes_and_no_position_is_masked_again(generator, some):
    mask = generator.mask
    with InferenceEngine(generator, "1", Limits(slots=3, waiting=100, patience_seconds=1e6)) as engine:
        tickets = engine.submit(some)
        seen = [(ticket.progress(), recorded(ticket)) for ticket in tickets]
        texts = [ticket.result(SECONDS) for ticket in tickets]
        engine.drain(SECONDS)
    for (first, later), ticket, text in zip(seen, tickets, texts, strict=True):
        states = [first, *later]
        assert [state.status for state in later].count("done") == (first.status != "done")
        assert states[-1] is ticket.progress()
        assert ticket.progress().status == "done"
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
        job((mine[key],), [5, 14][seed % 7 == 0], seed, key=key, **kinds[seed % len(kinds)])
        for seed in range(1000)
        for key in mine
    ]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for asked, ticket in zip(every, engine.submit(every), strict=True):
            assert set(ticket.result(SECONDS).tokens) == {mine[asked.key]}


def test_a_text_without_a_hole_is_itself_and_costs_nothing(engine):
    (ticket,) = engine.submit([job((1, 2, 3), None)])
    assert ticket.result(SECONDS).tokens == (1, 2, 3)
    assert engine.statistics().passes["denoiser"] == 0


def test_steps_that_unmask_nothing_the_text_needs_are_left_out(generator, engine):
    asked = job((), 3, seed=5, steps=300)
    steps: list[StepResult] = []
    expected = alone(generator, asked, steps.append)
    (ticket,) = engine.submit([asked])
    text = ticket.result(SECONDS)
    assert text == expected
    assert [bool((step.xs[0, :3] == generator.mask).any()) for step in steps] == [True] * (len(steps) - 1) + [False]
    assert text.tally.denoiser_calls == sum(int(step.unmasked.any()) for step in steps) <= LENGTH


# ---------------------------------------------------------------- where a text ends


@pytest.mark.parametrize("stop", [("a",), ("ab", "ba"), ("zzzz",), (" the",)])
def test_a_stop_string_ends_a_text_as_if_it_had_been_written_to_the_end(generator, stop):
    every = [job((), 40, seed, steps=3, stop=stop) for seed in range(12)]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        texts = [ticket.result(SECONDS) for ticket in engine.submit(every)]
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
    every = [job(tuple(prompt), 40, seed, steps=4) for seed in range(12)]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        wholes = [ticket.result(SECONDS) for ticket in engine.submit(every)]
        texts = [ticket.result(SECONDS) for ticket in engine.submit([replace(asked, stop=stops) for asked in every])]
    for asked, whole, text in zip(every, wholes, texts, strict=True):
        assert whole == alone(generator, asked)
        end = cut(whole.text, stops)
        assert text.text == whole.text[:end]
        assert text.finish_reason == (whole.finish_reason if end is None else "stop")
        assert text.tokens == whole.tokens[: len(text.tokens)]
        together = generator.tokenizer.decode([*prompt, *text.tokens])
        assert together.startswith(generator.tokenizer.decode(prompt) + text.text)


def test_a_text_that_has_ended_takes_no_more_steps(generator, engine):
    asked = job((), 12 * LENGTH, seed=2, steps=4)
    stop = (alone(generator, asked).text[:2],)
    (ticket,) = engine.submit([job((), 12 * LENGTH, seed=2, steps=4, stop=stop)])
    text = ticket.result(SECONDS)
    assert (text.text, text.tokens, text.finish_reason) == ("", (), "stop")
    assert text.tally.denoiser_calls <= 4


def test_a_stop_string_in_the_prompt_ends_nothing(generator, engine):
    prompt = generator.read("stop here")
    asked = job(prompt, 5, seed=1)
    (ticket,) = engine.submit([job(prompt, 5, seed=1, stop=("stop here",))])
    assert ticket.result(SECONDS) == alone(generator, asked)


def test_documents_end_where_they_end_alone_and_stops_fall_between_the_bytes_of_a_letter():
    generator = uniform_generator(Bytes())
    every = [job((), 120, seed, steps=steps) for seed in range(5) for steps in (1, 3)]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        texts = [ticket.result(SECONDS) for ticket in engine.submit(every)]
        for asked, text in zip(every, texts, strict=True):
            expected = alone(generator, asked)
            assert text == expected
            assert text.tally.denoiser_calls <= expected.tally.denoiser_calls
        assert {text.finish_reason for text in texts} == {"stop", "length"}
        stops = [alone(generator, asked).text[9:11] for asked in every]
        again = [replace(asked, stop=(stop,)) for asked, stop in zip(every, stops, strict=True)]
        cut = [ticket.result(SECONDS) for ticket in engine.submit(again)]
    for asked, stop, text in zip(every, stops, cut, strict=True):
        whole = alone(generator, asked).text
        assert text.text == whole[: whole.find(stop)]
        assert generator.tokenizer.decode(text.tokens).startswith(text.text)


# ---------------------------------------------------------------- who shares a step, and when


def test_rows_at_different_times_with_different_settings_share_one_pass(generator, folder):
    with gated(open_bundle(folder), replace(PATIENT, step_seconds=100.0)) as (engine, gate):
        some = [job((), LENGTH, 1, steps=50), job((1,), 4, 2, steps=2, candidates=3), job((None, 1), None, 3, steps=1)]
        first = engine.submit(some[:1])
        gate.wait()
        others = engine.submit(some[1:])
        gate.let()
        gate.wait()
        assert gate.rows == [1, 3]
        assert [ticket.progress().step > 0 for ticket in (*first, *others)] == [True, False, False]
        gate.let(1000)
        assert all(
            t.result(SECONDS) == alone(generator, asked) for t, asked in zip((*first, *others), some, strict=True)
        )


def test_no_more_rows_than_slots_are_on_their_way(folder):
    limits = Limits(slots=3, step_seconds=100.0, waiting=20, patience_seconds=1e6)
    with gated(open_bundle(folder), limits) as (engine, gate):
        tickets = engine.submit([job(seed=seed) for seed in range(10)])
        gate.let(1000)
        assert all(ticket.result(SECONDS) for ticket in tickets)
        assert max(gate.rows) == 3
        assert engine.statistics().fill > 0.8


def test_a_short_text_among_long_ones_is_done_when_they_have_hardly_begun(tmp_path):
    generator = open_bundle(make_bundle(tmp_path, length=64))
    with gated(generator, Limits(slots=8, waiting=20, patience_seconds=1e6)) as (engine, gate):
        longs = engine.submit([job((), 64, seed, steps=200) for seed in range(6)])
        gate.wait()
        (short,) = engine.submit([job((), 64, 9, steps=4)])
        steps: list[int] = []
        short.watch(lambda: steps.append(max(long.progress().tally.denoiser_calls for long in longs)))
        gate.let(100_000)
        short.result(SECONDS)
        assert steps[-1] <= 8
        assert min(long.result(SECONDS).tally.denoiser_calls for long in longs) > 40


def test_a_short_text_takes_the_slot_of_an_earlier_long_one_and_both_are_as_alone(tmp_path):
    generator = open_bundle(make_bundle(tmp_path, length=64))
    with gated(generator, Limits(slots=1, waiting=20, patience_seconds=1e6)) as (engine, gate):
        long, short = job((), 128, 1, steps=200), job((), 5, 2, steps=1)
        (first,) = engine.submit([long])
        gate.wait()
        (second,) = engine.submit([short])
        gate.let(100_000)
        text = second.result(SECONDS)
        assert first.progress().tally.denoiser_calls < 10
        assert text == alone(open_bundle(tmp_path / "bundle"), short)
        assert first.result(SECONDS) == alone(open_bundle(tmp_path / "bundle"), long)


def test_a_text_with_many_candidates_goes_in_parts_between_the_steps_of_others(folder):
    generator, plain = open_bundle(folder), open_bundle(folder)
    together: list[int] = []  # how many candidates the energy was given at once
    generator.energies["step"].register_forward_pre_hook(lambda _, given: together.append(given[0].shape[1]))
    heavy, light = job((), LENGTH, 1, steps=2, candidates=64), job((), LENGTH, 2, steps=4)
    limits = Limits(step_seconds=1e-9, waiting=100, patience_seconds=1e9)
    with InferenceEngine(generator, "1", limits) as engine:
        (big,) = engine.submit([heavy])
        while big.started is None:
            time.sleep(0.001)
        (small,) = engine.submit([light])
        seen: list[int] = []
        small.watch(lambda: seen.append(big.progress().step))
        assert small.result(SECONDS) == alone(plain, light)
        assert seen[-1] < 2
        assert max(together) == 1
        assert big.result(SECONDS) == alone(plain, heavy)


def test_keys_share_the_work_alike_however_many_texts_one_of_them_has(folder):
    limits = Limits(slots=4, step_seconds=1e-9, waiting=100, patience_seconds=1e9)
    with gated(open_bundle(folder), limits) as (engine, gate):
        greedy = engine.submit([job((), 400, seed, steps=12, key="greedy") for seed in range(30)])
        gate.wait()
        (modest,) = engine.submit([job((), 40, 99, steps=12, key="modest")])
        taken: list[int] = []
        modest.watch(lambda: taken.append(sum(ticket.progress().tally.denoiser_calls for ticket in greedy)))
        gate.let(1_000_000)
        calls = modest.result(SECONDS).tally.denoiser_calls
        for ticket in greedy:
            ticket.cancel()
        assert taken[-1] <= 2 * calls


# ---------------------------------------------------------------- coming, waiting and going


def test_there_is_room_for_so_many_and_a_list_is_taken_whole_or_not_at_all(folder):
    with gated(open_bundle(folder), Limits(slots=2, waiting=3, patience_seconds=1e6)) as (engine, _):
        engine.submit([job(seed=1), job(seed=2)])
        with pytest.raises(Full) as full:
            engine.submit([job(seed=seed) for seed in range(4)])
        assert full.value.reason == "waiting"
        assert full.value.retry_after_seconds >= 1
        engine.submit([job(seed=seed) for seed in range(3)])
        with pytest.raises(Full):
            engine.submit([job()])
        with pytest.raises(ValueError, match="6 texts at once; at most 5"):
            engine.submit([job()] * 6)
        now = engine.statistics()
        assert (now.submitted, now.running + now.waiting, now.rejected) == (5, 5, {"waiting": 2})


def test_without_a_queue_texts_are_generated_while_a_slot_is_free(folder):
    with gated(open_bundle(folder), Limits(slots=2, waiting=0, patience_seconds=1e6)) as (engine, gate):
        tickets = engine.submit([job(seed=1), job(seed=2)])
        with pytest.raises(Full) as full:
            engine.submit([job()])
        assert full.value.reason == "waiting"
        with pytest.raises(ValueError, match="3 texts at once; at most 2"):
            engine.submit([job()] * 3)
        gate.let(1_000_000)
        for ticket in tickets:
            ticket.result(SECONDS)
        engine.submit([job()])[0].result(SECONDS)


def test_a_request_that_would_wait_too_long_is_rejected_and_one_that_is_alone_never(folder):
    with gated(open_bundle(folder), Limits(slots=2, patience_seconds=1e-9)) as (engine, _):
        engine.submit([job((), 4000, steps=100, deadline=time.monotonic() + SECONDS)])
        with pytest.raises(Full) as full:
            engine.submit([job(key="b")])
        assert full.value.reason == "patience"
        assert engine.backlog_seconds > 0


def test_a_request_that_could_not_finish_by_its_deadline_is_rejected(folder):
    with gated(open_bundle(folder), PATIENT) as (engine, _):
        engine.submit([job((), 4000, steps=100)])
        late = job((), 4000, steps=100, deadline=time.monotonic() + 0.5)
        assert engine.estimate([late]) > 0.5
        with pytest.raises(Full) as full:
            engine.submit([late])
        assert full.value.reason == "deadline"


def test_a_key_waits_for_its_own_share_alone(folder):
    with gated(open_bundle(folder), PATIENT) as (engine, _):
        engine.submit([job((), 4000, steps=12, key="greedy") for _ in range(8)])
        asked = job((), 12, steps=12)
        assert engine.estimate([asked]) < 0.05 * engine.backlog_seconds
        assert engine.estimate([job((), 12, steps=12, key="greedy")]) > engine.backlog_seconds


def test_submitted_is_finished_and_running_and_waiting_at_every_moment(generator):
    with InferenceEngine(generator, "1", Limits(slots=3, waiting=100, patience_seconds=1e6)) as engine:
        wrong: list[object] = []

        def count() -> None:
            now = engine.statistics()
            if now.submitted != sum(now.finished.values()) + now.running + now.waiting or now.running > 3:
                wrong.append(now)

        tickets = []
        for seed in range(20):
            (ticket,) = engine.submit([job((), 20, seed, key="ab"[seed % 2])])
            ticket.watch(count)
            tickets.append(ticket)
            if seed % 4 == 3:
                ticket.cancel()
        ended = 0
        for ticket in tickets:
            try:
                ticket.result(SECONDS)
            except Cancelled:
                ended += 1
        assert wrong == []
        now = engine.statistics()
        assert now.finished == {"length": 20 - ended, **({"cancelled": ended} if ended else {})}
        assert now.tokens >= 20 * (20 - ended)
        assert (now.running, now.waiting, engine.backlog_seconds) == (0, 0, 0)


def living_states() -> int:
    """All that live in this process, those of other tests among them."""
    gc.collect()
    return sum(type(item) is Progress for item in gc.get_objects())


def test_who_does_not_look_costs_no_memory(folder):
    before = living_states()
    with gated(open_bundle(folder)) as (engine, gate):
        tickets = engine.submit([job((), 200, seed, steps=12) for seed in range(4)])
        gate.let(150)
        for _ in range(100):
            gate.wait()
        assert min(ticket.progress().step for ticket in tickets) > 50
        assert living_states() - before <= 3 * len(tickets)


# ---------------------------------------------------------------- scores


def test_a_score_is_made_in_parts_between_the_steps_of_texts(generator, engine):
    sampler = Sampler(steps=40, candidates=3)
    work = generator.stepwise_score(range(LENGTH), 5, 20, sampler)
    score = engine.run(20 * 40, work, "a", time.monotonic() + 1e6)
    (text,) = engine.submit([job()])
    text.result(SECONDS)
    assert not score.done
    expected = generator.score(range(LENGTH), 5, 20, sampler)
    actual = score.result(SECONDS)
    assert torch.equal(actual.bound.values, expected.bound.values)
    assert torch.equal(actual.nelbo.values, expected.nelbo.values)
    assert all(
        torch.equal(actual.energies[name].values, estimate.values) for name, estimate in expected.energies.items()
    )
    assert engine.statistics().finished == {"length": 1, "scored": 1}
    assert engine.backlog_seconds == 0


def test_a_score_whose_client_is_gone_ends(generator, engine):
    score = engine.run(1.0, generator.stepwise_score([1, 2], 5, 64, Sampler(steps=1000)), "a", time.monotonic() + 1e6)
    score.cancel()
    with pytest.raises(Cancelled):
        score.result(SECONDS)


# ---------------------------------------------------------------- other models


def test_new_texts_are_of_the_new_model_and_running_ones_of_the_old(tmp_path):
    old, new = open_bundle(make_bundle(tmp_path)), echo()
    expected = alone(old, job((3,), 30, 1))
    with gated(old) as (engine, gate):
        (before,) = engine.submit([job((3,), 30, 1)])
        gate.wait()
        engine.swap(new, "2")
        (after,) = engine.submit([job((3,), 30, 1)])
        gate.let(100_000)
        assert (before.version, after.version, engine.version) == ("1", "2", "2")
        assert after.result(SECONDS).tokens == (3,) * 30
        assert before.result(SECONDS) == expected


def test_a_model_that_no_text_needs_any_more_is_dropped(tmp_path):
    old = open_bundle(make_bundle(tmp_path))
    with InferenceEngine(old, "1", PATIENT) as engine:
        (ticket,) = engine.submit([job((), 200, 1)])
        engine.swap(echo(), "2")
        gone = weakref.ref(old.denoiser.network)
        del old
        ticket.result(SECONDS)
        engine.submit([job((3,))])[0].result(SECONDS)
        gc.collect()
        assert gone() is None


def test_of_two_swaps_the_last_one_stands(generator):
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for version in ("2", "3"):
            engine.swap(echo() if version == "3" else generator, version)
        (ticket,) = engine.submit([job((3,), 6)])
        assert ticket.result(SECONDS).tokens == (3,) * 6
        assert (ticket.version, engine.model.version) == ("3", "3")
