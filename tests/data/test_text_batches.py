from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edlm.data import text_batches as batching
from edlm.data.text_batches import batched


@given(st.lists(st.text("aé中🤗", max_size=12), max_size=30))
def test_batches_hold_every_text_in_its_order_and_few_bytes_or_one_text(texts):
    with_limit = batching.BYTES
    batching.BYTES = 16
    try:
        actual = list(batched(texts, lambda text: text))
    finally:
        batching.BYTES = with_limit
    assert [text for batch in actual for text in batch] == texts
    for batch in actual:
        assert len(batch) == 1 or sum(len(text.encode()) for text in batch) <= 16
    for first, other in pairwise(actual):
        assert sum(len(text.encode()) for text in first) + len(other[0].encode()) > 16
