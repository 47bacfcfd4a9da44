"""Texts divided into splits, as tests of the splits do."""

import json
from collections import defaultdict

import numpy as np
from hypothesis import strategies as st

from edlm.data import splits
from edlm.data.corpus import Files
from edlm.data.splits import Shares

SPLITS = ("train", "validation", "judge")

shares = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(
    lambda percent: Shares(validation=percent[0] / 100, judge=percent[1] / 100)
)

texts = st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=40)


def written(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Files(paths=(str(path),))


def divide(corpus, validation, shares):
    return splits.divide(corpus, validation, shares, lambda _: None)


def by_split(corpus, validation, shares):
    actual = defaultdict(list)
    for document, split in divide(corpus, validation, shares).documents():
        actual[split].append(document.text)
    return actual


def log_normal_texts(count, seed=0, sigma=1.0):
    """Texts of words of a chain of letters, of log-normal lengths; the rarer letters stand in long texts."""
    random = np.random.default_rng(seed)
    actual = []
    for length in random.lognormal(5, sigma, count).astype(int) + 8:
        letters = random.geometric(min(0.3, 40 / (length + 100)), length)
        actual.append("".join(" etaoinshrdlu"[min(letter, 12)] for letter in letters) + ".")
    return actual


TINY = Shares(validation=0.1, judge=0.25)  # as in workflows/experiments/tiny.yaml
