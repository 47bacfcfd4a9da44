"""Every training step is raced with its plain one, and the table follows from the times."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from edlm.models.transformer import Block
from edlm.training.settings import Training
from workflows.benchmark import TrainBenchmark, main, train
from workflows.benchmarking.host_costs import HostCosts, host_costs
from workflows.benchmarking.interleaved_timing import Times
from workflows.benchmarking.training import StepTiming, TrainedSize
from workflows.benchmarking.training_document import training_blocks
from workflows.benchmarking.training_objectives import AUTOREGRESSIVE, CONDITIONAL, DENOISER, OBJECTIVES, STEP, WHOLE
from workflows.reporting.document import DocumentBlock, Paragraph, Table

SMALL = TrainBenchmark(
    vocabularies=(30,), lengths=(16,), tokens=64, width=16, layers=1, head_width=16, steps=1, rounds=1, workers=()
)  # fmt: skip


def cells_of(settings: TrainBenchmark) -> dict[str, dict[str, str]]:
    *_, document = train(settings)
    return cells_in(document.blocks)


def cells_in(blocks: Sequence[DocumentBlock]) -> dict[str, dict[str, str]]:
    (table,) = [block for block in blocks if isinstance(block, Table)]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_every_step_stands_in_the_table_beside_its_plain_one(monkeypatch):
    monkeypatch.setattr("workflows.benchmarking.training.computes_bfloat16", lambda _: False)
    monkeypatch.setattr("workflows.benchmarking.training.host_costs", lambda *_, **__: HostCosts(123, 0))
    cells = cells_of(SMALL)
    assert list(cells) == [
        DENOISER, f"{DENOISER}, plain", AUTOREGRESSIVE, f"{AUTOREGRESSIVE}, plain", WHOLE, f"{WHOLE}, plain", STEP,
        CONDITIONAL,
    ]  # fmt: skip
    for name in OBJECTIVES:
        assert (cells[name]["operations"], cells[name]["waits"]) == ("123", "0")
        assert float(cells[name]["share of a product"]) >= 0
        assert "MFU" not in cells[name]
    for name in (DENOISER, AUTOREGRESSIVE, WHOLE):
        assert "(" in cells[name]["times faster than plain"]
        assert float(cells[name]["memory of plain"]) > 0
    assert cells[STEP]["times faster than plain"] == "–"


def timing(name: str, rows: int, seconds: list[float], mfu: float | None = None, alone: str = "") -> StepTiming:
    return StepTiming(TrainedSize(30, 16), name, rows, Times(seconds), 0.5, mfu, 1, None, "", "float32", alone)


def test_a_step_in_bfloat16_is_compared_with_the_plain_one_in_float32_and_in_bfloat16():
    plain, plain_half = timing("plain", 4, [8.0]), replace(timing("plain, bfloat16", 4, [2.0]), precision="bfloat16")
    ours, half = (
        replace(timing(name, 4, [seconds]), plain="plain", precision=precision)
        for name, seconds, precision in (("ours", 4.0, "float32"), ("ours, bfloat16", 1.0, "bfloat16"))
    )
    cells = cells_in(training_blocks([ours, half, plain, plain_half], SMALL, emulated=False))
    assert cells["ours, bfloat16"]["times faster than plain"].startswith("8.00 ")
    assert cells["ours, bfloat16"]["times faster than plain, bfloat16"].startswith("2.00 ")
    assert cells["ours"]["times faster than plain"].startswith("2.00 ")
    assert {cells[name]["times faster than plain, bfloat16"] for name in ("ours", "plain", "plain, bfloat16")} == {"–"}
    assert (
        "times faster than plain, bfloat16" not in cells_in(training_blocks([half], SMALL, emulated=False))[half.name]
    )


def test_some_objectives_race_in_one_precision(monkeypatch):
    monkeypatch.setattr("workflows.benchmarking.training.computes_bfloat16", lambda _: True)
    cells = cells_of(replace(SMALL, objectives=(DENOISER, STEP), precisions=("bfloat16",), count_operations=False))
    assert list(cells) == [f"{name}, bfloat16" for name in (DENOISER, f"{DENOISER}, plain", STEP)]
    assert "(" in cells[f"{DENOISER}, bfloat16"]["times faster than plain, bfloat16"]


def test_an_objective_that_is_not_in_the_race_is_refused_by_name():
    with pytest.raises(ValueError, match=r"objectives names .'nothing'.; there are 'denoiser', "):
        replace(SMALL, objectives=("nothing",))


def test_the_transformers_have_the_heads_of_the_settings():
    sizes = replace(SMALL, width=24, heads=3)
    blocks = [
        block for name in OBJECTIVES for block in OBJECTIVES[name](sizes, 30).modules() if isinstance(block, Block)
    ]
    assert {(block.out.in_features, block.heads) for block in blocks} == {(24, 3), (16, 4)}


def test_blocks_are_executed_as_the_settings_say():
    training = replace(SMALL, compiled=True, activation_checkpointing=True).training
    assert (training.compiled, training.activation_checkpointing) == (True, True)
    assert (SMALL.training.compiled, SMALL.training.activation_checkpointing) == (False, False)


def test_what_was_measured_before_an_interruption_is_kept(tmp_path, monkeypatch):
    def interrupted(*_):
        yield timing("measured", 4, [1.0])
        raise KeyboardInterrupt

    monkeypatch.setattr("workflows.benchmark.measure_training", interrupted)
    monkeypatch.setattr("sys.argv", ["benchmark", "train", "--folder", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        main()
    assert "| measured |" in (tmp_path / "train.md").read_text(encoding="utf-8")


def test_two_workers_are_compared_with_one_by_tokens_per_second_in_the_same_round():
    one, two = timing("1 worker", 4, [1.0, 1.0, 1.0]), timing("2 workers", 8, [1.0, 1.25, 2.0], alone="1 worker")
    cells = cells_in(training_blocks([one, two], SMALL, emulated=False))
    assert cells["2 workers"]["times one worker"] == "1.60 (1.00 to 2.00)"
    assert cells["1 worker"]["times one worker"] == "–"
    assert cells_in(training_blocks([two], SMALL, emulated=False))["2 workers"]["times one worker"] == "–"


def test_on_a_known_gpu_the_share_of_its_peak_stands_beside_that_of_a_product():
    cells = cells_in(training_blocks([timing("ours", 4, [1.0], mfu=0.4)], SMALL, emulated=False))
    assert (cells["ours"]["share of a product"], cells["ours"]["MFU"]) == ("0.50", "0.40")


def test_a_step_of_the_loop_waits_for_no_device_and_a_plain_one_does():
    settings = Training(steps=1, batch=SMALL.rows(16))
    for name in (DENOISER, WHOLE):
        ours, plain = (host_costs(name, plain, SMALL, 30, 16, settings) for plain in (False, True))
        assert ours.waits == 0
        assert plain.waits == 1  # for its loss
        assert 0 < ours.dispatches < plain.dispatches


def test_what_a_processor_cannot_compute_is_reported(monkeypatch):
    monkeypatch.setattr("workflows.benchmark.measure_training", lambda *_: [timing("ours", 4, [1.0])])
    for native in (True, False):
        monkeypatch.setattr("workflows.benchmark.computes_bfloat16", lambda _, native=native: native)
        (document,) = train(SMALL)
        text = " ".join(block.text for block in document.blocks if isinstance(block, Paragraph))
        assert ("no instructions for bfloat16" in text) is not native


@pytest.mark.chaos  # two processes import DeepSpeed
def test_workers_train_beside_one_process(monkeypatch):
    monkeypatch.setattr("workflows.benchmarking.training.computes_bfloat16", lambda _: True)
    cells = cells_of(replace(SMALL, workers=(1, 2)))
    assert cells["denoiser, ZeRO-2, 2 workers"]["operations"] == "–"
    assert float(cells["denoiser, ZeRO-2, 1 worker"]["memory, MiB"]) > 0
    assert "(" in cells["denoiser, ZeRO-2, 2 workers"]["times one worker"]
    assert "(" in cells[f"{DENOISER}, bfloat16"]["times faster than plain"]
