"""CUDA graphs of compiled networks: captured by the warm-up and not after it, and no reason for another text."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from cluster.http.warmup import moved, warmed
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.models.execution import Execution
from edlm.models.row_buckets import row_buckets
from edlm.sampling.sampler import Sampler
from tests.engines import PATIENT, SECONDS, new_request
from tests.gpu.bundle import ENERGIES, LENGTH
from tests.gpu.test_generation import LEAST_EQUAL, NATS, equal_share

pytestmark = pytest.mark.gpu
TEXTS, K = 6, 2  # texts at once, and candidates of the bundle's own sampler
COMPILED = Execution(compiled=True)


@pytest.fixture
def captures(monkeypatch) -> list[torch.cuda.CUDAGraph]:
    """Every graph whose capture begins, torch's own included."""
    begun, begin = [], torch.cuda.CUDAGraph.capture_begin

    def capture_begin(graph: torch.cuda.CUDAGraph, *arguments, **named) -> None:
        begun.append(graph)
        begin(graph, *arguments, **named)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", capture_begin)
    return begun


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def recordings(generator: TextGenerator) -> int:
    networks = (generator.denoiser.network, *generator.energies.values())
    return sum(blocks.recordings for network in networks for blocks in row_buckets(network))


def masked(generator: TextGenerator, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvases, half of which is masked, and their times."""
    random = torch.Generator().manual_seed(seed)
    xt = torch.randint(generator.mask, (rows, LENGTH), generator=random)
    xt[torch.rand(rows, LENGTH, generator=random) < 0.5] = generator.mask
    return xt.to(generator.device), torch.rand(rows, generator=random, dtype=torch.float64).to(generator.device)


def test_no_graph_is_captured_for_texts_after_the_warm_up(cuda, folder, captures, report):
    quick = open_bundle(folder, cuda, COMPILED)
    warmed(quick, (TEXTS,))
    report(graphs=len(captures))
    assert len(captures) >= recordings(quick) > 0
    captures.clear()
    with InferenceEngine(quick, "1", PATIENT) as engine:  # in another thread than that of the warm-up
        for count in range(1, TEXTS + 1):
            for name in (None, *ENERGIES):
                asked = {"steps": 3, "candidates": K if name else 1, "energy": name}
                futures = engine.submit([new_request((), LENGTH, seed, **asked) for seed in range(count)])
                assert all(len(future.result(SECONDS).tokens) == LENGTH for future in futures)
    assert not captures


def test_a_model_that_was_opened_on_the_cpu_has_graphs_on_the_device(cuda, folder, captures):
    """As a replica swaps models."""
    quick = moved(open_bundle(folder, execution=COMPILED), cuda)
    quick.write((), LENGTH, range(2), Sampler(steps=1))
    assert len(captures) >= recordings(quick) > 0


@pytest.mark.usefixtures("without_gradients")
def test_features_are_those_without_graphs_and_do_not_change_when_the_next_pass_runs(cuda, folder, on, report):
    quick = open_bundle(folder, cuda, COMPILED)
    largest, kept = 0.0, []
    for rows in (*range(1, 20), *range(19, 0, -1)):
        xt, t = masked(quick, rows, seed=rows)
        features, expected = quick.denoiser.network.read(xt, t), on(cuda).denoiser.network.read(xt, t)
        largest = max(largest, (features - expected).abs().max().item())
        kept.append((features, features.cpu()))
    report(largest_difference=largest)
    assert largest <= NATS[cuda]
    assert recordings(quick) > 0
    assert all(torch.equal(features.cpu(), copied) for features, copied in kept)


@pytest.mark.parametrize("name", [None, "step", "conditional", "bidirectional"])
def test_a_text_is_that_of_its_seed_in_batches_of_any_size(cuda, folder, report, name):
    quick, sampler = open_bundle(folder, cuda, COMPILED), Sampler(steps=4, candidates=K if name else 1)
    seeds = range(3 * TEXTS)
    alone = [quick.write((3, 1), LENGTH - 2, [seed], sampler, name)[0].tokens for seed in seeds]
    together = [text.tokens for text in quick.write((3, 1), LENGTH - 2, seeds, sampler, name)]
    in_fives = [
        text.tokens
        for start in range(0, len(seeds), 5)
        for text in quick.write((3, 1), LENGTH - 2, seeds[start : start + 5], sampler, name)
    ]
    shares = equal_share(together, alone), equal_share(in_fives, alone)
    report(texts=len(seeds), equal_share=min(shares))
    assert min(shares) >= LEAST_EQUAL[cuda]


def test_graphs_go_with_their_network(cuda, folder, captures):
    quick = open_bundle(folder, cuda, COMPILED)
    quick.write((), LENGTH, range(2), Sampler(steps=1))
    graphs = [weakref.ref(graph) for graph in captures]
    captures.clear()
    assert graphs
    del quick
    gc.collect()
    assert not any(graph() for graph in graphs)
