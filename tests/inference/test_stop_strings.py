"""A text ends at the same letter whether it is looked at whole or as it grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.inference.stop_strings import cut, stop_free_length

texts = st.text("ab", max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(texts, stops)
def test_what_ends_a_growing_text_is_what_ends_the_whole(text, stops):
    seen = [cut(text[:length], stops) for length in range(len(text) + 1)]
    first = next((actual for actual in seen if actual is not None), None)
    assert first == cut(text, stops)
    assert all(actual in (None, first) for actual in seen)


@given(texts, stops)
def test_what_is_settled_is_never_taken_back_and_nothing_more_is_held_back(text, stops):
    end = cut(text, stops)
    for length in range(len(text) + 1):
        if cut(text[:length], stops) is not None:
            break
        sure = stop_free_length(text[:length], stops)
        assert sure <= (len(text) if end is None else end)
        held = text[sure:length]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("text", "stops", "letters"),
    [("one. two", (".",), 3), ("abcd", ("abcd", "bc"), 1), ("abc", ("c", "bc"), 1), ("abc", ("d",), None)],
)
def test_the_stop_that_is_complete_first_ends_the_text(text, stops, letters):
    assert cut(text, stops) == letters
