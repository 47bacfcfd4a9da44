"""Small random networks of the transformers library, saved in folders as their publishers do."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.huggingface.architecture import recorded
from edlm.huggingface.denoiser import HuggingFaceDenoiser, HuggingFaceDenoiserArchitecture
from edlm.huggingface.vocabulary import Vocabulary

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "a", "cat", "dog", "sat", "ran", "on", "mat", "log", "and", "far"]
ROLES = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}


def save_tokenizer(folder: Path, words: list[str] = WORDS, **roles: str) -> None:
    """Save a vocabulary of whole words, which surrounds texts with [CLS] and [SEP] if it has them."""
    rust = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens([word for word in words if word.startswith("[")])
    if "[CLS]" in words:
        around = [(word, rust.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
        rust.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    transformers.PreTrainedTokenizerFast(tokenizer_object=rust, **(roles or ROLES)).save_pretrained(folder)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Draw every weight, biases too, large enough that each of them changes the logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn(weight.shape, generator=generator) * 0.3
    return model


def save_network(folder: Path, model: torch.nn.Module, words: list[str] = WORDS, **roles: str) -> Path:
    randomised(model).save_pretrained(folder)
    save_tokenizer(folder, words, **roles)
    return folder


def bert_denoiser(vocabulary: int) -> HuggingFaceDenoiser:
    """A BERT without dropout and special tokens, in training as every network that an objective trains."""
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    size |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 16}
    config = transformers.BertConfig(**size, vocab_size=vocabulary + 1)
    torch.manual_seed(0)
    network = HuggingFaceDenoiserArchitecture(architecture=recorded(config), mask=vocabulary).build(vocabulary)
    randomised(network)
    return network


def vocabulary_of(folder: Path, separator: str = "[SEP]") -> Vocabulary:
    tokenizer = HuggingFaceTokenizer(uri=str(folder), separator=separator).build([])
    return Vocabulary(tokenizer.ids(), tokenizer.size, tokenizer.separator)
