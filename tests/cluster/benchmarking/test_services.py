"""The ways to batch against one another: the static batch does what is said of it, and a small contest runs."""

import pytest
import torch

from cluster.benchmarking.static_batch import fill
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import Request
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle
from workflows.benchmark import ServeBenchmark, serve
from workflows.benchmarking.serve_document import ONE, OURS, STATIC
from workflows.reporting.document import Table

SMALL = ServeBenchmark(
    width=16, layers=1, head_width=16, length=16, max_tokens=16, slots=4, steps=(2, 6), requests=6, rounds=1,
    long_steps=12, long_requests=2, short_requests=2, short_steps=2, short_gap_seconds=0.05, open_seconds=0.2,
    open_loads=(0.5,), cancelled_share=0.2, cancel_seconds=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> TextGenerator:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("bundle")))


def new_request(generator: TextGenerator, seed: int, known: str, steps: int, candidates: int = 1) -> Request:
    sampler = Sampler(steps=steps, candidates=candidates)
    energy = None if candidates == 1 else "step"
    return Request(
        known=generator.read(known), max_tokens=5, seed=seed, sampler=sampler, energy=energy, key="", deadline=torch.inf
    )


def test_a_static_batch_takes_the_most_steps_of_its_kind_and_gives_each_its_text(generator):
    requests = [
        new_request(generator, 1, "a", 2),
        new_request(generator, 2, "abc", 7, candidates=3),
        new_request(generator, 3, "", 5),
        new_request(generator, 4, "the end of all that", 3, candidates=3),
    ]
    taken = {1: 5, 3: 7}
    for actual, asked in zip(fill(generator, requests), requests, strict=True):
        sampler = Sampler(steps=taken[asked.sampler.candidates], candidates=asked.sampler.candidates)
        (alone,) = generator.write(asked.known, 5, [asked.seed], sampler, asked.energy)
        assert (actual.tokens, actual.text, actual.seed) == (alone.tokens, alone.text, alone.seed)
        # A generator stops where the text is whole; a static batch fills the canvas behind it, too.
        assert alone.cost.denoiser_calls <= actual.cost.denoiser_calls <= sampler.steps


def test_a_text_longer_than_a_canvas_is_not_for_a_static_batch(generator):
    sampler = Sampler(steps=2)
    long = Request(known=(), max_tokens=LENGTH + 1, seed=1, sampler=sampler, energy=None, key="", deadline=torch.inf)
    with pytest.raises(ValueError, match=f"fills one canvas of {LENGTH}, and {LENGTH + 1} tokens need more"):
        fill(generator, [long])


@pytest.mark.chaos
@pytest.mark.cluster
def test_a_small_contest_answers_every_request_of_every_way():
    tables = [block for block in serve(SMALL).blocks if isinstance(block, Table)]
    saturation, long_short, *opened = tables
    assert [row[0] for row in saturation.rows] == [OURS, ONE, STATIC]
    assert {row[saturation.columns.index("not done")] for row in saturation.rows} == {"0"}
    assert {(row[0], row[1], row[2]) for row in long_short.rows} == {
        (name, steps, "2") for name in (OURS, ONE, STATIC) for steps in ("2", "12")
    }
    for endings in opened[::2]:
        for row in endings.rows:
            became = dict(zip(endings.columns, row, strict=True))
            assert sum(int(became[name]) for name in ("done", "cancelled", "busy")) == int(became["sent"])
