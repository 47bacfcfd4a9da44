"""Random numbers on a device are the bits of the CPU's, and on a GPU one kernel makes them."""

import math

import pytest
import torch

from edlm.kernel_choice import rng_kernel_for
from edlm.rng import ON_HOST, Purpose, seeds, uniforms
from tests.gpu.operators import Operators

EXTREME = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x9E3779B97F4A7])
MIXING = {"aten::mul", "aten::bitwise_xor", "aten::__rshift__"}


@pytest.mark.parametrize("draw", [uniforms, seeds])
@pytest.mark.parametrize("shape", [(), (1,), (257,), (3, 1000), (2, 3, 64)])
def test_random_numbers_are_the_same_bits_everywhere(device, shape, draw):
    keys = EXTREME.repeat(ON_HOST // math.prod(shape) // len(EXTREME) + 1)
    assert keys.numel() * math.prod(shape) > ON_HOST  # so that the device draws them, if there is something to spread
    for step in (5, keys.flip(0)):
        on_cpu = draw(keys, step, -3, Purpose.CANDIDATE, shape)
        for on_device in (
            draw(keys, step, -3, Purpose.CANDIDATE, shape, device),
            draw(keys.to(device), step if isinstance(step, int) else step.to(device), -3, Purpose.CANDIDATE, shape),
        ):
            assert on_device.device.type == device
            assert torch.equal(on_device.cpu(), on_cpu)
    assert torch.equal(draw(1, 2, 3, Purpose.PICK, shape, device).cpu(), draw(1, 2, 3, Purpose.PICK, shape))


@pytest.mark.gpu
@pytest.mark.parametrize("draw", [uniforms, seeds])
def test_a_gpu_draws_by_its_kernel_and_not_by_operators_of_torch(cuda, draw):
    if rng_kernel_for("cuda") is None:
        pytest.skip("no Triton, or nothing that builds what launches its kernels")
    with Operators() as called:
        draw(EXTREME, 2, 3, Purpose.MASK, (2, ON_HOST), cuda)
    assert "aten::empty" in called.names
    assert not MIXING & set(called.names)
