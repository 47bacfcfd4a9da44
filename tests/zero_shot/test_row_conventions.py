import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.data.token_file import TokenFile
from edlm.zero_shot.row_conventions import Documents, Published, Wrapped

SEPARATOR = 0


def corpus(*sizes: int, separator: int | None = SEPARATOR) -> TokenFile:
    """Documents of these sizes, their separators included; every other token says where it stands."""
    ends = np.cumsum(sizes, dtype=np.int64)
    tokens = np.arange(1, ends[-1] + 1, dtype="<u4")
    if separator is not None:
        tokens[ends - 1] = separator
    return TokenFile(tokens, np.append(0, ends[:-1]), vocabulary=int(ends[-1]) + 1, separator=separator)


documents = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(lambda sizes: corpus(*sizes))


def test_wrapped_rows_are_the_stream_and_lose_its_tail_alone():
    cut = Wrapped().cut(corpus(3, 2, 5), length=4, limit=None)
    assert [block.tolist() for block in cut.blocks] == [[[1, 2, 0, 4], [0, 6, 7, 8]]]
    assert cut.held == 8


def test_published_rows_stand_between_separators():
    cut = Published().cut(corpus(3, 2, 5), length=5, limit=None)
    assert [block.tolist() for block in cut.blocks] == [[[0, 1, 2, 0, 0], [0, 4, 0, 6, 0], [0, 7, 8, 9, 0]]]
    assert cut.held == 9


def test_documents_stand_in_rows_of_their_own():
    cut = Documents().cut(corpus(3, 2, 5), length=4, limit=None)
    assert [block.tolist() for block in cut.blocks] == [[[0]], [[4, 0]], [[1, 2, 0]], [[6, 7, 8, 9]]]
    assert cut.held == 10


@settings(max_examples=50, deadline=None)
@given(documents, st.integers(3, 7))
def test_nothing_is_lost_but_the_tail(stream, length):
    for convention, text in ((Wrapped(), lambda rows: rows), (Published(), lambda rows: rows[:, 1:-1])):
        if len(stream.tokens) < convention.needed(length):
            continue
        (rows,) = convention.cut(stream, length, None).blocks
        held = text(rows).flatten().tolist()
        assert rows.shape[1] == length
        assert held == stream.tokens[: len(held)].tolist()
        assert len(stream.tokens) - len(held) < convention.needed(length)
    pieces = [row for block in Documents().cut(stream, length, None).blocks for row in block.tolist()]
    assert sorted(token for row in pieces for token in row) == sorted(stream.tokens.tolist())
    assert all(SEPARATOR not in row[:-1] and len(row) <= length for row in pieces)
    assert all(row[-1] == SEPARATOR or len(row) == length for row in pieces)


@settings(max_examples=50, deadline=None)
@given(documents, st.integers(3, 7), st.integers(1, 5))
def test_a_limit_takes_rows_evenly_spaced(stream, length, limit):
    for convention in (Wrapped(), Published(), Documents()):
        if len(stream.tokens) < convention.needed(length):
            continue
        every = {tuple(row) for block in convention.cut(stream, length, None).blocks for row in block.tolist()}
        cut = convention.cut(stream, length, limit)
        some = [tuple(row) for block in cut.blocks for row in block.tolist()]
        assert set(some) <= every
        assert len(some) == min(limit, sum(map(len, convention.cut(stream, length, None).blocks)))
    (rows,) = Wrapped().cut(corpus(40), 4, limit=3).blocks
    assert rows[:, 0].tolist() == [1, 13, 25]
    (rows,) = Documents().cut(corpus(*[4] * 10), 4, limit=3).blocks
    assert rows[:, 0].tolist() == [1, 13, 25]


@pytest.mark.parametrize("convention", [Wrapped(), Published(), Documents()])
def test_the_tokens_needed_are_those_that_fill_one_row(convention):
    cut = convention.cut(corpus(convention.needed(5)), 5, None)
    assert [len(block) for block in cut.blocks] == [1]
    assert cut.held == convention.needed(5)


def test_rows_are_int64():
    for convention in (Wrapped(), Published(), Documents()):
        assert all(block.dtype == torch.int64 for block in convention.cut(corpus(3, 9), 4, None).blocks)


def test_published_rows_need_a_separator_and_a_place_for_text():
    with pytest.raises(ConfigurationError, match="needs a tokenizer with a separator"):
        Published().cut(corpus(9, separator=None), 4, None)
    with pytest.raises(ValueError, match="length 2 have no position for text"):
        Published().needed(2)


def test_every_convention_states_what_it_is():
    output = [convention.describe() for convention in (Wrapped(), Published(), Documents())]
    assert [text.split(":")[0] for text in output] == ["wrapped", "published", "document"]
