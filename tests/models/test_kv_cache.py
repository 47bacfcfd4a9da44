"""The KV cache: a causal pass position by position, from the cache, is the pass over all positions at once."""

import pytest
import torch

from edlm.models.kv_cache import KVCache
from edlm.models.transformer import Transformer, TransformerConfig
from tests.networks import stirred


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@torch.no_grad()
def test_a_pass_by_position_from_the_caches_is_the_causal_pass_over_all_positions(dtype, tolerance):
    net = stirred(Transformer(TransformerConfig(width=16, layers=2, heads=2), causal=True)).to(dtype)
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    caches = net.start(rows=3, length=7)
    parts = [net.extend(x[:, position : position + 1], position, caches) for position in range(7)]
    whole = net(x, torch.zeros(3, dtype=dtype))
    assert (torch.cat(parts, dim=1) - whole).norm() < tolerance * whole.norm()


def test_a_cache_returns_all_keys_and_values_so_far_in_the_dtype_of_the_layer():
    cache, k, v = KVCache(2, 3, heads=2, like=torch.empty(8, dtype=torch.bfloat16)), *torch.randn(2, 2, 2, 3, 4)
    for position in range(3):
        keys, values = cache.with_next(k[:, :, position : position + 1], v[:, :, position : position + 1])
        assert keys.dtype == values.dtype == torch.bfloat16
        assert torch.equal(keys, k[:, :, : position + 1].bfloat16())
        assert torch.equal(values, v[:, :, : position + 1].bfloat16())
