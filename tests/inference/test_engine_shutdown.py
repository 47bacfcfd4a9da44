"""The end of an engine, by an error or a drain: every request ends, and its thread too."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from edlm.inference.engine import InferenceEngine
from edlm.inference.request import EngineFailed, Full, Limits, NonFiniteText
from edlm.sampling.sampler import Sampler
from tests.engines import PATIENT, SECONDS, alone, gated, new_request, watched


def one_slot() -> Limits:
    return Limits(slots=1, waiting=100, patience_seconds=1e6)


def test_an_error_in_the_engine_ends_every_request_and_none_hangs(fresh, caplog):
    fault = threading.Event()

    def strike(_: torch.Tensor) -> None:
        if fault.is_set():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    watched(fresh, before=strike)
    with caplog.at_level(logging.CRITICAL), InferenceEngine(fresh, "1", one_slot()) as engine:
        futures = engine.submit([new_request((), 400, seed) for seed in range(5)])
        score = engine.run(64.0, fresh.stepwise_score([1, 2], 5, 64, Sampler(steps=100)), "a", time.monotonic() + 1e6)
        assert engine.alive
        fault.set()
        for future in (*futures, score):
            with pytest.raises(EngineFailed, match="RuntimeError"):
                future.result(SECONDS)
        with pytest.raises(EngineFailed):
            engine.submit([new_request()])
        assert not engine.alive
        assert engine.statistics().finished == {"failed": 6}
        assert (engine.backlog_seconds, engine.beat_age_seconds) == (0, 0)


def test_a_step_that_hangs_shows_in_the_beat(fresh):
    with gated(fresh) as (engine, gate):
        assert engine.beat_age_seconds == 0
        engine.submit([new_request()])
        gate.wait()
        before = engine.beat_age_seconds
        time.sleep(0.05)
        assert engine.beat_age_seconds >= before + 0.05
        assert engine.alive


def test_an_engine_that_was_idle_is_not_late(fresh):
    with gated(fresh) as (engine, gate):
        time.sleep(0.3)
        (future,) = engine.submit([new_request((), 4, 1)])
        assert engine.beat_age_seconds < 0.2
        gate.wait()
        future.cancel()


def test_what_was_begun_before_a_drain_is_finished_and_nothing_after(fresh, generator):
    with gated(fresh) as (engine, gate):
        some = [new_request((), 40, seed) for seed in range(3)]
        futures = engine.submit(some)
        drained: list[bool] = []
        drain = threading.Thread(target=lambda: drained.append(engine.drain(SECONDS)))
        drain.start()
        gate.wait()

        def until_it_has_begun() -> None:
            while True:
                engine.submit([new_request()])[0].cancel()

        with pytest.raises(Full, match="draining"):
            until_it_has_begun()
        gate.let(10_000)
        for request, future in zip(some, futures, strict=True):
            assert future.result(SECONDS) == alone(generator, request)
        drain.join(SECONDS)
        assert drained == [True]
        assert not engine.alive
        with pytest.raises(EngineFailed, match="closed"):
            engine.submit([new_request()])


def test_what_follows_is_let_in_where_there_is_no_room_and_a_drain_waits_for_it(fresh):
    def seven():
        yield
        return 7

    full = Limits(slots=1, waiting=1, patience_seconds=1e6)
    with gated(fresh, full) as (engine, gate), ThreadPoolExecutor(1) as pool:
        with engine.kept_open():
            futures = engine.submit([new_request((), 4, 1), new_request((), 4, 2)])
            with pytest.raises(Full, match="waiting"):
                engine.run(1, seven(), "a", 1e18)
            first = engine.run(1, seven(), "a", 1e18, follows=True)
            gate.let(1_000_000)
            for future in (*futures, first):
                future.result(SECONDS)
            drained = pool.submit(engine.drain, SECONDS)
            with pytest.raises(TimeoutError):
                drained.result(0.2)
            assert engine.run(1, seven(), "a", 1e18, follows=True).result(SECONDS) == 7
        assert drained.result() is True
        assert engine.statistics().submitted == 4


def test_what_a_drain_has_no_time_for_fails_and_the_thread_ends(fresh):
    before = set(threading.enumerate())  # a service of other tests has an engine, too
    engine = InferenceEngine(watched(fresh), "1", PATIENT)
    (future,) = engine.submit([new_request((), 100_000)])
    assert engine.drain(0.05) is False
    with pytest.raises(EngineFailed, match="stopped"):
        future.result(0)
    assert set(threading.enumerate()) <= before
    engine.close()  # a second time does no harm


def test_closing_an_engine_that_did_nothing_ends_its_thread(fresh):
    before = threading.active_count()
    with InferenceEngine(fresh, "1", PATIENT):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_error_of_other_work_is_its_own(fresh, generator):
    def wrong():
        yield
        raise ValueError("no such thing")

    def numberless():
        yield
        raise FloatingPointError("an energy is not a number")

    with InferenceEngine(fresh, "1", PATIENT) as engine:
        deadline = time.monotonic() + 1e6
        first, second = (engine.run(1.0, work(), "a", deadline) for work in (wrong, numberless))
        with pytest.raises(ValueError, match="no such thing"):
            first.result(SECONDS)
        with pytest.raises(NonFiniteText):
            second.result(SECONDS)
        assert engine.submit([new_request()])[0].result(SECONDS) == alone(generator, new_request())
