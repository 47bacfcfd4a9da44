"""Packed documents come back whole from any transport, and their texts are in no pickle of them."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from edlm.data.document import Document
from edlm.data.packed_documents import PackedDocuments

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)  # half of a surrogate pair, too
DOCUMENTS = st.builds(
    Document,
    text=TEXTS,
    name=TEXTS,
    whole_key=st.none() | st.integers(0, 2**64 - 1),
    part=st.none() | TEXTS,
    given=st.none() | st.integers(0, 20),
    turns=st.none() | st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
)
BATCHES = st.lists(st.lists(DOCUMENTS, max_size=4))


@given(BATCHES)
def test_the_batches_come_back_whole(batches):
    packed = pickle.loads(pickle.dumps(PackedDocuments.of(batches)))
    assert [list(batch) for batch in packed.batches()] == batches


def test_texts_are_sent_beside_the_pickle():
    buffers: list[pickle.PickleBuffer] = []
    packed = PackedDocuments.of([[Document("a text " * 1000, "a.txt")]])
    assert len(pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)) < 1000
    assert [len(buffer.raw()) for buffer in buffers] == [7000]


def test_a_key_that_has_been_computed_is_not_computed_again():
    document = Document("a text", "a.txt")
    vars(document)["key"] = 7
    ((back,),) = PackedDocuments.of([[document]]).batches()
    assert back.key == 7
