"""Splits follow one distribution, share no text, and hold their parts."""

import csv
import json
from collections import Counter, defaultdict

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError, parse
from edlm.data import splits
from edlm.data.corpus import Files, HuggingFace
from edlm.data.document import Document
from edlm.data.splits import FEW, Shares
from edlm.data.synthetic import IN_DOCUMENT, Markov
from tests.data.copies import marred
from tests.data.splitting import SPLITS, TINY, by_split, divide, log_normal_texts, shares, texts, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("splits")


def test_few_documents_have_no_size_that_a_split_prefers(folder):
    """Over many small corpora of very unequal documents, mean sizes agree on average and in each."""
    differences = defaultdict(list)
    for seed in range(60):
        corpus = written(folder / "few.jsonl", log_normal_texts(60, seed, sigma=1.2))
        sizes = {split: np.array([len(t) for t in held]) for split, held in by_split(corpus, None, TINY).items()}
        mean = np.concatenate(list(sizes.values())).mean()
        for split in SPLITS:
            differences[split].append(sizes[split].mean() / mean - 1)
    for split in SPLITS:
        assert abs(np.mean(differences[split])) < 0.05
        assert np.std(differences[split]) < 0.25


@pytest.mark.parametrize("count", [100, FEW])
def test_copies_share_a_split(folder, count):
    originals = [f"Ünïcode {number}\nof two lines" for number in range(count)]
    copies = [marred(text, ("NFD", "\r\n", " ", "\n")) for text in originals]
    actual = by_split(written(folder / "copies.jsonl", originals + copies), None, Shares(validation=0.2, judge=0.2))
    where = {text: split for split, held in actual.items() for text in held}
    assert len(where) == 2 * count
    assert [where[text] for text in originals] == [where[copy] for copy in copies]


def rows_written(path, kind, texts):
    """A corpus of rows in documents of at most 20 characters."""
    match kind:
        case "jsonl" | "huggingface":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        case "json":
            path.write_text(json.dumps([{"text": text} for text in texts]))
        case "csv" | "tsv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="," if kind == "csv" else "\t", quoting=csv.QUOTE_ALL)
                writer.writerows([["text"], *([text] for text in texts)])
        case "parquet":
            pyarrow.parquet.write_table(pa.table({"text": texts}), path)
    if kind == "huggingface":
        return HuggingFace(name="json", data_files=(str(path),), streaming=True, longest=20)
    return Files(paths=(str(path),), format=kind, longest=20)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "huggingface"])
def test_all_pieces_of_a_long_row_and_of_its_copies_share_a_split(tmp_path, monkeypatch, kind, few):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(splits, "FEW", 1000 if few else 10)
    originals = [f"Ünïcode {number:02}\nöf twö lines\nand ä third of {number:02}" for number in range(60)]
    copies = [marred(text, ("NFD", "\r\n", " ", "\n")) for text in originals]
    rows = [text for pair in zip(originals, copies, strict=True) for text in pair]
    corpus = rows_written(tmp_path / "rows", kind, rows)
    found = divide(corpus, None, Shares(validation=0.3, judge=0.3))
    assert (found.balanced is not None) == few
    homes = defaultdict(set)
    for document, split in found.documents():
        assert len(document.text) <= 20
        row = int(document.name.rpartition(":")[2].partition("[")[0])
        homes[row].add(split)
    assert [len(homes[row]) for row in homes] == [1] * 120
    ordered = [homes[row] for row in sorted(homes)]
    assert ordered[::2] == ordered[1::2]
    assert {split for (split,) in ordered} == set(SPLITS)


def test_rows_are_few_however_many_pieces_they_have(folder):
    texts = [f"{number} " * 20_000 for number in range(3)]
    corpus = Files(paths=written(folder / "long.jsonl", texts).paths, longest=20)
    found = divide(corpus, None, Shares(validation=0.3, judge=0.3))
    assert set(found.balanced.values()) == set(SPLITS)


@pytest.mark.parametrize(("kept", "held"), [("a.txt", "b.jsonl"), ("b.jsonl", "a.txt"), ("b.jsonl", "b.jsonl")])
def test_a_long_text_of_the_validation_corpus_is_left_out_whether_it_is_streamed_or_a_row(folder, kept, held):
    text = "A long text, in many pieces of its own."
    (folder / "a.txt").write_text(text)
    written(folder / "b.jsonl", [text])
    written(folder / "more.jsonl", ["another text"])
    corpus = Files(paths=(str(folder / kept), str(folder / "more.jsonl")), longest=20)
    validation = Files(paths=(str(folder / held),), longest=20)
    found = by_split(corpus, validation, Shares(validation=0, judge=0))
    assert "".join(found["validation"]) == "".join(found[None]) == text
    assert found["train"] == ["another text"]


@settings(max_examples=40, deadline=None)
@given(texts, texts)
def test_what_a_validation_corpus_holds_is_neither_trained_on_nor_judged_by(folder, texts, held_out):
    corpus = written(folder / "e.jsonl", ["only here", *texts])
    validation = written(folder / "v.jsonl", [f"{text}\r\n" for text in held_out])
    actual = by_split(corpus, validation, Shares(validation=0, judge=0.2))
    assert actual["validation"] == [f"{text}\r\n" for text in held_out]
    assert not set(actual["train"] + actual["judge"]) & set(held_out)
    assert sorted(actual[None]) == sorted(text for text in texts if text in held_out)


