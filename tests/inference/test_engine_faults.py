"""Faults of the engine: each affected request gets its error once, and no other request is affected."""

import logging
import math
import time

import pytest
import torch

from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator
from edlm.inference.request import Cancelled, Expired, Limits, NonFiniteText, Request
from edlm.sampling.sampler import LEAST_TEMPERATURE
from tests.bundles import LENGTH
from tests.engines import PATIENT, SECONDS, TableEnergy, alone, gated, new_request, recorded, watched

SAD = 2  # the first token of a text whose numbers break


def one_slot() -> Limits:
    return Limits(slots=1, waiting=100, patience_seconds=1e6)


def test_who_is_cancelled_while_waiting_costs_nothing(fresh):
    with gated(fresh, one_slot()) as (engine, gate):
        (running,) = engine.submit([new_request((), 40, 1)])
        gate.wait()
        (waiting,) = engine.submit([new_request((), 400, 2)])
        waiting.cancel()
        gate.let()
        with pytest.raises(Cancelled):
            waiting.result(SECONDS)
        assert waiting.started is None
        assert not running.done
        assert (waiting.progress().status, waiting.progress().step) == ("done", 0)


def test_the_slot_of_a_cancelled_request_is_free_at_the_next_step(fresh):
    with gated(fresh, one_slot()) as (engine, gate):
        (first,) = engine.submit([new_request((), 400, 1)])
        gate.wait()
        (second,) = engine.submit([new_request((), 400, 2)])
        first.cancel()
        gate.let()
        gate.wait()  # the engine stands before its second pass
        assert first.done
        assert second.started is not None
        now = engine.statistics()
        assert (now.running, now.waiting, now.finished) == (1, 0, {"cancelled": 1})
        second.cancel()


def test_a_cancel_after_the_end_changes_nothing(fresh, generator):
    with InferenceEngine(fresh, "1", PATIENT) as engine:
        (future,) = engine.submit([new_request()])
        text = future.result(SECONDS)
        progress = future.progress()
        future.cancel()
        engine.submit([new_request()])[0].result(SECONDS)
        assert future.result(0) is text
        assert future.progress() is progress
        assert engine.statistics().finished == {"length": 2}
    assert text == alone(generator, new_request())


def test_who_is_past_the_deadline_before_it_starts_costs_nothing(fresh):
    with gated(fresh) as (engine, gate):
        (late,) = engine.submit([new_request(deadline=time.monotonic() - 1)])
        with pytest.raises(Expired):
            late.result(SECONDS)
        assert late.started is None
        assert gate.rows == []


def test_a_deadline_in_the_middle_ends_a_text_as_far_as_it_is(fresh):
    with gated(fresh) as (engine, gate):
        (late, other) = engine.submit([new_request((), 40, 1, deadline=time.monotonic() + 0.3), new_request((), 40, 2)])
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


def test_a_watcher_that_raises_delays_no_other(fresh, caplog):
    def closed() -> None:
        raise RuntimeError("the loop is closed")

    with InferenceEngine(fresh, "1", PATIENT) as engine, caplog.at_level(logging.CRITICAL):
        (future,) = engine.submit([new_request((), 40)])
        future.watch(closed)
        states = recorded(future)
        future.result(SECONDS)
        engine.drain(SECONDS)
        assert states[-1].status == "done"
        assert engine.statistics().finished == {"length": 1}


