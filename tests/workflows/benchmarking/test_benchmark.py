"""Every contestant runs in every round, and the tables follow from the times."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from edlm.checkpoints.networks import save_autoregressive
from edlm.config import ConfigurationError, dump, load
from edlm.constraints.compilation import compile_constraint
from edlm.constraints.specification import Regex
from edlm.data.corpus import Files
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.tokenizer import FILE
from edlm.models.execution import Execution
from edlm.models.transformer import Block
from edlm.sampling.sampler import Sampler
from edlm.storage import publish
from tests.bundles import CHARACTERS, LENGTH, save_models
from tests.chats import write_chat_tokenizer
from tests.networks import TRANSFORMER, autoregressive
from workflows.benchmark import ConstraintsBenchmark, SampleBenchmark, constraints, main, sample
from workflows.benchmarking.constraints import measured_model
from workflows.benchmarking.interleaved_timing import Lap, RacedSampler, Times, race
from workflows.benchmarking.rejection import log_probability
from workflows.benchmarking.sampling import untrained
from workflows.benchmarking.trained import Trained
from workflows.evaluation.measurements.likelihood import Bound
from workflows.reporting.document import Table

SMALL = SampleBenchmark(
    vocabularies=(9,), lengths=(8,), steps=(4,), candidates=(1, 2), width=16, layers=1, head_width=16, rounds=2
)  # fmt: skip


def sampled(settings: SampleBenchmark) -> dict[str, dict[str, str]]:
    """Return the cells of the only table by sampler and column."""
    *_, document = sample(settings)
    (table,) = [block for block in document.blocks if isinstance(block, Table)]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_every_round_has_every_contestant_once_and_the_first_warms_up():
    ran: list[str] = []
    lines: list[str] = []
    contestants = [RacedSampler(name, [Lap(lambda name=name: ran.append(name))]) for name in "abc"]
    actual = race(contestants, 2, torch.device("cpu"), lines.append)
    assert ran == [*"abc", *"bca", *"cab"]
    assert [len(times.rounds) for times in actual.values()] == [2, 2, 2]
    assert [line.split(":")[0] for line in lines] == ["warm-up round", "round 1 of 2", "round 2 of 2"]
    assert f"; b {actual['b'].rounds[0]:.3g} s" in lines[1]


def test_a_lap_counts_as_often_as_it_declares():
    actual = race([RacedSampler("steps", [Lap(lambda: None, 0.0)])], 1, torch.device("cpu"), print)
    assert actual["steps"].median == 0.0


def test_ratios_are_of_the_same_round():
    assert Times([1.0, 2.0, 4.0]).times_of(Times([2.0, 6.0, 4.0])) == (2.0, 1.0, 3.0)


def test_samplers_with_constraints_race_those_without(tmp_path):
    tokenizer = str(write_chat_tokenizer(tmp_path / "tokenizer"))
    settings = ConstraintsBenchmark(
        tokenizer=tokenizer, length=40, steps=2, candidates=2, width=16, layers=1, rounds=1, letters=(1, 4, 16)
    )
    table, rejection = [block for block in constraints(settings).blocks if isinstance(block, Table)]
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(cells)[:4] == ["plain", "plain, whole texts", "date, k = 1", "date, k = 2"]
    assert len(cells) == 12
    assert cells["plain, whole texts"]["times plain, whole texts"] == "1.00 (1.00 to 1.00)"
    assert cells["date, k = 1"]["states"] == "12"  # before and after ten characters, and the dead state
    assert cells["plain"]["states"] == "–"
    draws = [float(row[4]) for row in rejection.rows]
    assert draws == sorted(draws), "the more letters, the rarer"
    assert [row[0] for row in rejection.rows] == ["1", "4", "16"]


def test_the_probability_of_a_constraint_is_the_share_of_plain_texts_that_satisfy_it(tmp_path):
    tokenizer = str(write_chat_tokenizer(tmp_path / "tokenizer"))
    settings = ConstraintsBenchmark(tokenizer=tokenizer, length=2, width=16, layers=1)
    networks, read = measured_model(settings)
    pattern = r"[ -z](?:.|\n)*"
    log_p = log_probability(networks.denoiser, compile_constraint(Regex(pattern), read), 2)
    count = 4000
    canvases = torch.full((count, 2), networks.denoiser.mask)
    tokens = Sampler(steps=1).sample(canvases, networks.denoiser, None, networks.schedule, torch.arange(count))
    automaton = compile_constraint(Regex(pattern), read)
    share = sum(automaton.accepts(row) for row in tokens.tolist()) / count
    assert 0.01 < share < 0.99
    p = math.exp(log_p)
    assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / count)


def test_a_constraint_that_is_not_in_the_race_is_refused_by_name():
    with pytest.raises(ValueError, match=r"constraints names .'nothing'.; there are 'date', "):
        ConstraintsBenchmark(constraints=("date", "nothing"))


def test_every_sampler_stands_in_the_table_of_its_size():
    cells = sampled(SMALL)
    assert list(cells) == [
        "autoregressive", "plain", "naive plain (1 of 4 steps timed)", "whole sequences, k = 2",
        "naive whole sequences, k = 2 (2 of 4 steps timed)", "step, blocks of 8, k = 2", "conditional, k = 2",
        "conditional, exact", "conditional, speculative",
    ]  # fmt: skip
    assert cells["naive plain (1 of 4 steps timed)"]["denoiser calls"] == "4.0"
    assert cells["naive whole sequences, k = 2 (2 of 4 steps timed)"]["energy calls"] == "2.0"  # t = 1 alone is within
    assert 1 <= float(cells["conditional, speculative"]["kept per call"]) <= 8
    assert cells["conditional, exact"]["kept per call"] == "–"
    assert cells["plain"]["times plain"].startswith("1.00 ")
    assert cells["autoregressive"]["times faster than naive"] == "–"
    assert "(" in cells["plain"]["times faster than naive"]


def test_the_document_grows_with_each_sampler():
    lengths = []
    for document in sample(replace(SMALL, lengths=(8, 16), candidates=(1,), rounds=1)):
        lengths.append([len(block.rows) for block in document.blocks if isinstance(block, Table)])
    assert lengths == [[1], [2], [3], [4], [5], [5, 1], [5, 2], [5, 3], [5, 4], [5, 5]]


def test_untrained_networks_have_the_heads_of_the_settings():
    networks = untrained(replace(SMALL, width=24, heads=3), 9, torch.device("cpu"))
    trunks = (networks.denoiser, networks.autoregressive, networks.energies["whole sequences"])
    assert {block.heads for trunk in trunks for block in trunk.modules() if isinstance(block, Block)} == {3}


def test_networks_that_compute_otherwise_race_beside_those_of_the_naive_samplers():
    cells = sampled(replace(SMALL, execution=Execution(precision="bfloat16")))
    others = {name.removesuffix(", bfloat16") for name in cells if name.endswith(", bfloat16")}
    assert others == {name for name in cells if "naive" not in name and "bfloat16" not in name}
    assert cells["plain, bfloat16"]["times plain"].startswith("1.00 ")
    for name in ("plain", "whole sequences, k = 2"):
        naive = [label for label in cells if label.startswith(f"naive {name} (")]
        assert len(naive) == 1
        assert "(" in cells[f"{name}, bfloat16"]["times faster than naive"]


def test_networks_that_this_machine_cannot_compile_are_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match=r"lacks a C\+\+ compiler.* or set compiled: false"):
        next(sample(replace(SMALL, execution=Execution(compiled=True))))


def test_of_trained_networks_it_is_reported_what_their_texts_are_worth(tmp_path):
    tokenizer = CHARACTERS.build([])
    denoiser, energies = save_models(tmp_path / "models")
    for name in ("autoregressive", "judge"):
        weights, file = autoregressive(tokenizer.size).state_dict(), tmp_path / "models" / FILE
        save_autoregressive(tmp_path / name, weights, TRANSFORMER, LENGTH, file, {})
    stories = (json.dumps({"text": f"story {i} of many"}) + "\n" for i in range(200))
    (tmp_path / "stories.jsonl").write_text("".join(stories))
    corpus, shares = Files(paths=(str(tmp_path / "stories.jsonl"),)), Shares(validation=0.5, judge=0.0)
    settings = Data(corpus=corpus, tokenizer=CHARACTERS, length=LENGTH, shares=shares)
    prepare(settings, tmp_path / "data", lambda _: None)
    folders = {"denoiser": denoiser, **{name: tmp_path / name for name in ("autoregressive", "judge", "data")}}
    for folder in (*folders.values(), *energies.values()):
        publish(folder, str(folder))
    uris = {name: str(folder) for name, folder in folders.items()}
    models = tmp_path / "models.yaml"
    models.write_text(dump(Trained(**uris, energies={n: str(p) for n, p in energies.items()}, sequences=4, texts=4)))
    expected = SampleBenchmark(models=str(models), steps=(2,), candidates=(1, 2), rounds=1)
    cells = sampled(expected)
    assert list(cells) == [
        "autoregressive", "plain", "naive plain (1 of 2 steps timed)", "step, k = 2", "conditional, k = 2",
        "conditional, exact", "conditional, speculative",
    ]  # fmt: skip
    subject = load(Trained, models).subject()
    (bound,) = Bound(subject=subject, energy="step", sampler=Sampler(steps=2, candidates=2)).find().rows["bounds"]
    assert cells["step, k = 2"]["bound, nats per token"].startswith(f"{bound['bound_nats_per_token']:.3f} ±")
    reported = {name: row["generative perplexity"] for name, row in cells.items()}
    assert {name for name, value in reported.items() if value == "–"} == {
        "naive plain (1 of 2 steps timed)", "conditional, speculative",
    }  # fmt: skip
    assert all(float(value) > 1 for value in reported.values() if value != "–")
    assert 0 < float(cells["autoregressive"]["entropy, nats"]) < 5


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        ([], 2, "python -m workflows.benchmark sample"),
        (["sample", "--rounds", "0"], 1, "rounds"),
        (["sample", "--models", "models.yaml", "--width", "64"], 1, "width: of untrained networks"),
    ],
)
def test_what_cannot_be_run_is_reported(arguments, status, output, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert output in capsys.readouterr().err
