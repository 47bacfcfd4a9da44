"""A tokenizer with a chat template, as models for conversations come with, for tests."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

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