def test_in_a_large_corpus_a_split_is_a_function_of_the_text_and_the_shares_alone(folder):
    texts = [f"document {number}" for number in range(3 * FEW)]
    shares = Shares(validation=0.1, judge=0.2)
    whole = divide(written(folder / "whole.jsonl", texts), None, shares)
    expected = [split for _, split in whole.documents()]
    part = divide(written(folder / "part.jsonl", texts[FEW:][::-1]), None, shares)
    assert [split for _, split in part.documents()] == expected[FEW:][::-1]
    assert [part.split(Document(text, "")) for text in texts] == expected


def test_other_shares_move_only_the_documents_that_have_to_move(folder):
    corpus = written(folder / "moved.jsonl", [f"document {number}" for number in range(FEW)])
    before, after = (by_split(corpus, None, Shares(validation=0.1, judge=judge)) for judge in (0.2, 0.3))
    assert before["validation"] == after["validation"]
    assert set(before["judge"]) < set(after["judge"])


@settings(max_examples=40, deadline=None)
@given(texts, shares, st.randoms(use_true_random=False))
def test_few_documents_are_assigned_whatever_their_order(folder, texts, shares, random):
    shuffled = random.sample(texts, len(texts))
    first = by_split(written(folder / "a.jsonl", texts), None, shares)
    other = by_split(written(folder / "a.jsonl", shuffled), None, shares)
    assert {split: sorted(held) for split, held in first.items()} == {
        split: sorted(held) for split, held in other.items()
    }


@settings(max_examples=40, deadline=None)
@given(texts, shares)
def test_splits_share_no_text_and_lose_none(folder, texts, shares):
    actual = by_split(written(folder / "a.jsonl", texts), None, shares)
    assert sorted(text for held in actual.values() for text in held) == sorted(texts)
    sets = [set(actual[split]) for split in SPLITS]
    assert sum(map(len, sets)) == len(set(texts))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=3, max_size=40), shares)
def test_of_few_documents_every_split_gets_one_and_is_within_a_document_or_two_of_its_share(folder, sizes, shares):
    texts = [f"{number:03d}" + "x" * size for number, size in enumerate(sizes)]
    actual = by_split(written(folder / "b.jsonl", texts), None, shares)
    total, longest = sum(map(len, texts)), max(map(len, texts))
    parts = {"train": 1 - shares.validation - shares.judge, "validation": shares.validation, "judge": shares.judge}
    for split, part in parts.items():
        held = sum(map(len, actual[split]))
        assert abs(held - part * total) <= 2 * longest
        assert (held > 0) == (part > 0)


def test_few_documents_of_one_size_are_shared_out_exactly(folder):
    corpus = written(folder / "d.jsonl", [f"{number:02d}" for number in range(20)])
    actual = by_split(corpus, None, Shares(validation=0.1, judge=0.25))
    assert {split: len(documents) for split, documents in actual.items()} == {"train": 13, "validation": 2, "judge": 5}


def test_a_second_pass_is_the_same(folder):
    corpus = written(folder / "f.jsonl", ["a", "bb", "a", "ccc", "d"])
    actual = divide(corpus, None, Shares(validation=0.3, judge=0.2))
    assert list(actual.documents()) == list(actual.documents())
    assert list(actual.documents()) == list(divide(corpus, None, actual.shares).documents())


def test_a_corpus_that_changes_between_two_passes_is_refused(folder):
    actual = divide(written(folder / "g.jsonl", ["a", "b", "c"]), None, Shares(validation=0.3, judge=0.2))
    written(folder / "g.jsonl", ["a", "b", "d"])
    with pytest.raises(ConfigurationError, match="the corpus has changed while it was read"):
        list(actual.documents())


def test_the_documents_of_a_source_are_split_by_their_index_not_by_what_was_drawn():
    def order(**changes):
        source = Markov(symbols=2, length=1, sequences=400 * IN_DOCUMENT, **changes)
        return [split for _, split in divide(source, None, Shares(validation=0.05, judge=0.05)).documents()]

    assert order(seed=1) == order(seed=2) == order(concentration=9.0)
    assert Counter(order()) == {"train": 360, "validation": 20, "judge": 20}
    # The order that the committed tables were made with.
    assert "".join(split[0] for split in order()[:40]) == "ttttttvttttttjttttttttttttvttttttjtttttt"


def test_equal_documents_of_a_source_are_independent_too(monkeypatch):
    monkeypatch.setattr("edlm.data.synthetic.IN_DOCUMENT", 1)
    source = Markov(symbols=2, length=1, sequences=2000)
    held = defaultdict(set)
    for document, split in divide(source, None, Shares(validation=0.2, judge=0.2)).documents():
        held[split].add(document.text)
    assert all(held[split] == {"a", "b"} for split in SPLITS)


@pytest.mark.parametrize("copies", [1, FEW])
def test_an_empty_corpus_is_refused(folder, copies):
    shares = Shares(validation=0.1, judge=0)
    with pytest.raises(ConfigurationError, match="the corpus holds no text; check its paths"):
        by_split(written(folder / "g.jsonl", []), None, shares)
    same = written(folder / "h.jsonl", ["a"] * copies)
    with pytest.raises(ConfigurationError, match="or none that the validation corpus does not hold"):
        by_split(same, same, Shares(validation=0, judge=0))


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"validation 0\.5 and judge 0\.5 leave nothing to train on; their sum must be below 1"
    ):
        parse(Shares, {"validation": 0.5, "judge": 0.5})
    with pytest.raises(ConfigurationError, match="judge"):
        parse(Shares, {"validation": 0.5, "judge": -0.1})
