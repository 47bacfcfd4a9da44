"""The benchmark of preparation: a corpus of the asked size, and a table of preparations with the same files."""

import json

import pytest

from edlm.config import ConfigurationError, plain
from edlm.data.corpus import Files
from edlm.data.preparation import Data
from edlm.data.splits import Shares
from edlm.data.tokenizer_kinds import Bytes
from workflows.benchmarking.preparation import (
    APART,
    ONE,
    TASKS,
    PreparationRun,
    PreparationSpeed,
    divided,
    preparation_blocks,
    prepare_here,
    write_corpus,
)
from workflows.reporting.document import Table

SETTINGS = PreparationSpeed(texts=("a.txt",), tasks=2)
TWO = TASKS.format(2)


def run(seconds: float, digest: str | None = "same") -> PreparationRun:
    return PreparationRun(seconds, 1.1 * seconds, 2**20, digest)


def test_texts_are_repeated_up_to_the_size(tmp_path):
    (tmp_path / "a.txt").write_text("some words, é\n" * 100)
    settings = PreparationSpeed(texts=(str(tmp_path / "a.txt"),), megabytes=0.01)
    size = write_corpus(tmp_path / "corpus.jsonl", settings)
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert size == sum(len(text.encode()) for text in texts) / 1e6
    assert 0.01 <= size < 0.0116
    with pytest.raises(ConfigurationError, match="texts: missing"):
        write_corpus(tmp_path / "corpus.jsonl", PreparationSpeed())


def test_parts_are_the_lines_of_the_corpus_in_about_equal_shares(tmp_path):
    lines = [f"line {i} {'x' * (i % 50)}\n" for i in range(1000)]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    files = divided(tmp_path / "corpus.jsonl", 3)
    assert "".join(file.read_text() for file in files) == "".join(lines)
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) - min(sizes) < 200


def test_ratios_are_of_the_same_round_and_speed_is_per_core():
    runs = {ONE: [run(40.0), run(60.0)], TWO: [run(20.0), run(40.0)]}
    (table,) = [block for block in preparation_blocks(200.0, runs, SETTINGS) if isinstance(block, Table)]
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert cells[ONE]["MB/s"] == cells[ONE]["MB/s per core"] == "4.00"
    assert cells[TWO]["MB/s per core"] == "3.33"
    assert cells[TWO]["times as fast"] == "1.75 (1.50 to 2.00)"


def test_parts_have_other_files_and_are_compared_by_their_seconds():
    runs = {ONE: [run(40.0)], TWO: [run(25.0)], APART.format(2): [run(20.0, None)]}
    (table,) = [block for block in preparation_blocks(200.0, runs, SETTINGS) if isinstance(block, Table)]
    assert table.rows[2][4] == "2.00 (2.00 to 2.00)"


def test_files_that_differ_are_no_result():
    with pytest.raises(AssertionError, match="differ"):
        preparation_blocks(200.0, {ONE: [run(40.0)], TWO: [run(20.0, "other")]}, SETTINGS)


def test_a_preparation_in_this_process_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # restored after the test
    (tmp_path / "a.txt").write_text("".join(f"line {i} of a text\n" for i in range(200)))
    corpus = Files(paths=(str(tmp_path / "a.txt"),), cut="line")
    data = Data(corpus=corpus, tokenizer=Bytes(), length=16, shares=Shares(validation=0.1))
    first, second = (prepare_here(plain(data), str(tmp_path / name), tasks=0) for name in "ab")
    assert first.digest == second.digest
    assert first.seconds > 0
