"""Every split has documents of the same kind: lengths, characters and separators are alike."""

import json
import math

import numpy as np
import pytest

from edlm.data.corpus import Embedded, Files
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.tokenizer_kinds import Bytes
from tests.data.splitting import SPLITS, TINY, by_split, log_normal_texts, written
from tests.paths import DATA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("splits")


def english():
    return Files(paths=(str(DATA / "english" / "train.jsonl"),))


def paragraphs():
    """The paragraphs of one in four of the English documents."""
    lines = (DATA / "english" / "train.jsonl").read_text().splitlines()[::4]
    return [part for line in lines for part in json.loads(line)["text"].split("\n\n") if part.strip()]


def wikitext():
    paths = tuple(str(DATA / "wikitext-2" / f"{name}.txt") for name in ("valid", "test"))
    return Files(paths=paths, cut="line")


def shakespeare():
    return Files(paths=(str(DATA / "tinyshakespeare.txt"),), cut="paragraph")


CORPORA = [lambda: log_normal_texts(3000), english, paragraphs, wikitext, shakespeare]


@pytest.fixture(scope="module", params=CORPORA, ids=["log-normal", "english", "paragraphs", "wikitext", "shakespeare"])
def fair(request, folder):
    if request.param is not CORPORA[0] and not DATA.is_dir():
        pytest.skip("the corpora are not beside this checkout (shared/data)")
    corpus = request.param()
    if isinstance(corpus, list):
        corpus = written(folder / "fair.jsonl", corpus)
    return by_split(corpus, None, Shares(validation=0.1, judge=0.25))


def ratio(numerators, denominators):
    """The ratio of the sums over documents, and its standard error."""
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    value = above.sum() / below.sum()
    return value, np.sqrt(((above - value * below) ** 2).sum()) / below.sum()


def assert_agree(actual):
    """`found` holds (value, standard error) of each split: each pair is within 3 standard errors."""
    for kind in actual:
        for other in actual:
            assert abs(actual[kind][0] - actual[other][0]) <= 3 * math.hypot(actual[kind][1], actual[other][1]), actual


def test_the_mean_length_is_the_same_in_every_split(fair):
    lengths = {split: [len(text) for text in fair[split]] for split in SPLITS}
    assert_agree({split: ratio(held, np.ones(len(held))) for split, held in lengths.items()})
    # Logarithms: one huge document hides nothing.
    logs = {split: np.log(held) for split, held in lengths.items()}
    assert_agree({split: ratio(held, np.ones(len(held))) for split, held in logs.items()})


def test_every_split_has_its_part_of_the_documents_and_of_the_characters(fair):
    parts = {"train": 0.65, "validation": 0.1, "judge": 0.25}
    sizes = [(split, len(text)) for split in SPLITS for text in fair[split]]
    for split, part in parts.items():
        inside = np.array([held == split for held, _ in sizes], dtype=float)
        for weights in (np.ones(len(sizes)), np.array([size for _, size in sizes], dtype=float)):
            value = (inside * weights).sum() / weights.sum()
            error = math.sqrt(part * (1 - part) * (weights**2).sum()) / weights.sum()
            assert abs(value - part) <= 3 * error


class Codes(dict):
    """The letters' numbers below 32, as `str.translate` reads them; 31 for what is no letter."""

    def __missing__(self, letter):
        return 31


CODES = Codes({ord(letter): number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz \n'.,")})


def codes(text):
    return np.frombuffer(text.lower().translate(CODES).encode("latin-1"), dtype=np.uint8).astype(np.int32)


def followers(document, order):
    """Each letter of a document with the `order` - 1 before it, as one number; it begins after line ends."""
    padded = np.concatenate([np.full(order - 1, 27, dtype=np.int32), document])
    return sum(padded[i : i + len(document)] << 5 * (order - 1 - i) for i in range(order))


def fitted(documents, order):
    """Log-probabilities of each letter after each `order` - 1 letters, interpolated with lower orders."""
    probability = np.full(1, 1 / 32)
    for n in range(1, order + 1):
        counts = np.bincount(np.concatenate([followers(d, n) for d in documents]), minlength=32**n).reshape(-1, 32)
        lower = probability if n == 1 else np.tile(probability, (32, 1))
        probability = (counts + 5 * lower) / (counts.sum(1, keepdims=True) + 5)
    return np.log(probability.reshape(-1))


def test_a_character_model_of_train_finds_every_split_equally_likely(fair):
    read = {split: [codes(text) for text in fair[split]] for split in SPLITS}
    probability = fitted(read["train"][::2], 4)
    unseen = {**read, "train": read["train"][1::2]}
    nats = {split: [-probability[followers(d, 4)].sum() for d in held] for split, held in unseen.items()}
    assert_agree({split: ratio(nats[split], [len(d) for d in unseen[split]]) for split in SPLITS})


@pytest.mark.parametrize("given", [CORPORA[0], shakespeare], ids=["log-normal", "shakespeare"])
def test_separators_are_equally_frequent_in_every_split(folder, given):
    if given is shakespeare and not DATA.is_dir():
        pytest.skip("the corpora are not beside this checkout (shared/data)")
    corpus = given()
    if isinstance(corpus, list):
        corpus = written(folder / "separators.jsonl", corpus)
    data = Data(corpus=corpus, tokenizer=Bytes(), length=8, shares=Shares(validation=0.1, judge=0.25))
    separator = prepare(data, folder / "separators", lambda _: None).separator
    actual = {}
    for split in SPLITS:
        tokens = np.fromfile(folder / "separators" / f"{split}.bin", dtype="<u2")
        spans = np.diff(np.flatnonzero(tokens == separator), prepend=-1)
        assert spans.sum() == len(tokens)
        actual[split] = ratio(np.ones(len(spans)), spans)
    assert_agree(actual)


def test_the_splits_of_the_embedded_corpus_have_fair_mean_lengths():
    lengths = {split: [len(text) for text in held] for split, held in by_split(Embedded(), None, TINY).items()}
    assert set(lengths) == set(SPLITS)
    means = [sum(held) / len(held) for held in lengths.values()]
    assert max(means) < 1.15 * min(means)
    total = sum(map(sum, lengths.values()))
    for split, part in {"train": 0.65, "validation": 0.1, "judge": 0.25}.items():
        assert sum(lengths[split]) / total == pytest.approx(part, rel=0.1)
