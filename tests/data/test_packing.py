"""Documents of a split are packed one after the other, and a pair of a prompt and an answer lies in one row."""

import hashlib

import numpy as np

from edlm.data.document import Document
from edlm.data.encoded_documents import EncodedDocument
from edlm.data.packing import SplitWriter
from edlm.data.token_file import mapped, paths

LENGTH, SEPARATOR = 4, 0


def document(text, ids, given=None):
    return EncodedDocument.of(Document(text, "a.txt"), np.array(ids), given=given)


def test_documents_follow_one_another_across_rows(tmp_path):
    with SplitWriter(tmp_path, "train", "<u2", LENGTH, SEPARATOR) as writer:
        writer.write(document("abc", [1, 2, SEPARATOR]))
        writer.write(document("de", [3, 4, SEPARATOR]))
        summary = writer.finish()
    tokens, documents = mapped(tmp_path, "train", "<u2", summary)
    assert tokens.tolist() == [1, 2, 0, 3, 4, 0]
    assert documents.tolist() == [0, 3]
    assert (summary.documents, summary.characters, summary.bytes, summary.padding) == (2, 5, 5, 0)
    digests = paths(tmp_path, "train").digests.read_bytes()
    assert digests == hashlib.sha256(tokens.tobytes()).digest()  # of one block
    assert summary.digests_sha256 == hashlib.sha256(digests).hexdigest()
    assert not paths(tmp_path, "train")[2].exists()  # nothing is given: every token is learnt


def test_a_pair_begins_a_row_unless_it_fits_into_the_rest_and_a_longer_one_loses_its_end(tmp_path):
    with SplitWriter(tmp_path, "train", "<u2", LENGTH, SEPARATOR) as writer:
        writer.write(document("ab", [1, 2], given=1))  # two positions are left in the row
        writer.write(document("c", [3, 4], given=1))  # fits
        writer.write(document("d", [5], given=0))
        # Fits no row: three separators, then its first four tokens.
        writer.write(document("efghij", range(6, 12), given=2))
        summary = writer.finish()
    tokens, documents = mapped(tmp_path, "train", "<u2", summary)
    assert tokens.reshape(-1, LENGTH).tolist() == [[1, 2, 3, 4], [5, 0, 0, 0], [6, 7, 8, 9]]
    assert documents.tolist() == [0, 2, 4, 8]
    assert (summary.pairs, summary.cut, summary.padding) == (4, 1, 3)
    given = np.fromfile(paths(tmp_path, "train")[2], dtype="<i8").reshape(-1, 2)
    assert given.tolist() == [[0, 1], [2, 3], [4, 4], [5, 8], [8, 10]]
    assert summary.given == len(given)
