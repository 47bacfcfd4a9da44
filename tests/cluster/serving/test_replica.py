"""What a replica says of its engine, and how a model is warmed in it: without Serve."""

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.config import Serving
from cluster.http.warmup import COMPILED_ROWS, WarmupFailure, warmed, warming
from cluster.serving.replica import Replica, limits_of, require_living
from cluster.tracking.model_version import ModelVersion
from edlm.config import ConfigurationError
from edlm.cooperative_work import Cooperative
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import EngineFailed, Limits
from edlm.models.execution import Execution
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle


@pytest.fixture
def batch(generator) -> Iterator[InferenceEngine]:
    with InferenceEngine(generator, "1/a", Limits(patience_seconds=600)) as engine:
        yield engine


def stuck(released: threading.Event) -> Cooperative[None]:
    """A bite that does not end before it is released."""
    yield
    assert released.wait(30)


def failing() -> Cooperative[None]:
    raise RuntimeError("the device is gone")
    yield


@pytest.mark.parametrize("serving", [Serving(), Serving(slots=1, waiting=0)])
def test_what_the_settings_allow_an_engine_takes(serving):
    assert limits_of(serving).waiting == serving.waiting


def test_a_replica_that_is_to_compile_and_cannot_does_not_read_its_model(monkeypatch):
    monkeypatch.setenv("PATH", "")
    replica: Any = SimpleNamespace(_device="cpu", _execution=Execution(compiled=True))  # Serve alone makes one
    nowhere = ModelVersion(version="1", uri="memory://nowhere", digest="0" * 64)
    with pytest.raises(ConfigurationError, match=r"lacks a C\+\+ compiler.* or set compiled: false"):
        Replica._first(replica, nowhere)


def test_an_engine_that_hangs_is_not_healthy_and_one_that_idles_is(batch):
    """R12"""
    require_living(batch, hung_seconds=0.05)
    released = threading.Event()
    future = batch.run(1.0, stuck(released), "key", time.monotonic() + 60)
    deadline = time.monotonic() + 30
    while batch.beat_age_seconds <= 0.05:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(EngineFailed, match=r"no progress for 0.05 s"):
        require_living(batch, hung_seconds=0.05)
    released.set()
    future.result(30)
    require_living(batch, hung_seconds=30)


def test_an_engine_that_died_is_not_healthy(batch):
    """R11"""
    with pytest.raises(EngineFailed):
        batch.run(1.0, failing(), "key", time.monotonic() + 60).result(30)
    with pytest.raises(EngineFailed, match="the engine has failed"):
        require_living(batch, hung_seconds=30)


def test_a_warmed_model_generates_what_it_did_before(batch, generator):
    reached = batch.run(8.0, warming(generator, "cpu"), "warming", time.monotonic() + 60).result(30)
    assert isinstance(reached, TextGenerator)
    sampler = replace(generator.bundle.sampler, steps=3)
    assert reached.write((), 12, [5], sampler)[0].text == generator.write((), 12, [5], sampler)[0].text


@pytest.mark.chaos  # compiling takes two minutes
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_compiled_model_that_was_warmed_compiles_nothing_for_texts_nor_for_the_next_model(tmp_path):
    def compiled() -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    torch._dynamo.reset()  # of what other tests have compiled
    first, second = (
        open_bundle(make_bundle(tmp_path / name), execution=Execution(compiled=True)) for name in ("first", "second")
    )
    before = compiled()
    warmed(first, COMPILED_ROWS)
    after = compiled()
    assert after > before
    for rows in (1, 2, 3, 5):
        for name, candidates in ((None, 1), ("conditional", 2), ("conditional", 5)):
            first.write((), LENGTH, range(rows), Sampler(steps=3, candidates=candidates), name)
    warmed(second, COMPILED_ROWS)
    assert compiled() == after
    for rows in (1, 2, 3, 5):
        first.write((), LENGTH, range(rows), Sampler(steps=3, candidates=3), "step")
    assert compiled() <= after + 1  # a single group of new tokens is a case of its own


def test_a_model_that_breaks_while_it_is_warmed_does_not_take_the_engine_with_it(batch, generator):
    for parameter in generator.energies["step"].parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    reported = batch.run(8.0, warming(generator, "cpu"), "warming", time.monotonic() + 60).result(30)
    assert isinstance(reported, WarmupFailure)
    assert isinstance(reported.error, FloatingPointError)
    assert batch.alive
