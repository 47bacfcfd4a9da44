"""Large files, rows and pages are prepared within 300 MB of memory, beside the documents' starts."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from edlm.data.corpus_formats import PARQUET_PAGE_BYTES
from edlm.data.text_lines import MOST
from tests.data.preparation import memory_of_preparation

pytestmark = pytest.mark.chaos
BYTES, WORDS = 200_000_000, 300_000
ALPHABETS = ["abcdefghijklmnopqrstuvwxyz"] * 9 + ["абвгдежзиклмнопрстуф"]  # letters of one byte, and of two


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of about 60 words, drawn from a distribution with a long tail."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list(ALPHABETS[n % 10]), 2 + n % 9)) + ".\n" * (n % 41 == 40) for n in range(WORDS)]
    path, size = tmp_path_factory.mktemp("large") / "large.txt", 0
    with path.open("wb") as file:
        while size < BYTES:
            indices = (WORDS ** draw.random(1_000_000)).astype(int).tolist()
            size += file.write(" ".join(words[index - 1] for index in indices).encode())
    return path


@pytest.mark.parametrize(("tokenizer", "cut"), [("bytes", "line"), ("bytes", "file"), ("bpe", "file")])
def test_200_mb_in_one_file_are_prepared_in_300_mb(source, tmp_path, tokenizer, cut):
    require_bounded(source, tmp_path, tokenizer, cut)


def test_rows_of_the_largest_size_are_prepared_in_300_mb(tmp_path):
    """Letters of four bytes each, which Python keeps in four bytes, too, and JSON escapes in twelve."""
    path = tmp_path / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for letter in "\U0001f600\U0001f601\U0001f602":
            file.write(json.dumps({"text": letter * (MOST // 12 - 2)}) + "\n")
    require_bounded(path, tmp_path / "prepared", "bytes", "file")


def test_a_page_of_the_largest_size_is_prepared_in_300_mb(tmp_path):
    texts = pa.array([f"{n:0999} " for n in range(PARQUET_PAGE_BYTES // 1010)])
    path = tmp_path / "page.parquet"
    pyarrow.parquet.write_table(
        pa.table({"text": texts}), path, use_dictionary=False, compression="none", data_page_size=1 << 30,
        write_batch_size=len(texts),
    )  # fmt: skip
    require_bounded(path, tmp_path / "prepared", "bytes", "file")


def require_bounded(source: Path, folder: Path, tokenizer: str, cut: str) -> None:
    growth, seconds = memory_of_preparation(source, folder, tokenizer, cut)
    print(f"{source.name}, {tokenizer}, cut: {cut}: {growth:.0f} MiB, {seconds:.0f} s")
    assert 10 < growth < 300_000_000 / 2**20
