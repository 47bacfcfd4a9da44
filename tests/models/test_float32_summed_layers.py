"""The gradient of a bfloat16 network is that of the same network in float32, however many tokens and micro-steps."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.huggingface.architecture import recorded
from edlm.huggingface.denoiser import HuggingFaceDenoiserArchitecture
from edlm.interfaces import Model
from edlm.models import readout
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.float32_summed_layers import Embedding, LayerNorm, sum_in_float32
from edlm.models.transformer import TransformerConfig
from edlm.published import energy
from edlm.published.mdlm import MDLMDenoiserConfig
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import ConditionalLikelihoodObjective, ContrastiveObjective
from edlm.training.interfaces import Objective
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.objectives import Denoising, NextToken
from edlm.training.settings import Training
from tests.networks import base_of, stirred

VOCABULARY, LENGTH = 128, 64
PUBLISHED: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2, "conditioning_width": 16, "time_conditioning": True}
NORM, COSINE = 0.01, 0.9999
# The gradient of few tokens has more of the rounding of the forward pass in bfloat16, above all NCE's, where data and
# negatives nearly cancel: 1 - cosine is up to 1.3e-4 at 1,024 tokens, 7.3e-5 at 4,096 and 3.3e-5 at 16,384 (with time
# conditioning 1e-4, 1.7e-5 and 5e-6). The errors of sums would grow with the tokens, and with the micro-steps.
FEW_TOKENS, FEW_TOKENS_COSINE = 1024, 0.9998


def network(time_conditioning: bool = False) -> Denoiser:
    config = TransformerConfig(width=32, layers=2, heads=2, time_conditioning=time_conditioning)
    return stirred(Denoiser(config, VOCABULARY), seed=1, scale=0.1)


def conditioning() -> Objective:
    denoiser = network()
    energy = stirred(
        ConditionalEnergyConfig(width=32, layers=1, heads=2, left=3, right=2).build(denoiser), seed=3, scale=0.1
    )
    return ConditionalLikelihoodObjective(Model(denoiser, energy, LogLinear()), 0)


def contrastive(config: AbstractEnergyConfig) -> Objective:
    denoiser = network()
    # The tolerances are of a base of the default size.
    base = (
        stirred(ConditionalEnergyConfig().build(denoiser), seed=5) if config.needs_energy else base_of(config, denoiser)
    )
    energy = stirred(config.build(denoiser, base), seed=3, scale=0.1)
    return ContrastiveObjective(Model(denoiser, energy, LogLinear()), 2, "ranking", 0)


def masked_language_model() -> Objective:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    bert = BertConfig(
        vocab_size=VOCABULARY + 1, **shape, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config = HuggingFaceDenoiserArchitecture(architecture=recorded(bert), mask=VOCABULARY)
    return Denoising(stirred(config.build(VOCABULARY), seed=1, scale=0.1), LogLinear(), 0)


OBJECTIVES = {
    "denoising": lambda: Denoising(network(), LogLinear(), 0),
    "denoising, time conditioning": lambda: Denoising(network(time_conditioning=True), LogLinear(), 0),
    "step": lambda: contrastive(StepEnergyConfig(block=8, width=32, layers=1, heads=2)),
    "residual": lambda: contrastive(ResidualEnergyConfig(width=32, layers=1, heads=2)),
    "bidirectional": lambda: contrastive(BidirectionalEnergyConfig()),
    "next token": lambda: NextToken(stirred(AutoregressiveModel(network().config, VOCABULARY), seed=2, scale=0.1)),
    "conditional": conditioning,
    "edlm_nce": lambda: contrastive(EDLMEnergyConfig(**PUBLISHED)),
    "masked language model": masked_language_model,
    "published denoising": lambda: Denoising(
        stirred(MDLMDenoiserConfig(**PUBLISHED).build(VOCABULARY), seed=1, scale=0.1), LogLinear(), 0
    ),
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
    names = [name for name, weight in objective.trained.named_parameters() if weight.requires_grad]
    yield "all", names
    for kind in (Embedding, LayerNorm):
        of_kind = [f"{n}.weight" for n, module in objective.trained.named_modules() if type(module) is kind]
        if trained := [name for name in of_kind if name in names]:  # with time conditioning a LayerNorm has no weights
            yield kind.__name__, trained
    for name in set(names) & {"readout.weight", "readout.bias"}:
        yield name, [name]


def drawing_once(objective: Objective, drawn: list[tuple[Tensor, Tensor]]) -> Objective:
    """The objective with the negatives `drawn`, which its first draw fills: rounded log-probabilities draw others.

    Micro-batches take their rows of them in turn.
    """
    if not isinstance(objective, ContrastiveObjective):
        return objective
    name = "_from_denoiser" if objective.trained.proposal is None else "_from_proposal"
    draw, taken = getattr(objective, name), [0]

    def once(x0: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        if not drawn:
            drawn.append(draw(x0, *given))
        rows = slice(taken[0], taken[0] + len(x0))
        taken[0] += len(x0)
        return tuple(values[rows] for values in drawn[0])

    setattr(objective, name, once)
    return objective


def require_equal(name: str, rows: int, accumulation: int) -> None:
    drawn: list[tuple[Tensor, Tensor]] = []
    exact = gradients(drawing_once(OBJECTIVES[name](), drawn), "float32", rows, 1)
    actual = gradients(drawing_once(OBJECTIVES[name](), drawn), "bfloat16", rows, accumulation)
    objective = OBJECTIVES[name]()
    least = FEW_TOKENS_COSINE if rows * LENGTH <= FEW_TOKENS else COSINE
    for part, names in parts(objective):
        true, mine = (torch.cat([some[name].double().flatten() for name in names]) for some in (exact, actual))
        assert mine.norm().item() == pytest.approx(true.norm().item(), rel=NORM), part
        assert torch.cosine_similarity(mine, true, 0) > least, part


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("denoising", 1024),
        ("denoising", 16384),
        ("denoising, time conditioning", 1024),
        ("published denoising", 4096),
        ("masked language model", 1024),
        ("masked language model", 16384),
        ("next token", 4096),
        ("conditional", 4096),
        ("conditional", 16384),
        ("step", 1024),
        ("step", 4096),
        ("step", 16384),
        ("residual", 1024),
        ("residual", 4096),
        ("bidirectional", 1024),
        ("bidirectional", 4096),
    ],
)
def test_the_gradient_is_that_of_float32_whatever_the_tokens_of_a_micro_batch(name, tokens):
    require_equal(name, tokens // LENGTH, 1)


def test_the_gradient_of_the_published_energy_is_that_of_float32_but_for_the_signs_that_its_relu_reads(monkeypatch):
    """Rounding changes some of those signs, whatever the tokens; a smooth function in its place has no such errors."""
    monkeypatch.setattr(energy.F, "relu", nn.functional.softplus)
    require_equal("edlm_nce", 4096 // LENGTH, 1)


@pytest.mark.parametrize(
    ("name", "accumulation"),
    [("denoising", 4), ("denoising", 16), ("denoising", 64), ("step", 16), ("conditional", 16), ("residual", 16)],
)
def test_the_gradient_is_that_of_float32_whatever_the_micro_steps(name, accumulation):
    require_equal(name, 64, accumulation)


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


def test_padding_has_no_gradient_in_either_precision():
    for precision in (torch.float32, torch.bfloat16):
        layer = Embedding(5, 4, padding_idx=1).to(precision)
        layer(torch.tensor([[0, 1, 1, 2]])).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.float().sum(dim=1).tolist() == [4, 0, 4, 0, 0]


def test_layers_of_other_libraries_are_replaced_with_their_weights():
    network = nn.Sequential(nn.Embedding(5, 4, padding_idx=1), nn.LayerNorm(4), nn.Linear(4, 4))
    weights = [weight.clone() for weight in network.parameters()]
    sum_in_float32(network)
    assert [type(layer) for layer in network] == [Embedding, LayerNorm, nn.Linear]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), weights, strict=True))


@pytest.mark.parametrize("setting", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embeddings_with_settings_that_would_be_lost_are_not_replaced(setting):
    network = nn.Sequential(nn.Embedding(5, 4, **setting), nn.Embedding(5, 4))
    sum_in_float32(network)
    assert [type(layer) for layer in network] == [nn.Embedding, Embedding]
