"""A warm-up records every batch that texts of the endpoint can need."""

from dataclasses import replace

import pytest
import torch

from cluster.config import Serving
from cluster.http.warmup import COMPILED_ROWS, ONE_ROW, _with_gaps, warmed
from cluster.serving.replica import warmup_rows
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.models.row_buckets import bucket_of, buckets_up_to, row_buckets
from edlm.sampling.sampler import Sampler
from tests.gpu.bundle import ENERGIES, LENGTH, make_full_bundle
from tests.row_bucketing import bucket

TEXTS, K = 6, 3  # texts at once, and candidates of the model's own sampler


@pytest.fixture
def shapes() -> list[torch.Size]:
    return []


@pytest.fixture
def recording(tmp_path, shapes) -> TextGenerator:
    opened = open_bundle(make_full_bundle(tmp_path))
    bundle = replace(opened.bundle, sampler=Sampler(steps=4, candidates=K))
    generator = TextGenerator(bundle, opened.denoiser, opened.energies, opened.tokenizer)
    for network in (generator.denoiser.network, *generator.energies.values()):
        bucket(network, shapes)
    return generator


def recordings(generator: TextGenerator) -> int:
    networks = (generator.denoiser.network, *generator.energies.values())
    return sum(blocks.recordings for network in networks for blocks in row_buckets(network))


def test_every_bucket_is_visited_and_texts_of_any_number_record_nothing_more(recording, shapes):
    warmed(recording, (TEXTS,))
    visited = set(shapes)
    for width, length in {shape[:0:-1] for shape in visited}:
        rows = sorted(shape[0] for shape in visited if shape[1:] == (length, width))
        assert rows == buckets_up_to(rows[-1])
    assert {shape[0] for shape in visited if shape[1] == LENGTH} >= set(buckets_up_to(TEXTS))
    before = recordings(recording)
    assert before > 0
    for count in range(1, TEXTS + 1):
        for name in (None, *ENERGIES):
            for steps in (1, 2, 3, 6):
                recording.write((), LENGTH, range(count), Sampler(steps=steps, candidates=K if name else 1), name)
    assert recordings(recording) == before
    assert set(shapes) == visited


def test_the_models_own_number_of_candidates_is_warmed(recording, shapes):
    warmed(recording, (TEXTS,))
    block = recording.energies["step"].block
    assert (bucket_of(TEXTS * K * LENGTH // block), block, 16) in {tuple(shape) for shape in shapes}


def test_gaps_are_spread_so_that_every_block_has_few_or_many():
    assert [_with_gaps(12, 3), _with_gaps(2, 2)] == [(None, 0, 0, 0) * 3, (None, None)]


def test_without_a_recorder_a_warm_up_is_what_it_was(tmp_path, monkeypatch):
    generator, batches = open_bundle(make_full_bundle(tmp_path)), []
    monkeypatch.setattr(generator, "infill", lambda *_: pytest.fail("no canvas has gaps"))
    write = generator.write
    monkeypatch.setattr(generator, "write", lambda *asked: batches.append((len(asked[2]), asked[4])) or write(*asked))
    warmed(generator, COMPILED_ROWS)
    assert batches == [(count, name) for count in (1, 2) for name in (None, *sorted(ENERGIES))]


def test_a_gpu_records_batches_as_large_as_the_engines():
    assert warmup_rows(Serving()) == warmup_rows(Serving(gpus_per_replica=1)) == ONE_ROW
    assert warmup_rows(Serving(compiled=True)) == COMPILED_ROWS
    assert warmup_rows(Serving(compiled=True, gpus_per_replica=0.5, slots=24)) == (24,)
