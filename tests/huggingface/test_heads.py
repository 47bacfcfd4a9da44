"""Step and conditional heads on the frozen features of a BERT that was trained here lower its bound."""

import pytest
import torch

from edlm.data.batches import whole
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.synthetic import Markov
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer_kinds import Symbols
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.huggingface.architecture import recorded
from edlm.huggingface.denoiser import HuggingFaceDenoiserArchitecture
from edlm.interfaces import Model
from edlm.likelihood.bounds import sampler_bound
from edlm.likelihood.estimate import difference
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import energy_objective
from edlm.training.local_training import train
from edlm.training.objectives import Denoising
from edlm.training.settings import Training
from tests.huggingface.networks import transformers

SYMBOLS, LENGTH, TEXTS = 6, 16, 200
TRAINING = Training(steps=150, batch=32, learning_rate=5e-3, warmup_steps=10, decay="cosine")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markov")
    source = Markov(symbols=SYMBOLS, length=LENGTH, sequences=4000, concentration=0.2)
    shares = Shares(validation=0.1, judge=0.0)
    prepare(Data(corpus=source, tokenizer=Symbols(size=SYMBOLS), length=LENGTH, shares=shares), folder, lambda _: None)
    return folder


@pytest.fixture(scope="module")
def bert(data):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=SYMBOLS + 1, **shape, max_position_embeddings=LENGTH)
    denoiser = HuggingFaceDenoiserArchitecture(architecture=recorded(config), mask=SYMBOLS).build(SYMBOLS)
    train(Denoising(denoiser, LogLinear(), 0), data, TRAINING, say=lambda _: None)
    return denoiser.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("kind", "candidates"),
    [
        (StepEnergyConfig(block=8, width=32, layers=1, heads=2), 8),
        (ConditionalEnergyConfig(width=32, layers=1, heads=2), 0),
    ],
)
def test_a_head_on_a_frozen_bert_lowers_its_bound_at_every_number_of_steps(data, bert, kind, candidates):
    torch.manual_seed(1)
    energy = kind.build(bert)
    train(energy_objective(Model(bert, energy, LogLinear()), 3, "ranking", 0), data, TRAINING, say=lambda _: None)
    x0 = whole(TokenFile.open(data, "validation"), LENGTH, TEXTS)
    for steps in (2, 4, 8):
        plain = sampler_bound(x0, bert, None, LogLinear(), Sampler(steps=steps), seed=0, draws=1)
        sampler = Sampler(steps=steps, candidates=candidates)
        gain = difference(plain, sampler_bound(x0, bert, energy.eval(), LogLinear(), sampler, seed=0, draws=1))
        assert gain.mean > 3 * gain.standard_error, (steps, gain.mean, gain.standard_error)
