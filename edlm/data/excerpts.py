"""Excerpts of a prepared split: a few short texts that show people what a model's data is."""

from pathlib import Path

import numpy as np

from edlm.data.splits import Split
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer import open_tokenizer


def excerpts(folder: Path, split: Split, count: int, length: int) -> tuple[str, ...]:
    """Return the beginnings of up to `count` documents of a split, of at most `length` tokens each.

    They are evenly spaced among the documents that have `length` tokens or, without any, among the longest. Raise the
    errors of `TokenFile.open`.
    """
    held, tokenizer = TokenFile.open(folder, split), open_tokenizer(folder)
    sizes = np.diff(np.append(held.documents, len(held.tokens))) - (held.separator is not None)
    shown = min(length, int(sizes.max(initial=0)))
    starts = held.documents[sizes >= max(shown, 1)]
    chosen = starts[np.unique(np.linspace(0, max(len(starts) - 1, 0), count).round().astype(int))[: len(starts)]]
    texts = (tokenizer.decode(held.tokens[start : start + shown]) for start in chosen)
    return tuple(dict.fromkeys(text.rstrip("\ufffd") for text in texts))  # a cut may be within a character
