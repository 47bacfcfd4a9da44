"""What is computed for a row has the same last bits alone and in company, for any number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from edlm.cooperative_work import run_to_end
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.models.attention import attend
from edlm.models.conditioning import TimeEmbedding
from edlm.models.readout import LMHead
from edlm.models.rotary import Rotary
from edlm.models.row_invariance import linear
from edlm.models.transformer import Block, TransformerConfig
from edlm.published.conditioning import NoiseEmbedding, PublishedTransformerConfig
from edlm.published.mdlm import MDLMDenoiser
from tests.networks import autoregressive, denoiser, stirred

V = 5
TIMED = TransformerConfig(width=16, layers=2, heads=2, time_conditioning=True)
every_precision = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(params=[1, 2, 3, 4, 8], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with torch.no_grad():
        yield request.param
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def require_invariance(compute: Callable[[slice], Tensor], rows: int, parts: list[int]) -> None:
    """The first n rows, for each n of `parts`, and the rows after them are those of the whole."""
    whole = compute(slice(0, rows))
    for n in parts:
        for part in (slice(0, n), slice(n, rows)):
            assert torch.equal(compute(part), whole[part]), f"{part} of {rows} rows"


@every_precision
@pytest.mark.parametrize(("inward", "outward"), [(6, 24), (16, 48), (64, 16)])
def test_a_row_of_a_product(inward, outward, precision):
    x, weight, bias = (drawn(*shape).to(precision) for shape in ((41, inward), (outward, inward), (outward,)))
    require_invariance(lambda part: linear(x[part], weight, bias), 41, [*range(1, 14), 17, 19, 26, 27])


@every_precision
@pytest.mark.parametrize("width", [6, 64])
@pytest.mark.parametrize("time", [False, True])
def test_a_sequence_in_a_layer_of_more_numbers_than_one_thread_takes(width, time, precision):
    layer = stirred(Block(width, 1, time_conditioning=time)).to(precision)
    rows, length = 2**16 // (4 * width * 7) + 1, 7
    x, condition = drawn(rows, length, width).to(precision), drawn(rows, 128).to(precision) if time else None
    turn = Rotary.at(torch.arange(length), width)
    where = torch.arange(length) < 1 + torch.arange(rows)[:, None] % length

    def only(part: slice) -> Tensor:
        result = torch.zeros_like(x[part])
        given = None if condition is None else condition[part]
        for gathered, y in layer.only(x[part], turn, given, where[part]):
            result[gathered.rows[:, None], gathered.positions] = torch.where(gathered.valid[..., None], y, 0)
        return result

    parts = [1, 2, 3, rows // 2, rows - 1]
    require_invariance(lambda part: layer(x[part], turn, None if condition is None else condition[part]), rows, parts)
    require_invariance(only, rows, parts)


@every_precision
@pytest.mark.parametrize("width", [16, 100])
def test_a_time(width, precision):
    embedding, t = stirred(TimeEmbedding(width)).to(precision), torch.rand(700, generator=torch.Generator())
    require_invariance(lambda part: embedding(t[part], precision), 700, [1, 2, 5, 16, 333, 699])


@every_precision
@pytest.mark.parametrize("channels", [6, 8])
@pytest.mark.parametrize("kind", ["all", "some", "causal"])
def test_a_sequence_in_attention(kind, channels, precision):
    k, v = (drawn(24, 2, 33, channels, seed=seed).to(precision) for seed in range(2))
    seen = (torch.arange(33) < 1 + torch.arange(24)[:, None])[:, None, None] if kind == "some" else None
    for lengths in (33,) if kind == "causal" else (1, 2, 3, 5, 7, 11, 15, 31, 33):
        q = drawn(24, 2, lengths, channels, seed=lengths).to(precision)
        require_invariance(
            lambda part, q=q: attend(
                q[part], k[part], v[part], None if seen is None else seen[part], causal=kind == "causal"
            ),
            24,
            [1, 2, 13],
        )


@every_precision
def test_a_position_in_the_readout(precision):
    readout, x = stirred(LMHead(16, V)).to(precision), drawn(41, 16).to(precision)
    require_invariance(lambda part: readout.distribution(x[part]), 41, list(range(1, 14)))


ENERGIES = {
    "step": StepEnergyConfig(block=None, width=16),
    "step in blocks": StepEnergyConfig(block=4, width=16),
    "conditional": ConditionalEnergyConfig(width=16, left=2, right=1),
    "bidirectional": BidirectionalEnergyConfig(),
    "residual": ResidualEnergyConfig(width=16),
    "edlm_nce": EDLMEnergyConfig(width=16, layers=2, heads=2, conditioning_width=6, time_conditioning=True),
}


@every_precision
@pytest.mark.parametrize("name", ENERGIES)
def test_a_text_in_every_network(name, precision):
    rows, length, k, g = 23, 7, 3, torch.Generator().manual_seed(0)
    net = denoiser(V, TIMED)
    below = stirred(ConditionalEnergyConfig(width=16).build(net), seed=5) if name == "residual" else None
    energy = stirred(ENERGIES[name].build(net, below), seed=3).to(precision)
    net.to(precision)
    texts = torch.randint(V, (rows, k, length), generator=g)
    t = torch.rand(rows, generator=g)
    masked = torch.rand(rows, length, generator=g) < 0.7
    xt = torch.where(masked, V, texts[:, 0])
    new = masked & (torch.rand(rows, length, generator=g) < 0.7)
    drafts = torch.where(new[:, None], texts, xt[:, None])
    if energy.whole_sequence:
        drafts = torch.where(masked[:, None], texts, xt[:, None])
    u = torch.rand(rows, length, generator=g, dtype=torch.float64)
    parts = [1, 2, 3, 11]

    def weighed(part: slice) -> Tensor:
        context = net.read(xt[part], t[part])
        x = drafts[part]
        log_p = net.log_p_of(context, new[part], x[:, 0])[:, None].expand(-1, k, -1)
        if energy.block is None:
            log_p = log_p.sum(dim=-1, keepdim=True)
        else:
            log_p = torch.zeros(len(x), k, -(-length // energy.block))
        return energy(x, xt[part], t[part], log_p, context)

    require_invariance(weighed, rows, parts)
    if name == "conditional":
        require_invariance(
            lambda part: run_to_end(energy.draw(xt[part], new[part], net.read(xt[part], t[part]), u[part]))[1],
            rows,
            parts,
        )


@every_precision
def test_a_text_of_the_autoregressive_model(precision):
    model, seeds = autoregressive(V).to(precision), torch.arange(23)
    texts = model.draw(seeds, length := 5)
    u = torch.rand(23, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everywhere = torch.ones_like(texts)
    require_invariance(lambda part: model.log_p(texts[part]), 23, [1, 2, 3, 11])
    require_invariance(
        lambda part: run_to_end(model.fill(everywhere[part], everywhere[part].bool(), u[part]))[1], 23, [1, 2, 3, 11]
    )


PUBLISHED = PublishedTransformerConfig(width=20, layers=2, heads=2, conditioning_width=6, time_conditioning=True)


@every_precision
def test_a_time_of_the_published_networks(precision):
    embedding, t = stirred(NoiseEmbedding(PUBLISHED)).to(precision), torch.rand(700, generator=torch.Generator())
    require_invariance(lambda part: embedding(t[part], precision), 700, [1, 2, 5, 16, 333, 699])


@every_precision
def test_a_text_of_the_published_denoiser(precision):
    net, g = stirred(MDLMDenoiser(PUBLISHED, V)).to(precision), torch.Generator().manual_seed(0)
    xt, t = torch.randint(V + 1, (23, 7), generator=g), torch.rand(23, generator=g)
    require_invariance(lambda part: net.read(xt[part], t[part]), 23, [1, 2, 3, 11])
    everywhere = torch.ones_like(xt, dtype=torch.bool)
    require_invariance(
        lambda part: net.log_p(net.read(xt[part], t[part]), everywhere[part]).unflatten(0, (-1, 7)), 23, [1, 2, 3, 11]
    )
