"""Blocks that are computed again, or compiled, take the same training steps."""

import pytest
import torch
import torch.distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore

from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from edlm.config import ConfigurationError
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import Block, TransformerConfig
from edlm.sampling.memory_footprint import peak_bytes
from edlm.schedule import LogLinear
from edlm.training.block_execution import prepare_blocks
from edlm.training.local_engine import LocalEngine
from edlm.training.objectives import Denoising, NextToken
from tests.cluster.training.zero_worker import curve
from tests.gpu.operators import Operators
from tests.networks import stirred
from tests.toy import Toy, training
from tests.training.objectives import OBJECTIVES, N, V, rows

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
DROPPING = TransformerConfig(width=16, layers=3, heads=2, dropout=0.3, time_conditioning=True)


def objective(kind: str = "denoiser", transformer: TransformerConfig = DROPPING):
    if kind == "denoiser":
        return Denoising(stirred(Denoiser(transformer, V), seed=1), LogLinear(), 0)
    return NextToken(stirred(AutoregressiveModel(transformer, V), seed=2))


def batch(step: int, start: int, stop: int):
    return rows(start, stop, step)


def losses(kind: str, **changes) -> list[list[float]]:
    settings = training(batch=N, steps=3, **changes)
    return curve(LocalEngine(objective(kind), settings), settings, batch)


@pytest.mark.parametrize("kind", ["denoiser", "autoregressive"])
def test_with_activation_checkpointing_losses_and_gradients_have_the_same_bits_dropout_included(kind):
    assert losses(kind, activation_checkpointing=True) == losses(kind)


def test_activation_checkpointing_takes_less_memory():
    wide = TransformerConfig(width=64, layers=4, heads=2)
    peaks = []
    for recomputed in (False, True):
        engine = LocalEngine(
            objective(transformer=wide), training(batch=N, activation_checkpointing=recomputed, ema=None)
        )
        engine.backward(batch(0, 0, N))
        peaks.append(peak_bytes(lambda engine=engine: engine.backward(batch(1, 0, N)), torch.device("cpu")))
    assert peaks[1] < 0.6 * peaks[0]


def test_blocks_of_other_networks_are_refused():
    with pytest.raises(ConfigurationError, match="activation_checkpointing: Sequential has no transformer blocks"):
        LocalEngine(Toy(), training(activation_checkpointing=True))


def test_without_a_compiler_blocks_are_refused_before_they_train(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match=r"lacks a C\+\+ compiler.* or set compiled: false"):
        prepare_blocks(Denoiser(DROPPING, V), training(compiled=True), torch.device("cpu"))


def test_workers_on_a_gpu_without_triton_are_refused_before_they_train(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ConfigurationError, match=r"lacks Triton: install .*; or set compiled: false"):
            ZeroEngine(objective(), training(batch=N, compiled=True), Zero(), torch.device("cuda"))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.chaos  # compiles for half a minute
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
def test_compiled_blocks_take_the_same_steps_up_to_rounding():
    plain = TransformerConfig(width=16, layers=2, heads=2)
    settings = training(batch=N, steps=3)
    expected = curve(LocalEngine(objective(transformer=plain), settings), settings, batch)
    settings = training(batch=N, steps=3, compiled=True, activation_checkpointing=True)
    actual = curve(LocalEngine(objective(transformer=plain), settings), settings, batch)
    assert torch.tensor(actual) == pytest.approx(torch.tensor(expected), rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attention_in_training_is_computed_by_the_fused_kernel_only(name, precision):
    engine = LocalEngine(OBJECTIVES[name](), training(batch=N, precision=precision))
    layers = [module for module in engine.objective.trained.modules() if isinstance(module, Block)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), Operators() as operators:  # torch raises where it cannot
        engine.backward(rows())
    assert operators.names.count(f"{FLASH}_backward") >= len(layers) > 0
    # In bfloat16 the frozen denoiser, whose pass has no gradients, writes the scores of short rows.
    assert precision == "bfloat16" or "aten::_softmax" not in operators.names
