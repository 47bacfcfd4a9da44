"""Within documents, a row's log p is that of its documents alone."""

import pytest
import torch

from edlm.config import ConfigurationError
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser
from edlm.models.documents import document_index, same_document
from edlm.models.transformer import TransformerConfig
from tests.networks import autoregressive, denoiser

V, SEPARATOR = 7, 3
ROWS = torch.tensor(
    [
        [1, 2, 3, 4, 5, 6, 3, 0, 1, 2, 0, 4],  # three documents, the last without its end
        [3, 3, 1, 3, 0, 0, 6, 5, 4, 2, 1, 3],  # two of a separator alone, and one that ends the row
        [0, 1, 2, 4, 5, 6, 0, 1, 2, 4, 5, 6],  # one
    ]
)
MASKED = torch.rand(ROWS.shape, generator=torch.Generator().manual_seed(4)) < 0.5


def spans(row):
    """Start and end of every document of a row, found token by token."""
    start = 0
    for i, token in enumerate(row.tolist()):
        if token == SEPARATOR or i == len(row) - 1:
            yield start, i + 1
            start = i + 1


def test_a_separator_ends_its_document():
    assert document_index(ROWS, SEPARATOR).tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2],
        [0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3],
        [0] * 12,
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_a_position_attends_to_its_document_and_if_causal_to_no_later_position(causal):
    seen = same_document(document_index(ROWS, SEPARATOR), causal)
    for row, mask in zip(ROWS, seen[:, 0], strict=True):
        expected = torch.zeros(12, 12, dtype=torch.bool)
        for start, end in spans(row):
            expected[start:end, start:end] = True
        assert torch.equal(mask, expected.tril() if causal else expected)


@pytest.mark.parametrize("time", [False, True])
def test_a_denoisers_log_p_of_a_row_is_that_of_its_documents_alone_whatever_is_masked(time):
    net = denoiser(V, TransformerConfig(width=16, layers=2, heads=2, time_conditioning=time))
    xt, t = ROWS.masked_fill(MASKED, net.mask), torch.tensor([0.3, 0.6, 0.9])
    assert bool(MASKED[ROWS == SEPARATOR].any())
    within = net.log_p_of(net.read_within(xt, t, document_index(ROWS, SEPARATOR)), MASKED, ROWS)
    for i, row in enumerate(ROWS):
        for start, end in spans(row):
            part = i, slice(start, end)
            alone = net.log_p_of(net.read(xt[part][None], t[i : i + 1]), MASKED[part][None], ROWS[part][None])
            torch.testing.assert_close(within[part], alone[0], rtol=1e-5, atol=1e-5)
    across = net.log_p_of(net.read(xt, t), MASKED, ROWS)
    torch.testing.assert_close(within[2], across[2], rtol=1e-5, atol=1e-5)
    assert (within[:2] - across[:2]).abs().max() > 0.01


def test_an_autoregressive_models_log_p_of_a_row_is_that_of_its_documents_alone():
    model, everywhere = autoregressive(V), torch.ones_like(ROWS, dtype=torch.bool)
    within = model.log_p_of(model.read_within(ROWS, document_index(ROWS, SEPARATOR)), everywhere, ROWS)
    for i, row in enumerate(ROWS):
        for start, end in spans(row):
            alone = model.log_p(row[None, start:end])[0]
            torch.testing.assert_close(within[i, start:end], alone, rtol=1e-5, atol=1e-5)
    assert (within[:2] - model.log_p(ROWS)[:2]).abs().max() > 0.01


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_no_gradient_crosses_documents(precision):
    net = denoiser(V, TransformerConfig(width=16, layers=2, heads=2, dropout=0.2)).to(precision).train()
    inputs = net.embedding(ROWS).detach().requires_grad_()
    features = net.transformer(inputs, torch.zeros(3), documents=document_index(ROWS, SEPARATOR))
    features[0, 3:7].square().sum().backward()
    assert inputs.grad is not None
    touched = inputs.grad[0].abs().sum(dim=-1) > 0
    assert touched.tolist() == [3 <= i < 7 for i in range(12)]
    assert not bool(inputs.grad[1:].any())


@pytest.mark.parametrize("kind", [AbstractDenoiser, AbstractAutoregressiveModel])
def test_a_network_that_cannot_keep_within_documents_refuses(kind):
    class Foreign(kind):
        pass

    inputs = (ROWS, torch.zeros(3), ROWS) if kind is AbstractDenoiser else (ROWS, ROWS)
    with pytest.raises(ConfigurationError, match=r"Foreign attends across documents; leave data\.attention at across"):
        Foreign().read_within(*inputs)
