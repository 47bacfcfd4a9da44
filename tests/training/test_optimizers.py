"""Muon takes the steps of its papers on the matrices of the blocks, AdamW its own on all other weights."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edlm.config import ConfigurationError, parse, plain
from edlm.data.batches import Rows
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import Block, TransformerConfig
from edlm.schedule import LogLinear
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.objectives import Denoising
from edlm.training.optimizers import (
    ADAMW,
    FIRST,
    MOMENTUM,
    MUON,
    SECOND,
    AdamW,
    JointOptimizer,
    moment_kinds,
    optimizer_of,
)
from edlm.training.resume_compatibility import incompatibility
from edlm.training.settings import Muon, Training
from tests.networks import KINDS, autoregressive, base_of, denoiser, stirred

VOCABULARY, LENGTH, BATCH = 5, 12, 8
RATE, DECAY, MOMENTUM_DECAY = 0.02, 0.1, 0.9
SETTINGS = Training(steps=6, batch=BATCH, learning_rate=1e-2, weight_decay=0.1, clip=0.5, ema=0.9, muon=Muon())
sizes = st.integers(2, 24)


def orthogonalized(direction: Tensor) -> Tensor:
    """Five steps of Newton-Schulz as Jordan et al. 2024 write them, in the precision of the argument."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = direction.mT if direction.shape[0] > direction.shape[1] else direction
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if direction.shape[0] > direction.shape[1] else x


@settings(max_examples=30, deadline=None)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 2**31))
def test_the_updates_of_a_matrix_are_those_of_the_papers_up_to_the_iterations_bfloat16(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    start, average = matrix.double(), torch.zeros(rows, columns, dtype=torch.float64)
    training = Training(steps=2, batch=1, learning_rate=RATE, weight_decay=DECAY, muon=Muon(momentum=MOMENTUM_DECAY))
    optimizer = optimizer_of({"matrix": matrix, "bias": torch.ones(1)}, {"matrix": MUON, "bias": ADAMW}, training)
    # Singular values between 1/2 and 1: bfloat16 has 8 bits, and five steps multiply a tiny one and its error by 480.
    left, _, right = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    direction = left @ torch.linspace(0.5, 1, min(rows, columns)).diag() @ right
    for step in range(2):
        matrix.grad = (1 + step) * direction
        optimizer.step()
        gradient = matrix.grad.double()
        average = MOMENTUM_DECAY * average + (1 - MOMENTUM_DECAY) * gradient
        ahead = MOMENTUM_DECAY * average + (1 - MOMENTUM_DECAY) * gradient
        scale = RATE * 0.2 * math.sqrt(max(rows, columns))
        expected = (1 - RATE * DECAY) * start - scale * orthogonalized(ahead)
        assert (matrix - expected).norm() < 0.06 * scale * math.sqrt(min(rows, columns))
        start = matrix.double()


def test_the_update_of_a_matrix_has_the_root_mean_square_of_adamws():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.zeros(48, 192)
    matrix.grad = torch.randn(48, 192, generator=generator)
    training = Training(steps=1, batch=1, learning_rate=1.0, muon=Muon())
    optimizer_of({"matrix": matrix, "bias": torch.ones(1)}, {"matrix": MUON, "bias": ADAMW}, training).step()
    # Liu et al. 2025: AdamW's is 0.2 to 0.4; the iteration leaves singular values between 0.7 and 1.2.
    assert 0.7 * 0.2 < matrix.square().mean().sqrt().item() < 1.2 * 0.2


def test_the_other_weights_take_the_steps_of_adamw_bit_for_bit():
    alone, beside = torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 7)
    matrix = torch.eye(3)
    both = optimizer_of({"matrix": matrix, "bias": beside}, {"matrix": MUON, "bias": ADAMW}, SETTINGS)
    one = torch.optim.AdamW([alone], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, fused=True)
    for step in range(3):
        alone.grad, beside.grad, matrix.grad = (torch.full(shape, 0.3 + step) for shape in ((7,), (7,), (3, 3)))
        one.step()
        both.step()
    assert torch.equal(alone, beside)
    assert {key for state in both.state.values() for key in state} == {"step", FIRST, SECOND, MOMENTUM}


def test_the_groups_that_are_left_to_a_joint_optimizer_step_and_no_others():
    left, right = torch.ones(1), torch.ones(1)
    joint = JointOptimizer(torch.optim.SGD([left], lr=1.0), torch.optim.SGD([right], lr=1.0))
    left.grad = right.grad = torch.ones(1)
    groups = joint.param_groups
    for group in groups:
        joint.param_groups = [group]
        joint.step()
    assert (left.item(), right.item()) == (0, 0)


def networks() -> dict[str, nn.Module]:
    timed = TransformerConfig(width=16, layers=2, heads=2, time_conditioning=True)
    energies = {kind: config.build(denoiser(), base_of(config, denoiser())) for kind, config in KINDS.items()}
    return {"denoiser": denoiser(), "timed": Denoiser(timed, 5), "autoregressive": autoregressive(), **energies}


