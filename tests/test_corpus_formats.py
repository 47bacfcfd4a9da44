import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest

from edlm.corpus import Files

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
