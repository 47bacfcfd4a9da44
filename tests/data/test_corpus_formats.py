import csv
import json
import random
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest

from edlm.config import ConfigurationError
from edlm.data import corpus_formats, text_lines
from edlm.data.corpus import Files

LONGEST = 100_000
SIZE = 8_000_000  # characters of the large inputs
BOUND = 5_000_000  # bytes in memory for any of them


def write_large(path, kind):
    """SIZE characters, in rows of 6,000 that differ."""
    texts = [f"{number:05} " + ("a story of a fox " * 58 + "\n") * 6 for number in range(SIZE // 6000)]
    with path.open("w", newline="") as file:
        match kind:
            case "lines":
                file.writelines(texts)
            case "one line":
                file.writelines(text.replace("\n", " ") for text in texts)
            case "no white space":
                file.write("a" * SIZE)
            case "jsonl":
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
            case "json":
                json.dump([{"text": text} for text in texts], file, indent=1)
            case "csv":
                csv.writer(file).writerows([("id", "text"), *enumerate(texts)])


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("a.txt", "lines", {}),
        ("a.txt", "lines", {"cut": "line"}),
        ("a.txt", "lines", {"cut": "paragraph"}),
        ("a.txt", "one line", {}),
        ("a.txt", "one line", {"cut": "line"}),
        ("a.txt", "one line", {"cut": "paragraph"}),
        ("a.txt", "no white space", {}),
        ("a.jsonl", "jsonl", {}),
        ("a.json", "json", {}),
        ("a.json", "jsonl", {}),
        ("a.csv", "csv", {}),
    ],
)
def test_a_large_file_is_read_in_little_memory(tmp_path, name, kind, settings):
    path = tmp_path / name
    write_large(path, kind)
    corpus = Files(paths=(str(path),), longest=LONGEST, **settings)
    next(corpus.documents())
    tracemalloc.start()
    try:
        total = longest = 0
        for document in corpus.documents():
            total, longest = total + len(document.text), max(longest, len(document.text))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert longest <= LONGEST
    assert total > 0.98 * SIZE
    assert peak < BOUND


@pytest.mark.parametrize("texts", [[f"{i:05}" * 2000 for i in range(2000)], ["a story " * 1000] * 2000])
def test_a_parquet_row_group_is_decoded_in_little_memory(tmp_path, texts):
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=len(set(texts)) == 1)
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        assert [d.text for d in Files(paths=(str(tmp_path / "a.parquet"),)).documents()] == texts
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < 12_000_000 < sum(map(len, texts))


def texts(path, **settings):
    return [document.text for document in Files(paths=(str(path),), **settings).documents()]


def refusal(path, content, **settings):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match=re.escape(str(path))) as refused:
        texts(path, **settings)
    return str(refused.value).removeprefix(str(path))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("block", [3, 100_000])
def test_an_array_of_json_is_read_object_by_object(tmp_path, monkeypatch, indent, block):
    monkeypatch.setattr(text_lines, "BLOCK", block)
    monkeypatch.setattr(corpus_formats, "BLOCK", block)
    rows = [{"text": 'a "quoted" [{one}], grün', "more": [1, {"a": None}]}, {"text": "two" * 99}, {"text": "🤗"}]
    (tmp_path / "a.json").write_text("\ufeff\n " + json.dumps(rows, indent=indent) + "\n \n")
    assert texts(tmp_path / "a.json") == [row["text"] for row in rows]
    assert [d.name for d in Files(paths=(str(tmp_path / "a.json"),)).documents()][-1] == f"{tmp_path}/a.json:3"


def test_an_empty_array_has_no_documents(tmp_path):
    (tmp_path / "a.json").write_text(" [ ] ")
    assert texts(tmp_path / "a.json") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "one"}, {"text": "two"', ":2: not an object of JSON"),
        ('[{"text": "one"},', ": the array of JSON has no end"),
        ('[{"text": "one"}', ": the array of JSON has no end"),
        (
            '[{"text": "one"} {"text": "two"}]',
            ":1: neither a comma nor a bracket follows this object of the array; put one there, or",
        ),
        ('[{"text": "one"}, "two"]', ":2: a JSON str, not an object"),
        ('[{"text": "one"}]\n[{"text": "two"}]', ": there is more after the array"),
        ('[{"text": "one"}, {text: "two"}]', ":2: not an object of JSON"),
        ('[{"text": "one"}, {"text": null}]', ":2: the field 'text' is null"),
    ],
)
def test_a_bad_array_of_json_is_refused_with_the_object(tmp_path, content, message):
    assert refusal(tmp_path / "a.json", content).startswith(message)


@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "1" * 5000])
def test_json_that_python_cannot_hold_is_refused_with_its_line(tmp_path, value):
    row = f'{{"text": "a", "more": {value}}}'
    assert refusal(tmp_path / "a.jsonl", '{"text": "a"}\n' + row).startswith(":2: not a line of JSON")
    refused = refusal(tmp_path / "a.json", f'[{{"text": "a"}}, {row}]')
    assert refused.startswith(":2: not an object of JSON")
    assert "mend" in refused


