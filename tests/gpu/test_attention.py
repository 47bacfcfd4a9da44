"""Every pass of a transformer reaches a fused kernel of attention: no kernel writes the scores of all pairs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edlm.models.attention import BY_ROW
from edlm.models.transformer import Transformer, TransformerConfig
from tests.gpu.conftest import CUDA, require_cuda
from tests.gpu.operators import Operators
from tests.networks import stirred

WIDTH, ROWS, LENGTH = 64, 3, BY_ROW + 8
DOCUMENTS = torch.arange(LENGTH).expand(ROWS, -1) // 50
WHERE = torch.arange(LENGTH) % 3 == torch.arange(ROWS)[:, None]
FUSED = ("flash_attention", "efficient_attention", "cudnn_attention")  # in the names of torch's kernels

Pass = Callable[[Transformer, Tensor, Tensor], Tensor]


def whole(network, x, t):
    return network(x, t)


def within_documents(network, x, t):
    return network(x, t, documents=DOCUMENTS.to(x.device))


def selected(network, x, t):
    return network(x, t, WHERE)


def for_training(network, x, t):
    index = torch.nonzero(WHERE.to(x.device), as_tuple=True)
    return network.at(x, t, index)


def for_training_within_documents(network, x, t):
    index = torch.nonzero(WHERE.to(x.device), as_tuple=True)
    return network.at(x, t, index, DOCUMENTS.to(x.device))


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("of", "causal"),
    [
        *((of, False) for of in (whole, within_documents, selected, for_training, for_training_within_documents)),
        *((of, True) for of in (whole, within_documents, for_training)),
    ],
)
def test_a_pass_and_its_gradient_compute_attention_in_fused_kernels_only(of: Pass, causal, precision, device):
    if device == "cuda":
        require_cuda()
    config = TransformerConfig(width=WIDTH, layers=2, heads=2)
    network = stirred(Transformer(config, causal)).to(device, precision)
    x = torch.randn(ROWS, LENGTH, WIDTH, device=device, dtype=precision)
    with Operators() as forward:
        features = of(network, x, torch.full((ROWS,), 0.5, device=device))
    with Operators() as backward:
        features.float().sum().backward()
    for names, times in ((forward.names, 2), (backward.names, 2)):
        assert sum(any(kernel in name for kernel in FUSED) for name in names) >= times  # one of each layer, or more
        assert not [name for name in names if "softmax" in name]
