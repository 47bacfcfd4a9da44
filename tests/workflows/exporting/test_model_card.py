"""The model card lists the measured bounds of the model's own experiment."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import edlm
from edlm.config import ConfigurationError
from edlm.storage import publish
from tests.bundles import make_bundle
from workflows.evaluate import SUMMARY
from workflows.exporting.model_card import measured_bounds, model_card
from workflows.row_names import PLAIN


def bound(energy: str, steps: int, nats: float) -> dict:
    return {
        "energy": energy, "steps": steps, "candidates": 4, "window_from": 0.0, "window_to": 1.0,
        "energy_temperature": 1.0, "published": False, "precision": "float32", "seed": 0, "by_sequence": [nats],
        "denoiser_calls": 2.0, "energy_calls": 0.0, "gain_nats_per_token": 0.0, "distribution": energy,
        "bound_nats_per_token": nats, "standard_error": 0.01,
    }  # fmt: skip


@pytest.fixture
def evaluation(tmp_path):
    """An evaluation of the experiment `mine`, with an energy that the model lacks."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    models = {"denoiser": "d", "energies/step": "s", "energies/other": "o"}
    (folder / SUMMARY).write_text(json.dumps({"experiment": "mine", "models": models}))
    rows = [bound(PLAIN, 2, 2.5), bound("step", 2, 2.25), bound("step", 4, 2.125), bound("other", 2, 9.0)]
    rows.append(bound("denoiser", 2, 8.0))  # an energy of this name, which the model lacks
    pq.write_table(pa.Table.from_pylist(rows), folder / "bounds.parquet")
    publish(folder, str(folder))
    return folder


def test_the_card_lists_the_bounds_of_its_energies(evaluation, tmp_path):
    rows = measured_bounds(str(evaluation), {"denoiser": "d", "energies/step": "s", "energies/later": "l"})
    card = model_card(edlm.load(make_bundle(tmp_path)).generator, "mit", rows)
    for cell in ("2.500 ± 0.010", "2.250 ± 0.010", "2.125 ± 0.010", "T = 4"):
        assert cell in card
    assert "9.000" not in card
    assert "No bounds were measured" not in card


def test_bounds_of_an_energy_called_denoiser_are_not_the_denoisers(evaluation):
    rows = measured_bounds(str(evaluation), {"denoiser": "d", "energies/step": "s"})
    assert {row["energy"] for row in rows} == {PLAIN, "step"}


def test_an_evaluation_that_does_not_record_its_weights_is_refused_with_the_remedy(evaluation):
    (evaluation / SUMMARY).write_text(json.dumps({"experiment": "mine"}))
    publish(evaluation, str(evaluation))
    with pytest.raises(ConfigurationError, match="does not record which weights it measured; run evaluate again"):
        measured_bounds(str(evaluation), {"denoiser": "d"})


@pytest.mark.parametrize("part", ["denoiser", "energies/step"])
def test_an_evaluation_of_other_models_is_refused_with_their_names(evaluation, part):
    models = {"denoiser": "d", "energies/step": "s", part: "another"}
    with pytest.raises(ConfigurationError, match=rf"other weights than this model's \({part}\), of experiment 'mine'"):
        measured_bounds(str(evaluation), models)


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path):
    (tmp_path / "tokens.bin").write_text("other")
    publish(tmp_path, str(tmp_path))
    with pytest.raises(ConfigurationError, match=rf"is no evaluation \({SUMMARY} is missing\)"):
        measured_bounds(str(tmp_path), {"denoiser": "d"})