def broken(xt: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Features that are not numbers in the texts that begin with SAD."""
    return torch.where((xt[:, 0] == SAD)[:, None, None], torch.nan, context)


@pytest.mark.parametrize("candidates", [0, 1, 3])
def test_a_text_whose_numbers_are_none_ends_alone(fresh, generator, candidates):
    watched(fresh, after=broken)
    settings = {"candidates": candidates, "energy": "conditional"}
    some = [new_request((1 + seed % 3,), 2 * LENGTH, seed, **settings) for seed in range(9)]
    with InferenceEngine(fresh, "1", PATIENT) as engine:
        for request, future in zip(some, engine.submit(some), strict=True):
            if request.known[0] == SAD:
                with pytest.raises(NonFiniteText, match="not numbers"):
                    future.result(SECONDS)
            else:
                assert future.result(SECONDS) == alone(generator, request)
        assert engine.alive
        assert engine.statistics().finished == {"broken": 3, "length": 6}


def chosen(fresh: TextGenerator, energies, count: int, candidates: int = 4) -> list[tuple[int, ...] | Exception]:
    """What was picked for each of `count` texts of one step, by energies that are made up; or why nothing was."""
    fresh.energies = {**fresh.energies, "table": TableEnergy(energies)}
    some = [new_request((), LENGTH, seed, steps=1, candidates=candidates, energy="table") for seed in range(count)]
    actual = []
    with InferenceEngine(fresh, "1", PATIENT) as engine:
        for future in engine.submit(some):
            try:
                future.result(SECONDS)
                actual.append(future.progress().picked)
            except NonFiniteText as error:
                actual.append(error)
        assert engine.alive
    return actual


def test_among_equal_energies_every_candidate_is_as_likely(fresh):
    picked = chosen(fresh, lambda b, k: torch.full((b, k), 7.0), count=400)
    counts = torch.bincount(torch.tensor(picked)[:, 0], minlength=4)
    assert counts.sum() == 400
    assert ((counts - 100).square() / 100).sum() < 16.3  # chi-square of three degrees of freedom at 0.001


@pytest.mark.parametrize("chance", [math.inf, 1e30])
def test_a_candidate_that_cannot_be_is_never_picked(fresh, chance):
    picked = chosen(fresh, lambda b, k: torch.tensor([chance, 0.0, 0.0, 0.0]).expand(b, k), count=100)
    assert {pick for (pick,) in picked} == {1, 2, 3}


def test_an_energy_that_is_no_finite_number_is_shown_as_none(fresh):
    fresh.energies = {
        **fresh.energies,
        "table": TableEnergy(lambda b, k: torch.tensor([math.inf, 0.5]).expand(b, k)),
    }
    with InferenceEngine(fresh, "1", PATIENT) as engine:
        (future,) = engine.submit([new_request((), LENGTH, 1, steps=1, candidates=2, energy="table")])
        future.result(SECONDS)
        assert future.progress().energies == ((None, 0.5),)


@pytest.mark.parametrize("energy", [math.inf, -math.inf, math.nan])
def test_where_no_candidate_can_be_or_one_is_beyond_measure_the_text_ends(fresh, energy):
    assert all(isinstance(found, NonFiniteText) for found in chosen(fresh, lambda b, k: torch.full((b, k), energy), 3))


def test_one_energy_beyond_measure_ends_the_text(fresh):
    energies = chosen(fresh, lambda b, k: torch.tensor([-math.inf, 0.0, 0.0, 0.0]).expand(b, k), 3)
    assert all(isinstance(found, NonFiniteText) for found in energies)


def test_a_text_whose_arithmetic_fails_ends_alone_in_any_batch(fresh, generator):
    def fail(xt: torch.Tensor) -> None:
        if (xt[:, 0] == SAD).any():
            raise FloatingPointError("an energy is not a number")

    requests = [new_request((first,), 6, 1) for first in (1, SAD, 3)]
    with InferenceEngine(watched(fresh, before=fail), "1", PATIENT) as engine:
        before, sad, other = engine.submit(requests)
        with pytest.raises(NonFiniteText, match="not a number"):
            sad.result(SECONDS)
        for future, asked in ((before, requests[0]), (other, requests[2])):
            assert future.result(SECONDS) == alone(generator, asked)
        assert engine.alive
        assert engine.statistics().finished == {"length": 2, "broken": 1}


@pytest.mark.parametrize("candidates", [2, 40])
def test_weights_beyond_what_a_number_holds_choose_the_lowest_energy(fresh, candidates):
    asked = new_request((1,), 8, 3, candidates=candidates, energy_temperature=LEAST_TEMPERATURE, energy="step", steps=2)
    fresh.energies["step"] = TableEnergy(lambda rows, k: 1e30 * torch.arange(k).expand(rows, k))
    with InferenceEngine(fresh, "1", PATIENT) as engine:
        text = engine.submit([asked])[0].result(SECONDS)
        assert text.cost.mean_ess == pytest.approx(1.0)
        assert engine.alive


@pytest.mark.parametrize("speculative", [False, True])
def test_exact_draws_pause_for_other_requests_between_two_positions(fresh, generator, speculative):
    exact = new_request((1,), LENGTH - 1, 5, steps=1, candidates=0, energy="conditional", speculative=speculative)
    with InferenceEngine(fresh, "1", Limits(slots=2, step_seconds=1e-9)) as engine:
        (slow,) = engine.submit([exact])
        assert slow.result(SECONDS) == alone(generator, exact)
        steps = engine.statistics().steps
        assert steps == LENGTH if not speculative else 2 <= steps <= LENGTH  # one a place, and the step's end


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: new_request((), None, stop=("a",)), "a text with holes has its length"),
        (lambda: new_request((), 0), "max_tokens is 0; at least 1"),
        (lambda: new_request((1, None), 3), "a prompt has no holes"),
        (lambda: new_request((), 3, stop=("a", "")), "a stop string is empty"),
    ],
)
def test_a_job_that_means_nothing_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()


@pytest.mark.parametrize(
    ("wrong_request", "says"),
    [
        (new_request((27,), 3), "token 27 is not in the vocabulary"),
        (new_request((None,) * (LENGTH + 1), None), "positions do not fit"),
        (new_request((), 3, candidates=2, energy="nce"), "energy 'nce' is not in this model"),
        (new_request((), 3, candidates=0, energy="step"), "energy 'step' is not normalised"),
    ],
)
def test_what_the_model_cannot_do_is_refused_and_nothing_is_begun(generator, wrong_request: Request, says):
    with InferenceEngine(generator, "1", PATIENT) as engine:
        with pytest.raises(ValueError, match=says):
            engine.submit([new_request(), wrong_request])
        assert engine.statistics().submitted == 0


def test_a_text_of_no_token_that_comes_after_the_finished_ones_were_removed_is_no_fault(fresh, monkeypatch):
    with InferenceEngine(fresh, "1", PATIENT) as engine:
        remove, late = engine._remove_ended, []

        def remove_and_submit() -> None:
            remove()
            if not late:
                late.extend(engine.submit([new_request((1, 2), None)]))

        monkeypatch.setattr(engine, "_remove_ended", remove_and_submit)
        engine.submit([new_request()])[0].result(SECONDS)
        assert late[0].result(SECONDS).tokens == (1, 2)
        assert engine.alive
