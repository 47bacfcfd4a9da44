import gzip
import json
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from edlm.config import ConfigurationError, parse
from edlm.data.corpus import Files, HuggingFace


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


def test_an_error_of_the_program_is_no_error_of_the_network(monkeypatch, lines):
    def mistaken(*_):
        raise TypeError("a mistake in the program")

    monkeypatch.setattr(Files, "_expanded", mistaken)
    with pytest.raises(TypeError, match="a mistake in the program"):
        texts(files(lines))


@pytest.mark.parametrize("name", ["a b.txt", "größe.txt", "日本.txt"])
def test_names_with_spaces_and_other_letters_are_read(name, tmp_path):
    (tmp_path / name).write_text("one")
    assert texts(files(tmp_path / name)) == texts(files(tmp_path / "*.txt")) == texts(files(tmp_path)) == ["one"]


def test_links_and_the_home_folder_are_followed(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    assert texts(files(tmp_path / "link.txt")) == ["one"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts(files("~/a.txt")) == ["one"]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "one"}\n')
    assert texts(files(tmp_path / "a.jsonl")) == ["one"]


def test_gzip_with_zeros_behind_its_end_is_read(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one") + bytes(512))
    assert texts(files(tmp_path / "a.txt.gz")) == ["one"]


def test_parquet_without_rows_holds_no_documents(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert texts(files(tmp_path / "a.parquet")) == []


def test_text_that_is_not_utf8_is_refused_with_file_line_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes("grün\n".encode() + "schön".encode("latin1"))
    with pytest.raises(ConfigurationError, match=r"a\.txt is not UTF-8: byte 9, in line 2, is 0xf6"):
        texts(files(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b"', r"a\.jsonl:2: not a line of JSON"),
        (
            '["b"]',
            r"a\.jsonl:2: a JSON list, not an object with a field of text; .*in corpus\.text_field",
        ),
        ('{"body": "b"}', r"a\.jsonl:2: there is no field 'text'; set corpus\.text_field to one of: body"),
        ('{"text": 3}', r"a\.jsonl:2: the field 'text' is of type int, not text; set corpus\.text_field"),
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


def test_a_corpus_of_files_has_another_version_when_a_file_changes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one text")
    corpus = Files(paths=(str(path),))
    before = corpus.version()
    assert corpus.version() == before
    path.write_text("another text")
    assert corpus.version() != before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one"),
        ("a.TXT", "one"),
        ("a.md", "one"),
        ("a.text", "one"),
        ("a.jsonl", '{"text": "one"}\n'),
        ("a.ndjson", '{"text": "one"}\n'),
        ("a.NDJSON", '{"text": "one"}\n'),
        ("a.json", '[{"text": "one"}]'),
        ("a.json", '{"text": "one"}\n'),
        ("a.csv", "id,text\n1,one\n"),
        ("a.tsv", "id\ttext\n1\tone\n"),
    ],
)
def test_the_ending_of_a_name_shows_the_format(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert texts(files(tmp_path / name)) == ["one"]


def test_a_folder_stands_for_the_files_below_it_that_are_of_a_known_format(tmp_path):
    for name in ("b/a.jsonl", "a.jsonl", ".hidden.jsonl", ".cache/a.jsonl", "picture.png", "c.ndjson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    expected = ["a.jsonl", "b/a.jsonl", "c.ndjson"]
    assert texts(files(tmp_path)) == texts(files(f"{tmp_path}/")) == texts(files(f"file://{tmp_path}")) == expected


def test_a_folder_of_a_given_format_stands_for_all_its_files(tmp_path):
    for name in ("b", "a", ".DS_Store"):
        (tmp_path / name).write_text(name)
    assert texts(files(tmp_path, format="txt")) == ["a", "b"]


def test_a_folder_of_several_formats_is_refused_with_a_glob_that_works(tmp_path):
    for name in ("a.jsonl", "b/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "README.md").write_text("About it")
    message = r"files of several formats: jsonl \(2, such as .*\), txt \(1"
    with pytest.raises(ConfigurationError, match=message) as refused:
        texts(files(tmp_path))
    assert texts(files(str(refused.value).rpartition("for example: ")[2])) == ["a.jsonl", "b/b.jsonl"]


def test_a_folder_without_texts_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("a")
    with pytest.raises(ConfigurationError, match=r"the folder '.*' holds no file that ends with \.txt, "):
        texts(files(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"the folder '.*empty' holds no file"):
        texts(files(tmp_path / "empty", format="txt"))


def test_a_glob_leaves_hidden_files_out_unless_it_asks_for_them(tmp_path):
    for name in (".DS_Store", "a.txt", ".b.txt"):
        (tmp_path / name).write_text(name)
    assert texts(files(tmp_path / "*", format="txt")) == ["a.txt"]
    assert texts(files(tmp_path / "**", format="txt")) == ["a.txt"]
    assert texts(files(tmp_path / ".*.txt")) == [".b.txt"]


def test_what_is_hidden_above_a_glob_or_a_folder_does_not_matter(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.txt").write_text("one")
    assert texts(files(tmp_path / ".cache" / "*.txt")) == texts(files(tmp_path / ".cache")) == ["one"]


def test_a_file_may_have_the_characters_of_a_glob_in_its_name(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert texts(files(tmp_path / "a[1].txt")) == ["one"]


def test_a_folder_of_save_to_disk_is_refused_with_a_corpus_that_works(tmp_path):
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ConfigurationError, match="is a folder of `save_to_disk`") as refused:
        texts(files(tmp_path / "saved"))
    corpus = yaml.safe_load("{" + str(refused.value).rpartition("read it with ")[2] + "}")["corpus"]
    assert texts(parse(HuggingFace, corpus)) == ["one"]


def test_an_archive_is_refused_and_a_zip_file_is_read_as_the_advice_recommends(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"a\.tar\.gz is an archive; unpack it"):
        texts(files(tmp_path / "a.tar.gz"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "one")
        archive.writestr("b.txt", "two")
    with pytest.raises(ConfigurationError, match=r"a\.zip is an archive") as refused:
        texts(files(tmp_path / "a.zip"))
    assert texts(files(str(refused.value).rpartition("for .zip: ")[2])) == ["one", "two"]


def test_the_version_of_a_folder_changes_with_its_files(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    corpus = files(tmp_path)
    before = corpus.version()
    (tmp_path / ".DS_Store").write_text("not a text")
    assert corpus.version() == before
    (tmp_path / "b.txt").write_text("two")
    assert corpus.version() != before


def test_a_document_is_bounded_unless_asked_otherwise(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 400_000)
    assert [len(text) for text in texts(files(tmp_path / "a.txt"))] == [250_000, 150_000]
    assert [d.name for d in files(tmp_path / "a.txt").documents()] == [f"{tmp_path}/a.txt[{n}]" for n in (0, 250_000)]
    assert len(texts(files(tmp_path / "a.txt", longest=500_000))) == 1
