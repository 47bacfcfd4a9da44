"""A text has the same bits alone and in company where the engine computes on several threads (`cpus_per_replica`)."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import Limits
from tests.bundles import make_bundle
from tests.engines import SECONDS, new_request

LENGTH = 7  # rows of a matrix product of one text alone: an unpadded one has other last bits on two threads
LIMITS = Limits(slots=8, step_seconds=1e3, waiting=100, patience_seconds=1e6)  # all texts in one batch
REQUESTS = [
    new_request((1, 2, 3), 9, seed=1, steps=5),
    new_request((), 5, seed=2, steps=3, candidates=3, energy="step"),
    new_request((4, None, None, 7, None), None, seed=3, steps=4),
    new_request((5,), 7, seed=4, steps=2, candidates=2, energy="conditional"),
    new_request((6, 6), 30, seed=5, steps=6, candidates=0, energy="conditional"),
    new_request((None,) * 6, None, seed=6, steps=4, candidates=9, energy="step"),
    new_request((8, 9), 10, seed=7, steps=3, candidates=0, energy="conditional", speculative=True),
]


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Features:
    """The features of each canvas that a denoiser reads, at the positions that it is asked for, in the order read."""

    def __init__(self, generator: TextGenerator) -> None:
        self._of: dict[tuple, list[Tensor]] = {}
        self.threads, self.rows = set[int](), list[int]()
        network = generator.denoiser.network
        read, read_at = network.read, network.read_at
        network.read = lambda xt, t: self._keep(read(xt, t), xt, t, torch.ones_like(xt, dtype=torch.bool))
        network.read_at = lambda xt, t, where: self._keep(read_at(xt, t, where), xt, t, where)

    def _keep(self, context: Tensor, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        self.threads.add(torch.get_num_threads())
        self.rows.append(len(xt))
        for tokens, time, selected, features in zip(xt.tolist(), t.tolist(), where, context, strict=True):
            self._of.setdefault((time, *tokens, *selected.tolist()), []).append(features[selected].clone())
        return context

    def differing(self) -> list[tuple]:
        """Return the canvases that were read twice with other features."""
        return [key for key, of in self._of.items() if not all(torch.equal(a, b) for a, b in pairwise(of))]

    def read_once(self) -> list[tuple]:
        return [key for key, of in self._of.items() if len(of) == 1]


def test_texts_and_features_are_the_same_alone_and_in_company_on_any_number_of_threads(threads, tmp_path):
    generator = open_bundle(make_bundle(tmp_path, length=LENGTH))
    features = Features(generator)
    with InferenceEngine(generator, "1", LIMITS) as engine:
        alone = [engine.submit([one])[0].result(SECONDS) for one in REQUESTS]
        assert set(features.rows) == {1}
        together = [future.result(SECONDS) for future in engine.submit(REQUESTS)]
    assert together == alone
    assert features.differing() == []
    assert features.read_once() == []
    assert features.threads == {threads}
    assert max(features.rows) > 4
