"""Parts of files of JSON lines have the documents and the errors of the whole corpus, and notice another file."""

import gzip
import json
import os
import pickle
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.data import corpus_files
from edlm.data.corpus import Document, Files
from edlm.data.pairs import Prompts
from edlm.storage import write_text


def facts(documents) -> list[tuple]:
    """All that a document holds but its name."""
    return [(one.text, one.whole_key, one.given, one.key, one.piece_key) for one in documents]


def lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text, "prompt": text[:3]}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def documents_of(parts) -> list[Document]:
    return [document for part in parts for document in part.documents()]


@pytest.fixture
def large(tmp_path, monkeypatch) -> str:
    """A file of several parts."""
    monkeypatch.setattr(corpus_files, "PART_BYTES", 40)
    return lines(tmp_path / "large.jsonl", [f"text {i}" for i in range(20)])


def parts_of(corpus: Files):
    parts = corpus.parts()
    assert parts is not None
    return parts


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.text(min_size=1, max_size=30), max_size=12), min_size=1, max_size=3),
    st.integers(3, 200),  # a mark is not divided
    st.booleans(),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_the_documents_of_all_parts_are_those_of_the_corpus(tmp_path_factory, files, size, has_prompts, mark):
    folder = tmp_path_factory.mktemp("parts")
    paths = tuple(lines(folder / f"{i}.jsonl", texts) for i, texts in enumerate(files))
    for path in map(Path, paths):
        path.write_bytes(mark + path.read_bytes())
    prompts = Prompts(field="prompt") if has_prompts else None
    corpus = Files(paths=paths, longest=60 if has_prompts else 7, prompts=prompts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_files, "PART_BYTES", size)
        parts = corpus.parts()
    if parts is None:
        assert sum(Path(path).stat().st_size for path in paths) < size * len(paths)
        return
    assert facts(documents_of(pickle.loads(pickle.dumps(parts)))) == facts(corpus.documents())


def test_a_file_in_a_store_has_no_parts_and_is_read(large):
    uri = f"memory://{uuid.uuid4().hex}/a.jsonl"
    write_text(uri, Path(large).read_text())
    assert Files(paths=(uri,)).parts() is None
    assert Files(paths=(large, uri)).parts() is None


def test_many_small_files_have_no_parts(tmp_path, large):
    assert len(parts_of(Files(paths=(large,)))) > 1
    small = tuple(lines(tmp_path / f"{i}.jsonl", ["x"]) for i in range(200))
    assert Files(paths=(large, *small)).parts() is None


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt", "a.csv", "a.json"])
def test_other_files_have_no_parts(tmp_path, large, name):
    content = b'{"text": "one"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert Files(paths=(large, str(tmp_path / name))).parts() is None


def test_neither_have_rows_that_may_be_left_out_and_conversations(large):
    assert Files(paths=(large,), skip_nulls=True).parts() is None
    assert Files(paths=(large,), messages_field="messages").parts() is None


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b'{"text": oops}', r"a\.jsonl:31: not a line of JSON"),
        (b'{"other": "x"}', r"a\.jsonl:31: there is no field 'text'"),
        (b'{"text": null}', r"a\.jsonl:31: the field 'text' is null"),
        (b'{"text": "\xff"}', r"a\.jsonl is not UTF-8: byte 610, in line 31, is 0xff"),
    ],
)
def test_an_error_names_the_line_of_the_file_in_whatever_part_it_is(tmp_path, monkeypatch, broken, message):
    rows = [json.dumps({"text": f"text {i:02}"}).encode() for i in range(60)]
    rows[30] = broken
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    corpus = Files(paths=(str(tmp_path / "a.jsonl"),))
    with pytest.raises(ConfigurationError, match=message) as whole:
        list(corpus.documents())
    for size in (50, 333, 1100):
        monkeypatch.setattr(corpus_files, "PART_BYTES", size)
        with pytest.raises(ConfigurationError, match=message) as divided:
            documents_of(parts_of(corpus))
        assert str(divided.value) == str(whole.value)


def test_a_file_that_changes_before_its_part_is_read_is_refused_whatever_it_is_now(large):
    _, part, *_ = parts_of(Files(paths=(large,)))
    before = [one.text for one in part.documents()]
    for content in (Path(large).read_text().replace("text 3", "text 4"), "no JSON\n" * 100, ""):
        Path(large).write_text(content)
        os.utime(large, ns=(1, 1))
        with pytest.raises(ConfigurationError, match=r"large\.jsonl has changed while it was read; prepare the data"):
            list(part.documents())
    assert before


def test_another_link_to_a_file_and_other_rights_do_not_change_it(large, tmp_path):
    parts = parts_of(Files(paths=(large,)))
    (tmp_path / "link").hardlink_to(large)
    Path(large).chmod(0o600)
    assert [one.text for one in documents_of(parts)] == [f"text {i}" for i in range(20)]


def test_a_file_with_a_byte_order_mark_alone_is_empty(large, tmp_path):
    (tmp_path / "mark.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert len(documents_of(parts_of(Files(paths=(large, str(tmp_path / "mark.jsonl")))))) == 20
