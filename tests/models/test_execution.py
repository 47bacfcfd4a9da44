"""Rounded and compiled networks say what the exact ones say, up to the grain of the number format."""

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import open_bundle
from edlm.inference.request import Limits
from edlm.models.execution import Execution
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle
from tests.engines import SECONDS, new_request
from tests.gpu.bundle import make_full_bundle

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]
TORCHS_LIMIT = 8  # versions of one code
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("execution"))


def test_scores_in_bfloat16_are_those_of_the_exact_networks_up_to_its_grain(folder):
    exact, rounded = (open_bundle(folder, execution=Execution(precision=p)) for p in ("float32", "bfloat16"))
    scores = [model.score(TEXT, 1, 4, Sampler(steps=4, candidates=2)) for model in (exact, rounded)]
    assert scores[0].nelbo.mean == pytest.approx(scores[1].nelbo.mean, rel=0.05)
    assert scores[0].bound.mean == pytest.approx(scores[1].bound.mean, rel=0.05)
    for name, energy in scores[0].energies.items():
        assert energy.mean == pytest.approx(scores[1].energies[name].mean, abs=0.05 * len(TEXT))


@pytest.mark.parametrize("candidates", [0, 1, 2])
def test_what_is_computed_in_bfloat16_fills_every_gap(folder, candidates):
    generator = open_bundle(folder, execution=Execution(precision="bfloat16"))
    assert next(generator.denoiser.network.parameters()).dtype == torch.bfloat16
    sampler = Sampler(steps=3, candidates=candidates)
    (text,) = generator.infill([1, *[None] * (LENGTH - 1)], [5], sampler, "conditional")
    assert text.tokens[0] == 1
    assert all(0 <= token < generator.mask for token in text.tokens)


@needs_compiler
def test_compiled_layers_equal_the_exact_ones_in_batches_of_any_size(folder):
    torch._dynamo.reset()  # of what other tests have compiled
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    exact, compiled = (
        open_bundle(folder, execution=Execution(compiled=flag)).denoiser.network for flag in (False, True)
    )
    xt = torch.randint(exact.mask + 1, (5, LENGTH), generator=torch.Generator().manual_seed(0))
    t = torch.rand(5, generator=torch.Generator().manual_seed(1))
    for rows in (1, 2, 3, 5):
        torch.testing.assert_close(compiled.read(xt[:rows], t[:rows]), exact.read(xt[:rows], t[:rows]))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert 0 < graphs <= 4  # one row is a case of its own


def test_blocks_that_are_called_in_more_ways_than_torch_compiles_by_default_are_all_compiled(tmp_path, monkeypatch):
    compile, compiled = torch.compile, []

    def backend(graph: torch.fx.GraphModule, _) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda forward, **_: compile(forward, dynamic=True, backend=backend))
    torch._dynamo.reset()
    generator = open_bundle(make_full_bundle(tmp_path), execution=Execution(compiled=True))
    write = functools.partial(generator.write, (), 12)

    def texts() -> None:  # in a thread, as the engine's: torch's settings are those of a thread
        for rows in (1, 2):
            for name in (None, *generator.energies):
                write(range(rows), Sampler(steps=3, candidates=3 if name else 1), name)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(texts).result(SECONDS)
    assert len(compiled) > TORCHS_LIMIT


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.chaos)])
def test_texts_of_compiled_networks_are_the_same_alone_in_company_and_in_any_order(folder, precision):
    requests = [
        new_request((1, 2, 3), 5, seed=1, steps=5),
        new_request((), 5, seed=2, steps=3, candidates=3, energy="step"),
        new_request((4, None, None, 7, None), None, seed=3, steps=4),
        new_request((5,), 7, seed=4, steps=2, candidates=2, energy="conditional"),
        new_request((6, 6), 5, seed=5, steps=6, candidates=0, energy="conditional"),
    ]
    torch._dynamo.reset()
    generator = open_bundle(folder, execution=Execution(precision=precision, compiled=True))
    limits = Limits(slots=8, step_seconds=1e3, waiting=100, patience_seconds=1e6)  # all texts in one batch
    with InferenceEngine(generator, "1", limits) as engine:
        alone = [engine.submit([one])[0].result(SECONDS) for one in requests]
        together = [future.result(SECONDS) for future in engine.submit(requests)]
        reverse = [future.result(SECONDS) for future in engine.submit(requests[::-1])]
    assert together == alone
    assert reverse[::-1] == alone
