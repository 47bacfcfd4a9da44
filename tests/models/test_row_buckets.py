"""What is computed in row buckets has the bits of what is computed without, and few shapes are computed."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from edlm.inference.generator import open_bundle
from edlm.models import row_buckets
from edlm.models.execution import Execution
from edlm.models.rotary import Rotary
from edlm.models.row_buckets import RowBuckets, bucket_of, bucket_within, buckets_up_to
from edlm.models.transformer import Block, TransformerConfig
from edlm.sampling.sampler import Sampler
from tests.gpu.bundle import ENERGIES, LENGTH, make_full_bundle
from tests.networks import denoiser, stirred
from tests.row_bucketing import blocks_of, bucket

MOST, WIDTH, HEADS, L = 70, 16, 2, 6
BUCKETS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]
ROWS = [*range(1, MOST + 1), *range(MOST, 0, -1)]  # downwards, the buffers hold the rows of larger calls


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calls() -> dict[str, dict]:
    """Every way to call a block, with all rows."""
    kept = drawn(MOST, L, seed=1) > 0
    turned = Rotary.at((drawn(MOST, L, seed=3) * 9).long().abs(), WIDTH // HEADS)
    return {
        "plain": {},
        "timed": {"condition": drawn(MOST, 128, seed=2)},
        "causal": {"causal": True, "rotary": turned},
        "valid": {"valid": kept, "rotary": turned},
        "timed and valid": {"condition": drawn(MOST, 128, seed=2), "valid": kept},
        "seen": {"seen": (drawn(MOST, 1, L, L, seed=4) > 0) | torch.eye(L, dtype=torch.bool)},
    }


def first(value: object, rows: int) -> object:
    """The first rows of an argument; angles [l c], without an axis of rows, as they are."""
    if isinstance(value, Rotary):
        return value if value.cos.dim() == 2 else Rotary(value.cos[:rows], value.sin[:rows])
    return value[:rows] if isinstance(value, Tensor) else value


def pair(time: bool = False) -> tuple[Block, Block, list[torch.Size]]:
    """The same block without and with buckets, and the shapes that the latter computes."""
    shapes: list[torch.Size] = []
    plain, other = (Block(WIDTH, HEADS, time_conditioning=time) for _ in range(2))
    for block in (plain, other):
        stirred(block, seed=5)
    bucket(other, shapes)
    return plain, other, shapes


@pytest.mark.parametrize("way", calls())
def test_any_number_of_rows_has_the_bits_of_the_block_and_few_shapes_are_computed(way):
    plain, other, shapes = pair(time="timed" in way)
    x = drawn(MOST, L, WIDTH)
    arguments = {"rotary": Rotary.at(torch.arange(L), WIDTH // HEADS), **calls()[way]}
    for rows in ROWS:
        given = {name: first(value, rows) for name, value in arguments.items()}
        assert torch.equal(other(x[:rows], **given), plain(x[:rows], **given)), f"{rows} rows"
    assert {shape[0] for shape in shapes} == {bucket_of(rows) for rows in ROWS} == set(BUCKETS)
    assert other.forward.recordings == len(BUCKETS)  # type: ignore[union-attr]


def test_features_of_any_number_of_texts_have_the_bits_of_the_denoiser():
    timed = TransformerConfig(width=WIDTH, layers=3, heads=HEADS, time_conditioning=True)
    plain, other, shapes = denoiser(transformer=timed), denoiser(transformer=timed), []
    bucket(other, shapes)
    xt, t = (drawn(MOST, L) * 9).long().abs() % (plain.mask + 1), drawn(MOST).sigmoid().double()
    for rows in ROWS:
        assert torch.equal(other.read(xt[:rows], t[:rows]), plain.read(xt[:rows], t[:rows])), f"{rows} rows"
    assert {shape[0] for shape in shapes} == set(BUCKETS)


def test_at_most_a_third_of_a_bucket_is_padding():
    assert buckets_up_to(BUCKETS[-1]) == BUCKETS
    assert all(rows <= bucket_of(rows) <= 1.5 * rows for rows in range(1, 5000))
    assert [bucket_within(rows) for rows in range(13)] == [0, 1, 2, 3, 4, 4, 6, 6, 8, 8, 8, 8, 12]


def test_a_result_is_not_overwritten_by_the_next_one():
    _, other, _ = pair()
    rotary = Rotary.at(torch.arange(L), WIDTH // HEADS)
    result = other(drawn(5, L, WIDTH), rotary)
    kept = result.clone()
    for seed in (1, 2):
        other(drawn(6, L, WIDTH, seed=seed), rotary)
    assert torch.equal(result, kept)


def test_what_earlier_calls_left_in_the_padding_reaches_no_row():
    plain, other, _ = pair()
    rotary, x = Rotary.at(torch.arange(L), WIDTH // HEADS), drawn(13, L, WIDTH)
    assert other(torch.full((16, L, WIDTH), torch.nan), rotary).isnan().all()
    assert torch.equal(other(x, rotary), plain(x, rotary))


@pytest.mark.parametrize(("name", "value", "recorded"), [("LARGEST", 4 * L * WIDTH, 2), ("MOST_RECORDINGS", 1, 1)])
def test_beyond_the_limits_nothing_is_recorded_and_nothing_is_padded(monkeypatch, name, value, recorded):
    monkeypatch.setattr(row_buckets, name, value)
    plain, other, shapes = pair()
    rotary, x = Rotary.at(torch.arange(L), WIDTH // HEADS), drawn(7, L, WIDTH)
    for rows in (3, 4, 5, 7):
        assert torch.equal(other(x[:rows], rotary), plain(x[:rows], rotary))
    assert other.forward.recordings == recorded  # type: ignore[union-attr]
    assert {5, 7} <= {shape[0] for shape in shapes}


def test_a_batch_beyond_the_limit_shows_what_smaller_ones_will_need(monkeypatch):
    monkeypatch.setattr(row_buckets, "LARGEST", 7 * L * WIDTH)
    _, other, _ = pair()
    rotary = Rotary.at(torch.arange(L), WIDTH // HEADS)
    other(drawn(50, L, WIDTH), rotary)
    assert len(list(other.forward.record_smaller())) == 4  # type: ignore[union-attr]
    for rows in range(1, 7):
        other(drawn(rows, L, WIDTH), rotary)
    assert other.forward.recordings == 5  # type: ignore[union-attr]


def test_with_gradients_nothing_is_recorded():
    plain, other, _ = pair()
    rotary, x = Rotary.at(torch.arange(L), WIDTH // HEADS), drawn(3, L, WIDTH)
    with torch.enable_grad():
        for block in (plain, other):
            block(x, rotary).square().sum().backward()
    assert other.forward.recordings == 0  # type: ignore[union-attr]
    assert torch.equal(plain.qkv.weight.grad, other.qkv.weight.grad)  # type: ignore[arg-type]


def test_the_smaller_buckets_of_every_kind_of_call_are_recorded_once():
    _, other, shapes = pair()
    rotary = Rotary.at(torch.arange(L), WIDTH // HEADS)
    other(drawn(2, L, WIDTH), rotary)
    other(drawn(7, L, WIDTH), rotary, causal=True)
    blocks = other.forward
    assert isinstance(blocks, RowBuckets)
    shapes.clear()
    assert len(list(blocks.record_smaller())) == 1 + 5
    assert [shape[0] for shape in shapes] == [1, 6, 4, 3, 2, 1]
    assert not list(blocks.record_smaller())
    assert blocks.recordings == 2 + 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_full_bundle(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [None, *ENERGIES])
def test_texts_are_those_of_the_same_seeds_without_buckets(folder, name, precision):
    plain, other = (open_bundle(folder, execution=Execution(precision=precision)) for _ in range(2))
    networks = (other.denoiser.network, *other.energies.values())
    for network in networks:
        bucket(network)
    sampler = Sampler(steps=3, candidates=1 if name is None else 3)
    for count in (1, 3, 5):
        actual, expected = (one.write((3, 1), LENGTH, range(count), sampler, name) for one in (other, plain))
        assert [text.tokens for text in actual] == [text.tokens for text in expected]
    assert any(block.forward.recordings for block in blocks_of(networks))  # type: ignore[union-attr]
