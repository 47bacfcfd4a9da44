from edlm.data.corpus import Embedded
from edlm.data.document import LONGEST


def test_python_ships_a_corpus_of_english():
    documents = list(Embedded().documents())
    assert documents == list(Embedded().documents())
    assert len(documents) > 50
    assert sum(len(document.text) for document in documents) > 300_000
    assert [document.name for document in documents] == sorted(document.name for document in documents)
    assert max(len(document.text) for document in documents) < LONGEST
