"""Canvases always have the model's length, and a long text slides over them without a gap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.inference.canvas import canvas, context_tokens

MASK = 27
lengths = st.integers(1, 40)


@given(known=st.lists(st.none() | st.integers(0, MASK - 1), max_size=12))
def test_a_canvas_holds_what_is_known_and_masks_elsewhere(known):
    row = canvas(known, 12, MASK).tolist()
    assert row == [MASK if token is None else token for token in known] + [MASK] * (12 - len(known))


@pytest.mark.parametrize("token", [-1, MASK, MASK + 1])
def test_an_id_that_is_no_token_is_refused(token):
    with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary: ids are 0 to 26"):
        canvas([0, token], 12, MASK)


def test_more_than_the_canvas_holds_is_refused():
    with pytest.raises(ValueError, match="13 positions do not fit the model's canvas of 12"):
        canvas([None] * 13, 12, MASK)


@given(known=st.integers(0, 100), new_tokens=st.integers(1, 100), length=lengths)
def test_a_context_leaves_room_and_is_half_the_canvas_at_least(known, new_tokens, length):
    context = context_tokens(known, new_tokens, length)
    assert min(known, length // 2) <= context <= known
    assert context < length


@given(known=st.integers(0, 40), length=lengths, data=st.data())
def test_what_fits_the_canvas_loses_nothing(known, length, data):
    new_tokens = data.draw(st.integers(1, max(1, length - known)))
    if known + new_tokens <= length:
        assert context_tokens(known, new_tokens, length) == known


@given(known=st.integers(0, 100), length=lengths)
def test_a_text_longer_than_the_canvas_advances_by_half_a_canvas(known, length):
    assert context_tokens(known, length + 1, length) == min(known, length // 2)
