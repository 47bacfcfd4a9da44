import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from edlm.config import ConfigurationError, parse
from edlm.corpus import Embedded, Files, HuggingFace


def texts(corpus):
    return [document.text for document in corpus.documents()]


def files(*paths, **settings):
    return Files(paths=tuple(str(path) for path in paths), **settings)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "some.jsonl"
    rows = [{"text": "one", "body": "eins"}, {"text": "two", "body": "zwei"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "some.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["one", "two"], "number": [1, 2]}), path)
    return path


def test_python_ships_a_corpus_of_english():
    documents = list(Embedded().documents())
    assert documents == list(Embedded().documents())
    assert len(documents) > 50
    assert sum(len(document.text) for document in documents) > 300_000
    assert [document.name for document in documents] == sorted(document.name for document in documents)


def test_every_format_gives_the_same_documents_plain_or_packed(tmp_path, lines, table):
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "two.txt").write_text("two")
    for path in (lines, tmp_path / "one.txt", tmp_path / "two.txt", table):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert texts(files(lines)) == ["one", "two"]
    assert texts(files(table)) == ["one", "two"]
    assert texts(files(tmp_path / "one.txt", tmp_path / "two.txt")) == ["one", "two"]
    assert texts(files(tmp_path / "some.jsonl.gz")) == ["one", "two"]
    assert texts(files(tmp_path / "some.parquet.gz")) == ["one", "two"]
    assert texts(files(tmp_path / "one.txt.gz", tmp_path / "two.txt.gz")) == ["one", "two"]


def test_files_come_in_the_order_given_and_a_glob_in_the_order_of_names(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert texts(files(tmp_path / "c.txt", tmp_path / "[ab].txt")) == ["c", "a", "b"]
    assert texts(files(f"file://{tmp_path}/*.txt")) == ["a", "b", "c"]


def test_files_are_read_from_any_file_system():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/corpus-test/a.txt", b"from memory")
    try:
        assert texts(files("memory://corpus-test/*.txt")) == ["from memory"]
    finally:
        memory.rm("/corpus-test", recursive=True)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("file", ["a 1\na 2\n\n \nb 1\n\n"]),
        ("paragraph", ["a 1\na 2\n", "b 1\n"]),
        ("line", ["a 1\n", "a 2\n", "b 1\n"]),
    ],
)
def test_a_text_file_is_cut_into_documents(tmp_path, cut, expected):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa 1\r\na 2\n\n \nb 1\n\n")  # with a byte order mark
    assert texts(files(tmp_path / "a.txt", cut=cut)) == expected


def test_a_document_is_named_by_file_and_line(tmp_path, lines):
    (tmp_path / "a.txt").write_text("\na\na\n\nb")
    assert [d.name for d in files(lines).documents()] == [f"{lines}:1", f"{lines}:2"]
    names = [d.name for d in files(tmp_path / "a.txt", cut="paragraph").documents()]
    assert names == [f"{tmp_path}/a.txt:2", f"{tmp_path}/a.txt:5"]


def test_a_long_document_is_cut_into_pieces_that_lose_nothing(tmp_path):
    (tmp_path / "text8").write_text("abcdefgh")
    assert texts(files(tmp_path / "text8", format="txt", longest=3)) == ["abc", "def", "gh"]


def test_blank_documents_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " \\n"}\n\n{"text": "a"}\n{"text": ""}\n')
    assert texts(files(tmp_path / "a.jsonl")) == ["a"]


def test_another_field_can_hold_the_text(lines):
    assert texts(files(lines, text_field="body")) == ["eins", "zwei"]


def test_a_missing_file_is_named_before_anything_is_read(tmp_path, lines):
    with pytest.raises(ConfigurationError, match=r"corpus\.paths: there is no file '.*gone\.txt'"):
        next(files(lines, tmp_path / "gone.txt").documents())
    with pytest.raises(ConfigurationError, match=r"the glob '.*\*\.md' matches no file"):
        next(files(lines, tmp_path / "*.md").documents())
    with pytest.raises(ConfigurationError, match=r"cannot reach 'nowhere://a\.txt'"):
        next(files("nowhere://a.txt").documents())