def test_a_row_of_json_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "MOST", 1000)
    monkeypatch.setattr(corpus_formats, "MOST", 1000)
    monkeypatch.setattr(corpus_formats, "BLOCK", 100)
    monkeypatch.setattr(text_lines, "BLOCK", 100)
    row = json.dumps({"text": "a" * 5000})
    assert refusal(tmp_path / "a.jsonl", row).startswith(":1: a line of more than 1,000 bytes")
    assert "or one of more than 1,000 bytes" in refusal(tmp_path / "a.json", f"[{row}]")
    assert refusal(tmp_path / "a.csv", "text\n" + "a" * 5000).startswith(":2: a line of more than 1,000 bytes")
    lines = 'text\n"' + "a\n" * 1000 + '"\n'
    assert re.match(r":\d+: a row of more than 1,000 bytes; .* check its quotes", refusal(tmp_path / "a.csv", lines))
    short = "text\n" + "a\n" * 1000
    (tmp_path / "a.csv").write_text(short)
    assert texts(tmp_path / "a.csv") == ["a"] * 1000


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_bound_counts_bytes(tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_lines, "MOST", 1000)
    monkeypatch.setattr(corpus_formats, "MOST", 1000)
    monkeypatch.setattr(corpus_formats, "BLOCK", 100)
    monkeypatch.setattr(text_lines, "BLOCK", 100)
    for letter, allowed in (("a", 900), ("\U0001f600", 225)):
        for count in (allowed, 2 * allowed):
            text = letter * count
            row = json.dumps({"text": text}, ensure_ascii=False)
            content = {"a.jsonl": row, "a.json": f"[{row}]", "a.csv": f"text\n{text}"}[name]
            (tmp_path / name).write_text(content, encoding="utf-8")
            if count == allowed:
                assert texts(tmp_path / name) == [text]
            else:
                with pytest.raises(ConfigurationError, match="more than 1,000 bytes"):
                    texts(tmp_path / name)


def test_a_csv_file_may_quote_commas_quotes_and_lines(tmp_path):
    long = "a long story, " * 15_000  # more than the csv module takes by default
    (tmp_path / "a.csv").write_bytes(f'\ufefftext,id\r\n"one, ""two""\r\nthree",1\r\n"{long}",2\r\n,3\r\n'.encode())
    assert texts(tmp_path / "a.csv") == ['one, "two"\nthree', long]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,one\n2,two, three\n", ":3: 3 fields, but the header has 2; quote fields that hold ','"),
        ("id,text\n1\n", ":2: 1 fields, but the header has 2"),
        ("id,body\n1,one\n", ":2: there is no field 'text'; set corpus.text_field to one of: id, body"),
        ('text\n"one" two\n', ":2: not a row of CSV"),
        ('text\none\n"two\nthree\n', ":4: not a row of CSV"),
    ],
)
def test_a_bad_row_of_csv_is_refused_with_its_line(tmp_path, content, message):
    assert refusal(tmp_path / "a.csv", content).startswith(message)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_rows_without_text_are_refused_or_left_out_and_counted(tmp_path, caplog, name):
    rows = [{"text": text} for text in ("one", None, "two", None)]
    path = tmp_path / name
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ConfigurationError, match=rf"{name}:2: the field 'text' is null; set corpus\.skip_nulls: true"):
        texts(path)
    assert texts(path, skip_nulls=True) == ["one", "two"]
    assert f"left out 2 rows whose field 'text' is null; the last was {path}:4" in caplog.text


def test_a_damaged_page_of_parquet_is_refused_with_the_rows_before_it(tmp_path):
    path = tmp_path / "a.parquet"
    content = [random.Random(row).randbytes(50_000).hex() for row in range(100)]
    pyarrow.parquet.write_table(pa.table({"text": content}), path, use_dictionary=False, row_group_size=50)
    data = bytearray(path.read_bytes())
    at = pyarrow.parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    actual = []
    with pytest.raises(ConfigurationError, match=r"a\.parquet is damaged after row 50 "):
        actual.extend(document.text for document in Files(paths=(str(path),)).documents())
    assert actual == content[:50]


def test_a_page_that_is_too_large_is_refused_and_written_as_advised_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_formats, "PARQUET_PAGE_BYTES", 3 << 20)
    path = tmp_path / "a.parquet"
    content = [random.Random(row).randbytes(10_000).hex() for row in range(200)]
    table = pa.table({"text": content})
    pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="none", row_group_size=160)
    with pytest.raises(ConfigurationError) as refused:
        texts(path)
    for part in (f"{path}, row group 1, column 'text'", "160 rows", "takes 6 MiB", "at most 3 MiB"):
        assert part in str(refused.value)
    advice = str(refused.value).split(": ")[-1]
    eval(advice, {"pyarrow": pa, "table": table, "path": path})
    assert texts(path) == content


def test_a_page_of_one_text_has_a_bound_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_formats, "PARQUET_PAGE_BYTES", 100_000)
    monkeypatch.setattr(corpus_formats, "PARQUET_TEXT_BYTES", 3_000_000)
    content = [letter * 1_000_000 for letter in "ab"]
    pyarrow.parquet.write_table(
        pa.table({"text": content}), tmp_path / "a.parquet", use_dictionary=False, write_batch_size=1, data_page_size=1
    )
    assert texts(tmp_path / "a.parquet", longest=2_000_000) == content
    monkeypatch.setattr(corpus_formats, "PARQUET_TEXT_BYTES", 100_000)
    with pytest.raises(ConfigurationError, match=r"column 'text': a text takes .* Cut it into several rows"):
        texts(tmp_path / "a.parquet")


def test_a_damaged_page_header_of_parquet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_formats, "PARQUET_TEXT_BYTES", 100_000)
    path = tmp_path / "a.parquet"
    content = [random.Random(row).randbytes(50_000).hex() for row in range(10)]
    pyarrow.parquet.write_table(pa.table({"text": content}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"a\.parquet is damaged after row 0 "):
        texts(path)


def test_parquet_that_is_not_utf8_is_refused_with_its_row(tmp_path):
    latin1 = pa.array([b"one", "schön".encode("latin1")]).cast(pa.binary())
    strings = pa.StringArray.from_buffers(2, *latin1.buffers()[1:])
    pyarrow.parquet.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match=r"a\.parquet:2: the field 'text' is not UTF-8"):
        texts(tmp_path / "a.parquet")
