"""Excerpts are beginnings of documents of their split, as long as asked for, spread over it."""

from pathlib import Path

import numpy as np
import pytest

from edlm.data.corpus import Files
from edlm.data.excerpts import excerpts
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer import open_tokenizer
from edlm.data.tokenizer_kinds import Bytes, Characters

LONG, SHORT = 60, 40


@pytest.fixture(scope="module", params=[Bytes(), Characters()], ids=["separator", "space"])
def prepared(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("excerpts")
    letters = np.random.default_rng(0).choice(list("abcdefgh "), (SHORT + LONG, 30))
    texts = ["".join(row).strip().ljust(30, "x")[: 12 if i < SHORT else 30] for i, row in enumerate(letters)]
    (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    corpus = Files(paths=(str(folder / "corpus.txt"),), cut="line")
    prepare(
        Data(corpus=corpus, tokenizer=request.param, length=20, shares=Shares(validation=0.3)), folder, lambda _: None
    )
    return folder


def documents(folder: Path) -> list[str]:
    held, tokenizer = TokenFile.open(folder, "validation"), open_tokenizer(folder)
    ends = [*held.documents[1:], len(held.tokens)]
    cut = int(held.separator is not None)
    return [tokenizer.decode(held.tokens[a : b - cut]) for a, b in zip(held.documents, ends, strict=True)]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_excerpts_are_beginnings_of_different_documents_of_the_split_in_order(prepared, count):
    found = excerpts(prepared, "validation", count, 20)
    assert [len(text) for text in found] == [20] * count
    known = documents(prepared)
    numbers = [next(i for i, text in enumerate(known) if text.startswith(excerpt)) for excerpt in found]
    assert numbers == sorted(set(numbers))


def test_the_first_and_the_last_document_that_are_long_enough_are_among_them(prepared):
    known = [text for text in documents(prepared) if len(text) >= 20]
    found = excerpts(prepared, "validation", 3, 20)
    assert (found[0], found[-1]) == (known[0][:20], known[-1][:20])


def test_a_length_that_no_document_has_is_that_of_the_longest(prepared):
    known = documents(prepared)
    found = excerpts(prepared, "validation", 100, 1000)
    assert list(found) == [text for text in known if len(text) == max(map(len, known))]


def test_no_excerpts_are_none(prepared):
    assert excerpts(prepared, "validation", 0, 20) == ()
