"""A mixture holds its parts in their shares, in a fixed order; a text is in the split that it would be in alone."""

import json
import math
from itertools import groupby
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError, parse, plain
from edlm.data import splits
from edlm.data.corpus import Files, Mixture
from edlm.data.mixture import Part
from edlm.data.preparation import Data, prepare
from edlm.data.splits import FEW, Shares
from edlm.data.token_file import read_summary
from edlm.data.tokenizer_kinds import Bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mixture")


def written(folder, name, texts, **more) -> Files:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Files(paths=(str(path),), **more)


def numbered(letter, lengths) -> list[str]:
    """Different texts of these lengths, all of them of one letter and a number."""
    return [f"{i} ".ljust(max(length, 8), letter) for i, length in enumerate(lengths)]


def mixture(
    *parts: tuple[Files, float], stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
) -> Mixture:
    return Mixture(parts=tuple(Part(corpus=corpus, weight=weight) for corpus, weight in parts), stop=stop)


def silent(_: str) -> None:
    pass


lengths = st.lists(st.integers(8, 60), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None)
@given(first=lengths, second=lengths, weight=st.integers(1, 9))
def test_wherever_a_reader_stops_the_shares_hold_up_to_one_text(folder, first, second, weight):
    parts = (written(folder, "a", numbered("a", first)), weight), (written(folder, "b", numbered("b", second)), 2.0)
    read: dict[str | None, int] = {"parts.0": 0, "parts.1": 0}
    for document in mixture(*parts).documents():
        read[document.part] += len(document.text)
        share = weight / (weight + 2) * sum(read.values())
        assert abs(read["parts.0"] - share) <= max(*first, *second, 8)


def test_the_mixture_ends_with_the_first_part_that_ends_and_states_which(tmp_path, caplog):
    long, short = numbered("a", [10] * 50), numbered("b", [10] * 5)
    read = list(mixture((written(tmp_path, "a", long), 3), (written(tmp_path, "b", short), 1)).documents())
    assert [document.text for document in read if document.part == "parts.1"] == short
    taken = [document.text for document in read if document.part == "parts.0"]
    assert taken == long[: len(taken)]
    assert 14 <= len(taken) <= 16
    assert "the mixture ends with its part parts.1" in caplog.text


def test_parts_that_end_are_read_again_until_each_was_read_once(tmp_path):
    long, short = numbered("a", [10] * 50), numbered("b", [10] * 5)
    parts = (written(tmp_path, "a", long), 1), (written(tmp_path, "b", short), 1)
    read = list(mixture(*parts, stop="all_exhausted").documents())
    assert [document.text for document in read if document.part == "parts.0"] == long
    again = [document.text for document in read if document.part == "parts.1"]
    assert again == (short * 20)[: len(again)]
    assert 49 <= len(again) <= 51


def test_every_reading_yields_the_same(tmp_path):
    parts = (written(tmp_path, "a", numbered("a", range(8, 50))), 1), (written(tmp_path, "b", ["one", "two"]), 0.3)
    for stop in ("first_exhausted", "all_exhausted"):
        whole = mixture(*parts, stop=stop)
        assert list(whole.documents()) == list(whole.documents())


def test_the_pieces_of_a_row_stay_together(tmp_path):
    cut = written(tmp_path, "a", numbered("a", [100] * 4), longest=10)
    read = list(mixture((cut, 1), (written(tmp_path, "b", numbered("b", [8] * 60)), 1)).documents())
    keys = [key for key, _ in groupby(document.whole_key for document in read) if key is not None]
    assert len(keys) == len(set(keys)) == 4


def split_of(corpus) -> dict[str, str | None]:
    divided = splits.divide(corpus, None, Shares(validation=0.2, judge=0.2), lambda _: None)
    return {document.text: split for document, split in divided.documents()}


def test_a_text_is_in_the_split_that_it_would_be_in_alone(tmp_path):
    first, second = (written(tmp_path, letter, numbered(letter, [12] * FEW)) for letter in "ab")
    assert split_of(mixture((first, 1), (second, 1))) == {**split_of(first), **split_of(second)}


