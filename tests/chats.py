"""A tokenizer with a chat template, as models for conversations come with, and a bundle with it, for tests."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edlm.checkpoints.networks import save_denoiser
from edlm.config import plain
from edlm.data.token_file import CHAT
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.networks import TRANSFORMER, denoiser

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + eos_token "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END = {"__type": "AddedToken", "content": "<|im_end|>", "special": True}
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}


def write_chat_tokenizer(folder: Path, **settings) -> Path:
    """Write a byte-level tokenizer of bytes and special tokens, with these settings, to `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(list(SPECIAL))
    (folder / "tokenizer.json").write_text(rust.to_str())
    chosen = {"chat_template": CHATML, **SETTINGS, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in chosen.items() if v is not None}))
    return folder


def make_chat_bundle(folder: Path, separator: str = "<|im_end|>", **settings) -> Path:
    """Save a bundle whose denoiser has the chat template of such a tokenizer to `folder`/bundle, and return it."""
    config = HuggingFaceTokenizer(uri=str(write_chat_tokenizer(folder / "tokenizer", **settings)), separator=separator)
    chat, tokenizer = config.chat_template(), config.build([])
    tokenizer.save(folder)
    weights, facts = denoiser(tokenizer.size).state_dict(), {CHAT: plain(chat)}
    save_denoiser(folder / "denoiser", weights, TRANSFORMER, LogLinear(), 96, folder / FILE, facts)
    save_bundle(folder / "bundle", Bundle(name="chat", sampler=Sampler(steps=3)), folder / "denoiser", {})
    return folder / "bundle"
