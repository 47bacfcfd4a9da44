"""A preparation in a process of its own: `python -m tests.data.preparation FILE FOLDER TOKENIZER CUT`.

It prints the largest growth of its memory in MiB, less the 8 bytes per document that grow with the corpus, and the
seconds.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from edlm.data.corpus import Files
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.token_file import read_summary
from edlm.data.tokenizer_kinds import BPE, Bytes
from tests.memory import growth_mib
from tests.paths import PROJECT

TOKENIZERS = {"bytes": Bytes(), "bpe": BPE(size=8192)}


def memory_of_preparation(source: Path, folder: Path, tokenizer: str, cut: str) -> tuple[float, float]:
    """Prepare a file in a new process; return the growth of its memory in MiB, and the seconds."""
    command = [sys.executable, "-m", "tests.data.preparation", str(source), str(folder), tokenizer, cut]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    growth, seconds = map(float, done.stdout.split())
    return growth, seconds


def _prepare(source: str, folder: str, tokenizer: str, cut: Literal["file", "paragraph", "line"]) -> None:
    shares = Shares(validation=0.1, judge=0.1)
    data = Data(corpus=Files(paths=(source,), cut=cut), tokenizer=TOKENIZERS[tokenizer], length=64, shares=shares)
    started = time.monotonic()
    growth = growth_mib(lambda: prepare(data, Path(folder), lambda _: None))
    documents = sum(split.documents for split in read_summary(Path(folder)).splits.values())
    print(growth - 8 * documents / 2**20, time.monotonic() - started)


if __name__ == "__main__":
    _prepare(*sys.argv[1:])  # type: ignore[arg-type]
