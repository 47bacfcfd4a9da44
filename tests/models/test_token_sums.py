"""The gradient of a bfloat16 network is that of the same network in float32, however many tokens and micro-steps."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.models import readout
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.token_sums import Embedding, LayerNorm
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import Conditioning
from edlm.training.interfaces import Objective
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.objectives import Denoising, NextToken
from edlm.training.settings import Training
from tests.networks import stirred

VOCABULARY, LENGTH = 128, 64
NORM, COSINE = 0.01, 0.9999


def network() -> Denoiser:
    return stirred(Denoiser(TransformerConfig(width=32, layers=2, heads=2), VOCABULARY), seed=1, scale=0.1)


def conditioning() -> Objective:
    denoiser = network()
    energy = stirred(
        ConditionalEnergyConfig(width=32, layers=1, heads=2, left=3, right=2).build(denoiser), seed=3, scale=0.1
    )
    return Conditioning(denoiser, energy, LogLinear(), 0)


OBJECTIVES = {
    "denoising": lambda: Denoising(network(), LogLinear(), 0),
    "next token": lambda: NextToken(stirred(AutoregressiveModel(network().config, VOCABULARY), seed=2, scale=0.1)),
    "conditional": conditioning,
}


class Halt(Exception):
    pass


def gradients(
    objective: Objective, precision: Literal["float32", "bfloat16"], rows: int, accumulation: int
) -> dict[str, Tensor]:
    """The gradient that the optimizer is given in the first step, by the weight's name, before clipping matters."""
    assert isinstance(objective, nn.Module)
    objective.to(torch.bfloat16).float()  # both networks have the same weights
    settings = Training(steps=1, batch=rows, accumulation=accumulation, precision=precision, clip=1e9)
    engine, seen = LocalEngine(objective, settings), {}
    engine.optimizer.register_step_pre_hook(
        lambda *_: seen.update(zip(engine.names, [master.grad.clone() for master in engine.masters], strict=True))
    )
    tokens = torch.multinomial(  # as in text, few tokens are most of it
        1 / torch.arange(1.0, VOCABULARY + 1).expand(rows, -1), LENGTH, True, generator=torch.Generator().manual_seed(0)
    )
    fit(engine, lambda _, a, b: Rows(tokens[a:b], 0, torch.arange(a, b), rows), settings, 0, lambda *_: None, print)
    return seen


def parts(objective: Objective) -> Iterator[tuple[str, list[str]]]:
    """The names of all weights, and of those whose gradients are sums over all tokens, by their layers."""
    names = [name for name, _ in objective.trained.named_parameters()]
    yield "all", names
    for kind in (Embedding, LayerNorm):
        yield kind.__name__, [f"{n}.weight" for n, module in objective.trained.named_modules() if type(module) is kind]
    for name in set(names) & {"readout.weight", "readout.bias"}:
        yield name, [name]


def require_equal(name: str, rows: int, accumulation: int) -> None:
    exact = gradients(OBJECTIVES[name](), "float32", rows, 1)
    actual = gradients(OBJECTIVES[name](), "bfloat16", rows, accumulation)
    for part, names in parts(OBJECTIVES[name]()):
        true, mine = (torch.cat([some[one].double().flatten() for one in names]) for some in (exact, actual))
        assert mine.norm().item() == pytest.approx(true.norm().item(), rel=NORM), part
        assert torch.cosine_similarity(mine, true, 0) > COSINE, part


@pytest.mark.parametrize(
    ("name", "tokens"), [("denoising", 1024), ("denoising", 16384), ("next token", 4096), ("conditional", 4096)]
)
def test_the_gradient_is_that_of_float32_whatever_the_tokens_of_a_micro_batch(name, tokens):
    require_equal(name, tokens // LENGTH, 1)


@pytest.mark.parametrize("accumulation", [4, 16, 64])
def test_the_gradient_is_that_of_float32_whatever_the_micro_steps(accumulation):
    require_equal("denoising", 64, accumulation)


@pytest.mark.parametrize("name", ["denoising", "next token"])
def test_the_gradient_is_that_of_float32_whatever_the_chunks_of_the_vocabulary_in_a_micro_batch(name, monkeypatch):
    monkeypatch.setattr(readout, "CHUNK", 16 * VOCABULARY)  # up to 512 chunks
    require_equal(name, 8192 // LENGTH, 1)


@pytest.mark.parametrize("bias", [False, True])
def test_the_forward_pass_of_the_layers_equals_torchs(bias):
    torch.manual_seed(0)
    x, ids = torch.randn(5, 7, 32).bfloat16(), torch.randint(VOCABULARY, (5, 7))
    for mine, theirs, given in (
        (LayerNorm(32, bias=bias), nn.LayerNorm(32, bias=bias), x),
        (Embedding(VOCABULARY, 32), nn.Embedding(VOCABULARY, 32), ids),
    ):
        torch.nn.init.normal_(mine.weight)
        theirs.load_state_dict(mine.state_dict())
        assert torch.equal(mine.bfloat16()(given), theirs.bfloat16()(given))
        assert torch.equal(mine.float()(given.float() if given.is_floating_point() else given),
                           theirs.float()(given.float() if given.is_floating_point() else given))  # fmt: skip
