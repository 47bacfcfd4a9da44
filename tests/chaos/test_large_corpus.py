"""200 MB of text in one file are prepared within 300 MB of memory, beside the documents' starts."""

from pathlib import Path

import numpy as np
import pytest

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
    growth, seconds = memory_of_preparation(source, tmp_path, tokenizer, cut)
    print(f"{tokenizer}, cut: {cut}: {growth:.0f} MiB, {seconds:.0f} s")
    assert 10 < growth < 300_000_000 / 2**20