@pytest.mark.parametrize("name", networks())
def test_every_trained_weight_has_one_optimizer_and_muon_the_matrices_of_the_blocks(name):
    network = networks()[name]
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    if not any(weight.requires_grad for block in blocks for weight in block.parameters()):
        with pytest.raises(ConfigurationError, match=r"muon: \w+ has no transformer blocks"):
            moment_kinds(network, SETTINGS)
        return
    kinds = moment_kinds(network, SETTINGS)
    optimizer = optimizer_of(weights, kinds, SETTINGS)
    assert sorted(map(id, (w for group in optimizer.param_groups for w in group["params"]))) == sorted(
        map(id, weights.values())
    )
    matrices = {
        id(w) for block in blocks for w in (block.qkv.weight, block.out.weight, block.up.weight, block.down.weight)
    }
    assert {name for name, kind in kinds.items() if kind == MUON} == {
        n for n, w in weights.items() if id(w) in matrices
    }
    assert set(moment_kinds(network, Training(steps=1, batch=1)).values()) == {ADAMW}


def rows(step: int, start: int, stop: int) -> Rows:
    """Runs of equal tokens, which a denoiser learns."""
    tokens = torch.randint(VOCABULARY, (BATCH, 1), generator=torch.Generator().manual_seed(step)).repeat(1, LENGTH)
    return Rows(tokens[start:stop], step, torch.arange(start, stop), BATCH)


def objective() -> Denoising:
    return Denoising(stirred(denoiser(VOCABULARY), 1, 0.1), LogLinear(), 0)


@pytest.mark.parametrize("muon", [None, Muon()])
def test_a_short_training_lowers_the_loss(muon):
    training = Training(steps=25, batch=BATCH, learning_rate=1e-2, muon=muon)
    losses: list[float] = []
    engine = LocalEngine(objective(), training)
    fit(engine, rows, training, 0, lambda _, metrics: losses.append(metrics["loss_nats_per_token"]), lambda _: None)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_with_muon_resumes_from_its_state_as_if_nothing_had_happened(precision):
    training = replace(SETTINGS, precision=precision)
    whole, half, resumed = (LocalEngine(objective(), training) for _ in range(3))
    for engine, steps in ((whole, range(6)), (half, range(3))):
        for step in steps:
            engine.backward(rows(step, 0, BATCH))
            engine.update(1e-2)
    resumed.load({name: tensor.clone() for name, tensor in half.state().items()}, 3)
    for step in range(3, 6):
        resumed.backward(rows(step, 0, BATCH))
        resumed.update(1e-2)
    expected, actual = whole.state(), resumed.state()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())


def test_a_matrix_has_one_average_in_a_state_and_every_other_weight_two():
    engine = LocalEngine(objective(), SETTINGS)
    engine.backward(rows(0, 0, BATCH))
    engine.update(1e-2)
    averages = [name.partition(".")[::2] for name in engine.state() if name.split(".")[0] in (*ADAMW, *MUON)]
    of = {name: {kind for kind, other in averages if other == name} for name in engine.names}
    assert of == {name: set(kinds) for name, kinds in engine.moments.items()}
    assert sum(len(kinds) == 1 for kinds in of.values()) == 2 * 4  # of two blocks


@pytest.mark.parametrize(("saved", "resuming"), [(None, Muon()), (Muon(), None)])
def test_a_state_of_the_other_optimizer_is_refused_by_name(saved, resuming):
    first, second = (LocalEngine(objective(), Training(steps=2, batch=BATCH, muon=muon)) for muon in (saved, resuming))
    first.backward(rows(0, 0, BATCH))
    first.update(1e-2)
    names = {None: "AdamW", Muon(): "Muon"}
    with pytest.raises(ValueError, match=f"{names[saved]} saved it, {names[resuming]} resumes"):
        second.load(first.state(), 1)


def test_a_finished_training_is_not_continued_by_another_optimizer():
    before = Training(steps=4, batch=BATCH, decay="constant")
    reason = incompatibility(plain(before), 4, Training(steps=8, batch=BATCH, decay="constant", muon=Muon()))
    assert reason is not None
    assert reason.startswith("muon changed None ->")


def test_muon_is_not_for_adapters():
    with pytest.raises(ConfigurationError, match="muon and lora are set"):
        parse(Training, {"steps": 1, "batch": 1, "muon": {}, "lora": {"rank": 2}})


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_takes_torchs_steps_to_the_bit_and_its_weights_train_on(fused):
    draws = torch.Generator().manual_seed(0)
    values, gradients = torch.randn(7, 5, generator=draws), torch.randn(4, 7, 5, generator=draws)
    trained = []
    for kind in (AdamW, torch.optim.AdamW):
        weight = nn.Parameter(values.clone())
        optimizer = kind([weight], lr=RATE, weight_decay=DECAY, fused=fused)
        for gradient in gradients:
            optimizer.zero_grad()
            (weight * gradient).sum().backward()
            optimizer.step()
        assert weight.requires_grad
        assert not optimizer.state[weight][FIRST].requires_grad
        trained.append(weight.detach())
    assert torch.equal(*trained)
    assert not torch.equal(trained[0], values)
