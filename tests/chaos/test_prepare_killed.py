"""A preparation by Ray tasks that is killed again and again ends with the bytes of one process that was not."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from edlm.config import parse
from edlm.data.preparation import Data, prepare
from edlm.storage import MARKER
from tests.chaos.test_interrupted import wait_for_orphans_of
from tests.paths import SMALLEST
from tests.workflows.commands import command, run

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.timeout(1800)]

LINES, WORDS = 400_000, 20_000  # about 40 MB, of which the command encodes four shards and its tasks six
KILLED_AT = (1, 3, 5, 7, 9)  # committed shards


def test_killed_five_times_it_ends_with_the_bytes_of_one_process_and_keeps_no_shard(tmp_path):
    draw = np.random.default_rng(0)
    words = np.array([f"word{number:x}" for number in range(WORDS)])
    with (tmp_path / "text.jsonl").open("w") as file:
        for _ in range(LINES):
            file.write(f'{{"text": "{" ".join(words[(WORDS ** draw.random(12)).astype(int) - 1])}"}}\n')
    tree = yaml.safe_load(SMALLEST.read_text())
    tree["data"] |= {
        "corpus": {"kind": "files", "paths": [str(tmp_path / "text.jsonl")]},
        "tokenizer": {"kind": "bpe", "size": 2000},
    }
    experiment, home = tmp_path / "experiment.yaml", tmp_path / "home"
    experiment.write_text(yaml.safe_dump(tree))
    prepare(parse(Data, tree["data"]), tmp_path / "expected", lambda _: None)
    for count in KILLED_AT:
        arguments, settings = command(home, "prepare", experiment=experiment)
        with subprocess.Popen(arguments, **settings) as victim:
            while len(shards(home)) < count:
                assert victim.poll() is None, victim.stdout.read()
                time.sleep(0.02)
            os.killpg(victim.pid, signal.SIGKILL)
        wait_for_orphans_of(home)
    output = run(home, "prepare", experiment=experiment)
    assert re.search(r"[\d,]+ characters were tokenised already", output)
    folder = re.search(r"\[prepare\] finished in .*?: (\S+)", output)
    assert folder is not None
    actual = {path.name: path.read_bytes() for path in Path(folder[1]).iterdir() if path.name != MARKER}
    assert actual == {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}
    assert shards(home) == []


def shards(home: Path) -> list[Path]:
    return list(home.rglob("*.shard"))
