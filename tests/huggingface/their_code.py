"""A network with code of its makers, as a folder of their own and as a model folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from edlm.huggingface.denoiser import HuggingFaceDenoiser, HuggingFaceDenoiserSource
from tests.huggingface.networks import WORDS, save_tokenizer, vocabulary_of

V, L, WIDTH = len(WORDS), 6, 8

MODELING = """
import os
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .mixing import mixed

open(os.path.join({marks!r}, __name__.split(".")[1]), "w").close()


class TheirConfig(PretrainedConfig):
    model_type = "theirs"


class TheirModel(PreTrainedModel):
    config_class = TheirConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mixing = nn.Linear(config.hidden_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None):
        return MaskedLMOutput(logits=self.head(torch.tanh(self.mixing(mixed(self.embedding(input_ids))))))
"""
MIXING = """# Mean over the positions (moyenne des états)
def mixed(x):
    return x + x.mean(dim=1, keepdim=True)
"""
CLASSES = {"AutoConfig": "modeling_theirs.TheirConfig", "AutoModelForMaskedLM": "modeling_theirs.TheirModel"}


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "embedding.weight": (V, WIDTH), "mixing.weight": (WIDTH, WIDTH), "mixing.bias": (WIDTH,),
        "head.weight": (V, WIDTH), "head.bias": (V,),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save_theirs(folder: Path, marks: Path) -> Path:
    """Save the network with its code, which leaves a mark in the folder `marks` each time that it is run."""
    folder.mkdir()
    (folder / "modeling_theirs.py").write_text(MODELING.format(marks=str(marks)))
    (folder / "mixing.py").write_text(MIXING, encoding="utf-8")
    (folder / "train.py").write_text("raise SystemExit('no part of the network')\n")
    settings = {"model_type": "theirs", "auto_map": CLASSES, "vocab_size": V, "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(weights(), folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder)
    return folder


def opened(folder: Path, **settings) -> HuggingFaceDenoiser:
    settings = {"trust_remote_code": True, **settings}
    return HuggingFaceDenoiserSource(folder=str(folder), **settings).open(vocabulary_of(folder), L)