def test_text_that_is_not_utf8_is_refused_with_file_line_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes("grün\n".encode() + "schön".encode("latin1"))
    with pytest.raises(ConfigurationError, match=r"a\.txt is not UTF-8: byte 9, in line 2, is 0xf6"):
        texts(files(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b"', r"a\.jsonl:2: not a line of JSON"),
        ('["b"]', r"a\.jsonl:2: a JSON list, not an object with a field of text"),
        ('{"body": "b"}', r"a\.jsonl:2: there is no field 'text'; set corpus\.text_field to one of: body"),
        ('{"text": 3}', r"a\.jsonl:2: the field 'text' is of type int, not text"),
        ('{"text": null}', r"a\.jsonl:2: the field 'text' is null; set corpus\.skip_nulls: true"),
        (r'{"text": "\ud800"}', r"a\.jsonl:2: the field 'text' is not Unicode text"),
    ],
)
def test_a_bad_line_of_json_is_refused_with_its_number(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(ConfigurationError, match=message):
        texts(files(tmp_path / "a.jsonl"))


def test_a_bad_parquet_file_is_refused(tmp_path, table):
    with pytest.raises(ConfigurationError, match=r"there is no field 'body'; set .* to one of: text, number"):
        texts(files(table, text_field="body"))
    with pytest.raises(ConfigurationError, match="the field 'number' is of type int, not text"):
        texts(files(table, text_field="number"))
    pyarrow.parquet.write_table(pa.table({"text": ["one", None]}), tmp_path / "holed.parquet")
    with pytest.raises(
        ConfigurationError, match=r"holed\.parquet:2: the field 'text' is null; set corpus\.skip_nulls: true"
    ):
        texts(files(tmp_path / "holed.parquet"))
    (tmp_path / "broken.parquet").write_bytes(table.read_bytes()[:-9])
    with pytest.raises(ConfigurationError, match=r"broken\.parquet is no parquet file, or is damaged"):
        texts(files(tmp_path / "broken.parquet"))


def test_a_truncated_gzip_file_is_refused(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some text" * 100)[:-12])
    with pytest.raises(ConfigurationError, match=r"a\.txt\.gz is no gzip file, or is truncated"):
        texts(files(tmp_path / "a.txt.gz"))
    (tmp_path / "b.txt.gz").write_bytes(b"plain text")
    with pytest.raises(ConfigurationError, match=r"b\.txt\.gz is no gzip file, or is truncated"):
        texts(files(tmp_path / "b.txt.gz"))


def test_an_ending_that_names_no_format_is_refused(tmp_path):
    (tmp_path / "a.pdf").write_text("a")
    with pytest.raises(ConfigurationError, match=r"format of .*a\.pdf by its ending; known are \.txt"):
        texts(files(tmp_path / "a.pdf"))


def test_no_paths_are_refused_at_the_door():
    with pytest.raises(ConfigurationError, match="paths"):
        parse(Files, {"paths": []})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hugging_face_data_set_is_read_whole_or_streamed(tmp_path, monkeypatch, lines, streaming):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    corpus = HuggingFace(name="json", data_files=(str(lines),), streaming=streaming)
    assert texts(corpus) == ["one", "two"]
    with pytest.raises(ConfigurationError, match=r"there is no field 'story'; set .* to one of: text, body"):
        texts(HuggingFace(name="json", data_files=(str(lines),), text_field="story", streaming=streaming))


def test_a_hugging_face_data_set_that_cannot_be_had_is_refused(tmp_path, lines):
    with pytest.raises(ConfigurationError, match=r"corpus\.name '.*nowhere' \(config None, split 'train'\)"):
        texts(HuggingFace(name=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigurationError, match=r"split 'exam'"):
        texts(HuggingFace(name="json", data_files=(str(lines),), split="exam", streaming=True))


def test_a_corpus_of_files_has_another_version_when_a_file_changes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one text")
    corpus = Files(paths=(str(path),))
    before = corpus.version()
    assert corpus.version() == before
    path.write_text("another text")
    assert corpus.version() != before
