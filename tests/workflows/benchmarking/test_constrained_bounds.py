"""Bounds under a constraint are of held-out texts that satisfy it, in one table per pattern."""

import re

import numpy as np
import pytest

from edlm.constraints.compilation import compile_constraint
from edlm.constraints.specification import Regex
from edlm.data.corpus import Files
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.storage import publish
from tests.bundles import CHARACTERS, make_bundle
from workflows.benchmark import ConstrainedBoundsBenchmark, constrained_bounds, main
from workflows.benchmarking.constrained_bounds import PATTERNS, matching_windows
from workflows.reporting.document import Table, Verbatim

MATCHING = (
    "they came back in march of that year and the of river was as high as the house ",
    "at last we saw the old men come singing and then they all went home laughing ",
    "it was in the end not at all so bad as we had all of us to fear ",
    "the end of the war and the fall of the old city were not what he had thought of ",
)


def test_windows_are_those_that_match_and_do_not_overlap():
    tokenizer = CHARACTERS.build([])
    text = "".join(MATCHING)
    automaton = compile_constraint(Regex(pattern="[a-z ]*the[a-z ]*"), tokenizer)
    first, rarity = matching_windows(np.array(tokenizer.encode(text)), automaton, length=12)
    matching = [i for i in range(len(text) - 11) if re.fullmatch("[a-z ]*the[a-z ]*", text[i : i + 12])]
    assert rarity == len(matching) / (len(text) - 11)
    assert set(first) <= set(matching)
    assert min(np.diff(first)) >= 12
    assert all(any(0 <= i - j < 12 for j in first) for i in matching)
    with pytest.raises(ValueError, match=r"none of the .* windows of 12 tokens satisfies"):
        matching_windows(np.array(tokenizer.encode("a" * 50)), automaton, length=12)


def test_data_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    bundle = make_bundle(tmp_path, length=64)
    arguments = ["constrained-bounds", "--model", str(bundle), "--data", str(tmp_path / "absent")]
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "absent is not committed" in capsys.readouterr().err


def test_every_sampler_is_measured_and_generates_what_matches(tmp_path):
    (tmp_path / "train.txt").write_text("nothing of it is read here " * 40)
    (tmp_path / "held-out.txt").write_text("".join(MATCHING) * 2)
    corpus, held_out = (Files(paths=(str(tmp_path / name),)) for name in ("train.txt", "held-out.txt"))
    shares = Shares(validation=0.0, judge=0.0)
    data = Data(corpus=corpus, validation=held_out, tokenizer=CHARACTERS, length=64, shares=shares)
    prepare(data, tmp_path / "data", progress=print)
    publish(tmp_path / "data", str(tmp_path / "data"))
    bundle = make_bundle(tmp_path, length=64)
    settings = ConstrainedBoundsBenchmark(
        model=str(bundle), data=str(tmp_path / "data"), steps=(2,), candidates=2, sequences=2, draws=1
    )
    blocks = constrained_bounds(settings).blocks
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [table.caption.split(":")[0] for table in tables] == list(PATTERNS)
    for table in tables:
        assert [row[1] for row in table.rows] == ["plain", "conditional", "step"]
        assert all(np.isfinite(float(row[3].split(" ")[0])) for row in table.rows)
    generated = [block.text for block in blocks if isinstance(block, Verbatim)][: len(PATTERNS)]
    for pattern, lines in zip(PATTERNS.values(), generated, strict=True):
        assert all(re.fullmatch(pattern.pattern, line.split(": ", 1)[1]) for line in lines.split("\n"))