def test_the_summary_has_the_real_shares_of_every_split(tmp_path):
    first, second = written(tmp_path, "a", numbered("a", [20] * 900)), written(tmp_path, "b", numbered("b", [40] * 900))
    parts = Part(name="wide", corpus=first, weight=3), Part(name="narrow", corpus=second, weight=1)
    data = Data(corpus=Mixture(parts=parts), tokenizer=Bytes(), length=8, shares=Shares(validation=0.2, judge=0.2))
    lines = []
    summary = prepare(data, tmp_path / "data", lines.append)
    assert read_summary(tmp_path / "data") == summary
    total: dict[str, int] = {"wide": 0, "narrow": 0}
    for held in summary.splits.values():
        assert sum(part.documents for part in held.parts.values()) == held.documents
        assert sum(part.tokens for part in held.parts.values()) == held.tokens
        for name, part in held.parts.items():
            total[name] += part.characters
            line = f"{part.characters / held.characters:.1%} of its characters and {part.tokens / held.tokens:.1%} of"
            assert any(f"{line} its tokens are of {name}" in text for text in lines)
    assert total["wide"] / sum(total.values()) == pytest.approx(0.75, abs=0.005)
    # A binomial share of the documents: each split is within four standard errors.
    for held in summary.splits.values():
        share = held.parts["wide"].documents / held.documents
        assert abs(share - 6 / 7) < 4 * math.sqrt(6 / 49 / held.documents)


def test_a_corpus_of_its_own_has_no_parts(tmp_path):
    corpus = written(tmp_path, "a", numbered("a", [20] * 90))
    data = Data(corpus=corpus, tokenizer=Bytes(), length=8, shares=Shares(validation=0.2))
    assert all(held.parts == {} for held in prepare(data, tmp_path / "data", silent).splits.values())


def test_the_version_changes_with_every_part(tmp_path):
    parts = (written(tmp_path, "a", ["one"]), 1), (written(tmp_path, "b", ["two"]), 1)
    before = mixture(*parts).version()
    written(tmp_path, "b", ["another text"])
    assert mixture(*parts).version() != before


EMBEDDED = {"kind": "embedded"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(EMBEDDED, 1)], "corpus.parts: .* at least 2"),
        ([(EMBEDDED, 1), (EMBEDDED, 0)], r"corpus.parts.1.weight: Input should be greater than 0; got 0"),
        ([(EMBEDDED, 1), (EMBEDDED, -2.5)], r"corpus.parts.1.weight: Input should be greater than 0; got -2.5"),
        ([(EMBEDDED, 1), (EMBEDDED, math.inf)], r"corpus.parts.1.weight: Input should be a finite number"),
        ([(EMBEDDED, 1), (EMBEDDED, "half")], r"corpus.parts.1.weight: Input should be a valid number"),
        ([(EMBEDDED, 1), ({"kind": "markov"}, 1)], "corpus.parts.1.corpus.kind: there is no 'markov'; allowed: emb"),
        ([(EMBEDDED, 1), ({"kind": "mixture"}, 1)], "corpus.parts.1.corpus.kind: there is no 'mixture'; allowed: emb"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(parts, message):
    mixed = {"kind": "mixture", "parts": [{"corpus": corpus, "weight": weight} for corpus, weight in parts]}
    tree = {"corpus": mixed, "tokenizer": {"kind": "bytes"}, "length": 8, "shares": {"validation": 0.1}}
    with pytest.raises(ConfigurationError, match=message):
        parse(Data, tree)


def test_parts_of_one_name_are_refused():
    parts = [{"corpus": EMBEDDED, "weight": 1, "name": "a"}] * 2
    with pytest.raises(ConfigurationError, match=r"two parts share a name in \['a', 'a'\]"):
        parse(Mixture, {"parts": parts})


def test_a_part_without_text_is_named(tmp_path):
    mixed = mixture((written(tmp_path, "a", ["one"] * 3), 1), (written(tmp_path, "b", [" "]), 1))
    with pytest.raises(ConfigurationError, match=r"corpus\.parts: parts\.1 holds no text"):
        list(mixed.documents())
    assert parse(Mixture, plain(mixed)) == mixed
