"""Requests share the engine: who is admitted, who runs when, and what each waits for."""

import gc
import time
from dataclasses import replace

import pytest
import torch

from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import open_bundle
from edlm.inference.progress import Progress
from edlm.inference.request import Cancelled, Full, Limits
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle
from tests.engines import PATIENT, SECONDS, alone, gated, new_request


def test_rows_at_different_times_with_different_settings_share_one_pass(generator, folder):
    with gated(open_bundle(folder), replace(PATIENT, step_seconds=100.0)) as (engine, gate):
        some = [
            new_request((), LENGTH, 1, steps=50),
            new_request((1,), 4, 2, steps=2, candidates=3),
            new_request((None, 1), None, 3, steps=1),
        ]
        first = engine.submit(some[:1])
        gate.wait()
        others = engine.submit(some[1:])
        gate.let()
        gate.wait()
        assert gate.rows == [1, 3]
        assert [future.progress().step > 0 for future in (*first, *others)] == [True, False, False]
        gate.let(1000)
        assert all(
            t.result(SECONDS) == alone(generator, asked) for t, asked in zip((*first, *others), some, strict=True)
        )


def test_no_more_rows_than_slots_run_at_once(folder):
    limits = Limits(slots=3, step_seconds=100.0, waiting=20, patience_seconds=1e6)
    with gated(open_bundle(folder), limits) as (engine, gate):
        futures = engine.submit([new_request(seed=seed) for seed in range(10)])
        gate.let(1000)
        assert all(future.result(SECONDS) for future in futures)
        assert max(gate.rows) == 3
        assert engine.statistics().fill > 0.8


def test_a_short_text_among_long_ones_is_done_when_they_have_hardly_begun(tmp_path):
    generator = open_bundle(make_bundle(tmp_path, length=64))
    with gated(generator, Limits(slots=8, waiting=20, patience_seconds=1e6)) as (engine, gate):
        longs = engine.submit([new_request((), 64, seed, steps=200) for seed in range(6)])
        gate.wait()
        (short,) = engine.submit([new_request((), 64, 9, steps=4)])
        steps: list[int] = []
        short.watch(lambda: steps.append(max(long.progress().cost.denoiser_calls for long in longs)))
        gate.let(100_000)
        short.result(SECONDS)
        assert steps[-1] <= 8
        assert min(long.result(SECONDS).cost.denoiser_calls for long in longs) > 40


def test_a_short_text_takes_the_slot_of_an_earlier_long_one_and_both_are_as_alone(tmp_path):
    generator = open_bundle(make_bundle(tmp_path, length=64))
    with gated(generator, Limits(slots=1, waiting=20, patience_seconds=1e6)) as (engine, gate):
        long, short = new_request((), 128, 1, steps=200), new_request((), 5, 2, steps=1)
        (first,) = engine.submit([long])
        gate.wait()
        (second,) = engine.submit([short])
        gate.let(100_000)
        text = second.result(SECONDS)
        assert first.progress().cost.denoiser_calls < 10
        assert text == alone(open_bundle(tmp_path / "bundle"), short)
        assert first.result(SECONDS) == alone(open_bundle(tmp_path / "bundle"), long)


def test_a_text_with_many_candidates_goes_in_parts_between_the_steps_of_others(folder):
    generator, plain = open_bundle(folder), open_bundle(folder)
    together: list[int] = []  # how many candidates the energy was given at once
    generator.energies["step"].register_forward_pre_hook(lambda _, given: together.append(given[0].shape[1]))
    heavy, light = new_request((), LENGTH, 1, steps=2, candidates=64), new_request((), LENGTH, 2, steps=4)
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
        greedy = engine.submit([new_request((), 400, seed, steps=12, key="greedy") for seed in range(30)])
        gate.wait()
        (modest,) = engine.submit([new_request((), 40, 99, steps=12, key="modest")])
        taken: list[int] = []
        modest.watch(lambda: taken.append(sum(future.progress().cost.denoiser_calls for future in greedy)))
        gate.let(1_000_000)
        calls = modest.result(SECONDS).cost.denoiser_calls
        for future in greedy:
            future.cancel()
        assert taken[-1] <= 2 * calls


