"""Faults of the engine: each affected request gets its error once, and no other request is affected."""

import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from edlm.inference import batching
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import BrokenRow, Cancelled, EngineFailed, Expired, Full, Limits, OutOfMemory, Request
from edlm.sampling.sampler import LEAST_TEMPERATURE, Sampler
from tests.bundles import LENGTH, make_bundle
from tests.engines import PATIENT, SECONDS, TableEnergy, alone, gated, job, recorded, watched

SAD = 2  # the first token of a text whose numbers break


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(folder) -> TextGenerator:
    """A generator that nothing happens to."""
    return open_bundle(folder)


@pytest.fixture
def generator(folder) -> TextGenerator:
    return open_bundle(folder)


def one_slot() -> Limits:
    return Limits(slots=1, waiting=100, patience_seconds=1e6)


# ---------------------------------------------------------------- those who go away, or come too late


def test_who_is_cancelled_while_waiting_costs_nothing(generator):
    with gated(generator, one_slot()) as (engine, gate):
        (running,) = engine.submit([job((), 40, 1)])
        gate.wait()
        (waiting,) = engine.submit([job((), 400, 2)])
        waiting.cancel()
        gate.let()
        with pytest.raises(Cancelled):
            waiting.result(SECONDS)
        assert waiting.started is None
        assert not running.done
        assert (waiting.progress().status, waiting.progress().step) == ("done", 0)


def test_the_slot_of_a_cancelled_request_is_free_at_the_next_step(generator):
    with gated(generator, one_slot()) as (engine, gate):
        (first,) = engine.submit([job((), 400, 1)])
        gate.wait()
        (second,) = engine.submit([job((), 400, 2)])
        first.cancel()
        gate.let()
        gate.wait()  # the engine stands before its second pass
        assert first.done
        assert second.started is not None
        now = engine.statistics()
        assert (now.running, now.waiting, now.finished) == (1, 0, {"cancelled": 1})
        second.cancel()


def test_a_cancel_after_the_end_changes_nothing(generator, whole):
    with InferenceEngine(generator, "1", PATIENT) as engine:
        (ticket,) = engine.submit([job()])
        text = ticket.result(SECONDS)
        progress = ticket.progress()
        ticket.cancel()
        engine.submit([job()])[0].result(SECONDS)
        assert ticket.result(0) is text
        assert ticket.progress() is progress
        assert engine.statistics().finished == {"length": 2}
    assert text == alone(whole, job())


def test_who_is_past_the_deadline_before_it_starts_costs_nothing(generator):
    with gated(generator) as (engine, gate):
        (late,) = engine.submit([job(deadline=time.monotonic() - 1)])
        with pytest.raises(Expired):
            late.result(SECONDS)
        assert late.started is None
        assert gate.rows == []


def test_a_deadline_in_the_middle_ends_a_text_as_far_as_it_is(generator):
    with gated(generator) as (engine, gate):
        (late, other) = engine.submit([job((), 40, 1, deadline=time.monotonic() + 0.3), job((), 40, 2)])
        gate.wait()
        time.sleep(0.4)
        gate.let()
        with pytest.raises(Expired):
            late.result(SECONDS)
        assert late.progress().step > 0
        assert late.progress().status == "done"
        gate.let(10_000)
        other.result(SECONDS)
        assert engine.statistics().finished == {"expired": 1, "length": 1}


def test_a_watcher_that_raises_delays_no_other(generator, caplog):
    def closed() -> None:
        raise RuntimeError("the loop is closed")

    with InferenceEngine(generator, "1", PATIENT) as engine, caplog.at_level(logging.CRITICAL):
        (ticket,) = engine.submit([job((), 40)])
        ticket.watch(closed)
        states = recorded(ticket)
        ticket.result(SECONDS)
        engine.drain(SECONDS)
        assert states[-1].status == "done"
        assert engine.statistics().finished == {"length": 1}


# ---------------------------------------------------------------- numbers that are none


