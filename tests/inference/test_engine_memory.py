"""A batch that does not fit the memory is made smaller, and no text is another one for it."""

import pytest
import torch

from edlm.inference import batch_executor
from edlm.inference.engine import InferenceEngine
from edlm.inference.request import Limits, OutOfMemory
from tests.bundles import LENGTH
from tests.engines import PATIENT, SECONDS, alone, new_request, watched


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
def test_a_batch_that_does_not_fit_is_halved_without_an_effect_on_its_texts(fresh, generator, error):
    watched(fresh, before=full(2, error))
    some = [new_request((), 2 * LENGTH, seed, candidates=2) for seed in range(4)]
    with InferenceEngine(fresh, "1", Limits(slots=4, step_seconds=100.0)) as engine:
        for request, future in zip(some, engine.submit(some), strict=True):
            assert future.result(SECONDS) == alone(generator, request)
        assert engine.statistics().finished == {"length": 4}


def test_batches_grow_again_when_there_is_room_again(fresh, monkeypatch):
    monkeypatch.setattr(batch_executor, "REGROWTH", 5)
    fault, rows = [2], []
    watched(fresh, before=lambda xt: (rows.append(len(xt)), full(fault[0], ERRORS[0])(xt))[0])
    with InferenceEngine(fresh, "1", Limits(slots=4, step_seconds=100.0)) as engine:
        engine.submit([new_request((), 4, seed, steps=1) for seed in range(4)])[-1].result(SECONDS)
        fault[0] = 4
        engine.submit([new_request((), 6 * LENGTH, seed) for seed in range(4)])[-1].result(SECONDS)
    assert rows[:3] == [4, 2, 2]
    assert max(rows[3:]) == 4


def test_what_does_not_fit_by_itself_ends_and_the_engine_lives(fresh, generator):
    fault = [0]
    watched(fresh, before=lambda xt: full(fault[0], ERRORS[0])(xt))
    with InferenceEngine(fresh, "1", PATIENT) as engine:
        for future in engine.submit([new_request(seed=seed, candidates=k) for seed in range(3) for k in (1, 64)]):
            with pytest.raises(OutOfMemory):
                future.result(SECONDS)
        fault[0] = 100
        assert engine.submit([new_request()])[0].result(SECONDS) == alone(generator, new_request())
        assert engine.statistics().finished == {"out of memory": 6, "length": 1}


@pytest.mark.parametrize("fits", [1, 0])
def test_candidates_that_do_not_fit_together_are_scored_one_by_one(fresh, generator, fits):
    def refuse(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if given[0].shape[1] > fits:
            raise ERRORS[0]

    request = new_request((), LENGTH, 3, steps=2, candidates=64)
    hook = fresh.energies["step"].register_forward_pre_hook(refuse)
    with InferenceEngine(fresh, "1", Limits(step_seconds=0.02)) as engine:
        (future,) = engine.submit([request])
        if fits:
            assert future.result(SECONDS) == alone(generator, request)
        else:
            with pytest.raises(OutOfMemory):
                future.result(SECONDS)
        hook.remove()
        assert engine.submit([request])[0].result(SECONDS) == alone(generator, request)