def test_there_is_room_for_so_many_and_a_list_is_taken_whole_or_not_at_all(folder):
    with gated(open_bundle(folder), Limits(slots=2, waiting=3, patience_seconds=1e6)) as (engine, _):
        engine.submit([new_request(seed=1), new_request(seed=2)])
        with pytest.raises(Full) as full:
            engine.submit([new_request(seed=seed) for seed in range(4)])
        assert full.value.reason == "waiting"
        assert full.value.retry_after_seconds >= 1
        engine.submit([new_request(seed=seed) for seed in range(3)])
        with pytest.raises(Full):
            engine.submit([new_request()])
        with pytest.raises(ValueError, match="6 texts at once; at most 5"):
            engine.submit([new_request()] * 6)
        now = engine.statistics()
        assert (now.submitted, now.running + now.waiting, now.rejected) == (5, 5, {"waiting": 2})


def test_without_a_queue_texts_are_generated_while_a_slot_is_free(folder):
    with gated(open_bundle(folder), Limits(slots=2, waiting=0, patience_seconds=1e6)) as (engine, gate):
        futures = engine.submit([new_request(seed=1), new_request(seed=2)])
        with pytest.raises(Full) as full:
            engine.submit([new_request()])
        assert full.value.reason == "waiting"
        with pytest.raises(ValueError, match="3 texts at once; at most 2"):
            engine.submit([new_request()] * 3)
        gate.let(1_000_000)
        for future in futures:
            future.result(SECONDS)
        engine.submit([new_request()])[0].result(SECONDS)


def test_a_request_that_would_wait_too_long_is_rejected_and_one_that_is_alone_never(folder):
    with gated(open_bundle(folder), Limits(slots=2, patience_seconds=1e-9)) as (engine, _):
        engine.submit([new_request((), 4000, steps=100, deadline=time.monotonic() + SECONDS)])
        with pytest.raises(Full) as full:
            engine.submit([new_request(key="b")])
        assert full.value.reason == "patience"
        assert engine.backlog_seconds > 0


def test_a_request_that_could_not_finish_by_its_deadline_is_rejected(folder):
    with gated(open_bundle(folder), PATIENT) as (engine, _):
        engine.submit([new_request((), 4000, steps=100)])
        late = new_request((), 4000, steps=100, deadline=time.monotonic() + 0.5)
        assert engine.estimate([late]) > 0.5
        with pytest.raises(Full) as full:
            engine.submit([late])
        assert full.value.reason == "deadline"


def test_a_key_waits_for_its_own_share_alone(folder):
    with gated(open_bundle(folder), PATIENT) as (engine, _):
        engine.submit([new_request((), 4000, steps=12, key="greedy") for _ in range(8)])
        asked = new_request((), 12, steps=12)
        assert engine.estimate([asked]) < 0.05 * engine.backlog_seconds
        assert engine.estimate([new_request((), 12, steps=12, key="greedy")]) > engine.backlog_seconds


def test_submitted_is_finished_and_running_and_waiting_at_every_moment(generator):
    with InferenceEngine(generator, "1", Limits(slots=3, waiting=100, patience_seconds=1e6)) as engine:
        wrong: list[object] = []

        def count() -> None:
            now = engine.statistics()
            if now.submitted != sum(now.finished.values()) + now.running + now.waiting or now.running > 3:
                wrong.append(now)

        futures = []
        for seed in range(20):
            (future,) = engine.submit([new_request((), 20, seed, key="ab"[seed % 2])])
            future.watch(count)
            futures.append(future)
            if seed % 4 == 3:
                future.cancel()
        ended = 0
        for future in futures:
            try:
                future.result(SECONDS)
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
        futures = engine.submit([new_request((), 200, seed, steps=12) for seed in range(4)])
        gate.let(150)
        for _ in range(100):
            gate.wait()
        assert min(future.progress().step for future in futures) > 50
        assert living_states() - before <= 3 * len(futures)


def test_a_score_is_made_in_parts_between_the_steps_of_texts(generator, engine):
    sampler = Sampler(steps=40, candidates=3)
    work = generator.stepwise_score(range(LENGTH), 5, 20, sampler)
    score = engine.run(20 * 40, work, "a", time.monotonic() + 1e6)
    (text,) = engine.submit([new_request()])
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