def broken(xt: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Features that are not numbers in the texts that begin with SAD."""
    return torch.where((xt[:, 0] == SAD)[:, None, None], torch.nan, context)


@pytest.mark.parametrize("candidates", [0, 1, 3])
def test_a_text_whose_numbers_are_none_ends_alone(generator, whole, candidates):
    watched(generator, after=broken)
    settings = {"candidates": candidates, "energy": "conditional"}
    some = [job((1 + seed % 3,), 2 * LENGTH, seed, **settings) for seed in range(9)]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for request, ticket in zip(some, engine.submit(some), strict=True):
            if request.known[0] == SAD:
                with pytest.raises(BrokenRow, match="not numbers"):
                    ticket.result(SECONDS)
            else:
                assert ticket.result(SECONDS) == alone(whole, request)
        assert engine.alive
        assert engine.statistics().finished == {"broken": 3, "length": 6}


def chosen(generator: TextGenerator, energies, count: int, candidates: int = 4) -> list[tuple[int, ...] | Exception]:
    """What was picked for each of `count` texts of one step, by energies that are made up; or why nothing was."""
    generator.energies = {**generator.energies, "table": TableEnergy(energies)}
    some = [job((), LENGTH, seed, steps=1, candidates=candidates, energy="table") for seed in range(count)]
    actual = []
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for ticket in engine.submit(some):
            try:
                ticket.result(SECONDS)
                actual.append(ticket.progress().picked)
            except BrokenRow as error:
                actual.append(error)
        assert engine.alive
    return actual


def test_among_equal_energies_every_candidate_is_as_likely(generator):
    picked = chosen(generator, lambda b, k: torch.full((b, k), 7.0), count=400)
    counts = torch.bincount(torch.tensor(picked)[:, 0], minlength=4)
    assert counts.sum() == 400
    assert ((counts - 100).square() / 100).sum() < 16.3  # chi-square of three degrees of freedom at 0.001


@pytest.mark.parametrize("chance", [math.inf, 1e30])
def test_a_candidate_that_cannot_be_is_never_picked(generator, chance):
    picked = chosen(generator, lambda b, k: torch.tensor([chance, 0.0, 0.0, 0.0]).expand(b, k), count=100)
    assert {pick for (pick,) in picked} == {1, 2, 3}


def test_an_energy_that_is_no_finite_number_is_shown_as_none(generator):
    generator.energies = {
        **generator.energies,
        "table": TableEnergy(lambda b, k: torch.tensor([math.inf, 0.5]).expand(b, k)),
    }
    with InferenceEngine(generator, "1", PATIENT) as engine:
        (ticket,) = engine.submit([job((), LENGTH, 1, steps=1, candidates=2, energy="table")])
        ticket.result(SECONDS)
        assert ticket.progress().energies == ((None, 0.5),)


@pytest.mark.parametrize("energy", [math.inf, -math.inf, math.nan])
def test_where_no_candidate_can_be_or_one_is_beyond_measure_the_text_ends(generator, energy):
    assert all(isinstance(found, BrokenRow) for found in chosen(generator, lambda b, k: torch.full((b, k), energy), 3))


def test_one_energy_beyond_measure_ends_the_text(generator):
    energies = chosen(generator, lambda b, k: torch.tensor([-math.inf, 0.0, 0.0, 0.0]).expand(b, k), 3)
    assert all(isinstance(found, BrokenRow) for found in energies)


# ---------------------------------------------------------------- memory


def full(rows: int, error: Exception):
    """A device on which no more than so many rows fit."""

    def refuse(xt: torch.Tensor) -> None:
        if len(xt) > rows:
            raise error

    return refuse


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_a_batch_that_does_not_fit_is_halved_without_an_effect_on_its_texts(generator, whole, error):
    watched(generator, before=full(2, error))
    some = [job((), 2 * LENGTH, seed, candidates=2) for seed in range(4)]
    with InferenceEngine(generator, "1", Limits(slots=4, step_seconds=100.0)) as engine:
        for request, ticket in zip(some, engine.submit(some), strict=True):
            assert ticket.result(SECONDS) == alone(whole, request)
        assert engine.statistics().finished == {"length": 4}


def test_batches_grow_again_when_there_is_room_again(generator, monkeypatch):
    monkeypatch.setattr(batching, "REGROWTH", 5)
    fault, rows = [2], []
    watched(generator, before=lambda xt: (rows.append(len(xt)), full(fault[0], ERRORS[0])(xt))[0])
    with InferenceEngine(generator, "1", Limits(slots=4, step_seconds=100.0)) as engine:
        engine.submit([job((), 4, seed, steps=1) for seed in range(4)])[-1].result(SECONDS)
        fault[0] = 4
        engine.submit([job((), 6 * LENGTH, seed) for seed in range(4)])[-1].result(SECONDS)
    assert rows[:3] == [4, 2, 2]
    assert max(rows[3:]) == 4


def test_what_does_not_fit_by_itself_ends_and_the_engine_lives(generator, whole):
    fault = [0]
    watched(generator, before=lambda xt: full(fault[0], ERRORS[0])(xt))
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for ticket in engine.submit([job(seed=seed, candidates=k) for seed in range(3) for k in (1, 64)]):
            with pytest.raises(OutOfMemory):
                ticket.result(SECONDS)
        fault[0] = 100
        assert engine.submit([job()])[0].result(SECONDS) == alone(whole, job())
        assert engine.statistics().finished == {"out of memory": 6, "length": 1}


@pytest.mark.parametrize("fits", [1, 0])
def test_candidates_that_do_not_fit_together_are_scored_one_by_one(generator, whole, fits):
    def refuse(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if given[0].shape[1] > fits:
            raise ERRORS[0]

    request = job((), LENGTH, 3, steps=2, candidates=64)
    hook = generator.energies["step"].register_forward_pre_hook(refuse)
    with InferenceEngine(generator, "1", Limits(step_seconds=0.02)) as engine:
        (ticket,) = engine.submit([request])
        if fits:
            assert ticket.result(SECONDS) == alone(whole, request)
        else:
            with pytest.raises(OutOfMemory):
                ticket.result(SECONDS)
        hook.remove()
        assert engine.submit([request])[0].result(SECONDS) == alone(whole, request)


# ---------------------------------------------------------------- the end of the engine


def test_an_error_in_the_engine_ends_every_request_and_none_hangs(generator, caplog):
    fault = threading.Event()

    def strike(_: torch.Tensor) -> None:
        if fault.is_set():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    watched(generator, before=strike)
    with caplog.at_level(logging.CRITICAL), InferenceEngine(generator, "1", one_slot()) as engine:
        tickets = engine.submit([job((), 400, seed) for seed in range(5)])
        score = engine.run(
            64.0, generator.stepwise_score([1, 2], 5, 64, Sampler(steps=100)), "a", time.monotonic() + 1e6
        )
        assert engine.alive
        fault.set()
        for ticket in (*tickets, score):
            with pytest.raises(EngineFailed, match="RuntimeError"):
                ticket.result(SECONDS)
        with pytest.raises(EngineFailed):
            engine.submit([job()])
        assert not engine.alive
        assert engine.statistics().finished == {"failed": 6}
        assert (engine.backlog_seconds, engine.beat_age_seconds) == (0, 0)


def test_a_step_that_hangs_shows_in_the_beat(generator):
    with gated(generator) as (engine, gate):
        assert engine.beat_age_seconds == 0
        engine.submit([job()])
        gate.wait()
        before = engine.beat_age_seconds
        time.sleep(0.05)
        assert engine.beat_age_seconds >= before + 0.05
        assert engine.alive


def test_a_text_whose_arithmetic_fails_ends_alone_in_any_batch(generator, whole):
    def fail(xt: torch.Tensor) -> None:
        if (xt[:, 0] == SAD).any():
            raise FloatingPointError("an energy is not a number")

    jobs = [job((first,), 6, 1) for first in (1, SAD, 3)]
    with InferenceEngine(watched(generator, before=fail), "1", PATIENT) as engine:
        before, sad, other = engine.submit(jobs)
        with pytest.raises(BrokenRow, match="not a number"):
            sad.result(SECONDS)
        for ticket, asked in ((before, jobs[0]), (other, jobs[2])):
            assert ticket.result(SECONDS) == alone(whole, asked)
        assert engine.alive
        assert engine.statistics().finished == {"length": 2, "broken": 1}


@pytest.mark.parametrize("candidates", [2, 40])
def test_weights_beyond_what_a_number_holds_choose_the_lowest_energy(generator, candidates):
    asked = job((1,), 8, 3, candidates=candidates, energy_temperature=LEAST_TEMPERATURE, energy="step", steps=2)
    generator.energies["step"] = TableEnergy(lambda rows, k: 1e30 * torch.arange(k).expand(rows, k))
    with InferenceEngine(generator, "1", PATIENT) as engine:
        text = engine.submit([asked])[0].result(SECONDS)
        assert text.tally.mean_ess == pytest.approx(1.0)
        assert engine.alive


@pytest.mark.parametrize("speculative", [False, True])
def test_exact_draws_pause_for_other_requests_between_two_positions(generator, whole, speculative):
    exact = job((1,), LENGTH - 1, 5, steps=1, candidates=0, energy="conditional", speculative=speculative)
    with InferenceEngine(generator, "1", Limits(slots=2, step_seconds=1e-9)) as engine:
        (slow,) = engine.submit([exact])
        assert slow.result(SECONDS) == alone(whole, exact)
        steps = engine.statistics().steps
        assert steps == LENGTH if not speculative else 2 <= steps <= LENGTH  # one a place, and the step's end


def test_an_engine_that_was_idle_is_not_late(generator):
    with gated(generator) as (engine, gate):
        time.sleep(0.3)
        (ticket,) = engine.submit([job((), 4, 1)])
        assert engine.beat_age_seconds < 0.2
        gate.wait()
        ticket.cancel()


def test_what_was_begun_before_a_drain_is_finished_and_nothing_after(generator, whole):
    with gated(generator) as (engine, gate):
        some = [job((), 40, seed) for seed in range(3)]
        tickets = engine.submit(some)
        drained: list[bool] = []
        drain = threading.Thread(target=lambda: drained.append(engine.drain(SECONDS)))
        drain.start()
        gate.wait()

        def until_it_has_begun() -> None:
            while True:
                engine.submit([job()])[0].cancel()

        with pytest.raises(Full, match="draining"):
            until_it_has_begun()
        gate.let(10_000)
        for request, ticket in zip(some, tickets, strict=True):
            assert ticket.result(SECONDS) == alone(whole, request)
        drain.join(SECONDS)
        assert drained == [True]
        assert not engine.alive
        with pytest.raises(EngineFailed, match="closed"):
            engine.submit([job()])


def test_what_follows_is_let_in_where_there_is_no_room_and_a_drain_waits_for_it(generator):
    def seven():
        yield
        return 7

    full = Limits(slots=1, waiting=1, patience_seconds=1e6)
    with gated(generator, full) as (engine, gate), ThreadPoolExecutor(1) as pool:
        with engine.kept_open():
            tickets = engine.submit([job((), 4, 1), job((), 4, 2)])
            with pytest.raises(Full, match="waiting"):
                engine.run(1, seven(), "a", 1e18)
            first = engine.run(1, seven(), "a", 1e18, follows=True)
            gate.let(1_000_000)
            for ticket in (*tickets, first):
                ticket.result(SECONDS)
            drained = pool.submit(engine.drain, SECONDS)
            with pytest.raises(TimeoutError):
                drained.result(0.2)
            assert engine.run(1, seven(), "a", 1e18, follows=True).result(SECONDS) == 7
        assert drained.result() is True
        assert engine.statistics().submitted == 4


def test_what_a_drain_has_no_time_for_fails_and_the_thread_ends(generator):
    before = set(threading.enumerate())  # a service of other tests has an engine, too
    engine = InferenceEngine(watched(generator), "1", PATIENT)
    (ticket,) = engine.submit([job((), 100_000)])
    assert engine.drain(0.05) is False
    with pytest.raises(EngineFailed, match="stopped"):
        ticket.result(0)
    assert set(threading.enumerate()) <= before
    engine.close()  # a second time does no harm


def test_closing_an_engine_that_did_nothing_ends_its_thread(generator):
    before = threading.active_count()
    with InferenceEngine(generator, "1", PATIENT):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_error_of_other_work_is_its_own(generator, whole):
    def wrong():
        yield
        raise ValueError("no such thing")

    def numberless():
        yield
        raise FloatingPointError("an energy is not a number")

    with InferenceEngine(generator, "1", PATIENT) as engine:
        deadline = time.monotonic() + 1e6
        first, second = (engine.run(1.0, work(), "a", deadline) for work in (wrong, numberless))
        with pytest.raises(ValueError, match="no such thing"):
            first.result(SECONDS)
        with pytest.raises(BrokenRow):
            second.result(SECONDS)
        assert engine.submit([job()])[0].result(SECONDS) == alone(whole, job())


# ---------------------------------------------------------------- jobs that cannot be done


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: job((), None, stop=("a",)), "a text with holes has its length"),
        (lambda: job((), 0), "max_tokens is 0; at least 1"),
        (lambda: job((1, None), 3), "a prompt has no holes"),
        (lambda: job((), 3, stop=("a", "")), "a stop string is empty"),
    ],
)
def test_a_job_that_means_nothing_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()


@pytest.mark.parametrize(
    ("wrong_request", "says"),
    [
        (job((27,), 3), "token 27 is not in the vocabulary"),
        (job((None,) * (LENGTH + 1), None), "positions do not fit"),
        (job((), 3, candidates=2, energy="nce"), "energy 'nce' is not in this model"),
        (job((), 3, candidates=0, energy="step"), "energy 'step' is not normalised"),
    ],
)
def test_what_the_model_cannot_do_is_refused_and_nothing_is_begun(whole, wrong_request: Request, says):
    with InferenceEngine(whole, "1", PATIENT) as engine:
        with pytest.raises(ValueError, match=says):
            engine.submit([job(), wrong_request])
        assert engine.statistics().submitted == 0
