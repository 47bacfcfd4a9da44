import math

import pytest

from workflows.evaluation.equal_entropy_rows import matched_rows


def row(energy: str, temperature: float, nll: float, entropy: float, steps: int = 8) -> dict:
    sampler = {"energy": energy, "steps": steps, "candidates": 1, "window_from": 0.0, "window_to": 1.0}
    sampler |= {
        "energy_temperature": 1.0,
        "published": False,
        "judge": "one",
        "seed": 0,
        "token_temperature": temperature,
    }
    numbers = {"nll_nats_per_token": nll, "nll_standard_error": 0.01, "entropy_nats": entropy}
    costs = {"denoiser_calls": 8.0, "energy_calls": 0.0, "seconds_per_text": 0.1, "seconds": 1.0}
    return sampler | numbers | costs | {"entropy_standard_error": 0.01, "precision": "float32", "sequences": 4}


DATA = row("data", 1.0, 1.5, 2.5, steps=1)


def test_each_sampler_is_compared_where_its_entropy_is_that_of_the_data():
    sweep = [row("plain", temperature, 2 * temperature, 1.5 + temperature) for temperature in (0.8, 1.2)]
    (actual,) = matched_rows([DATA, *sweep, row("step", 1.0, 9.0, 9.0)])
    assert actual["energy"] == "plain"
    assert actual["nll_nats_per_token"] == pytest.approx(2.0)
    assert (actual["token_temperature_from"], actual["token_temperature_to"]) == (0.8, 1.2)
    assert actual["nll_standard_error"] > 0.005


def test_an_entropy_that_is_not_reached_is_reported_and_not_extrapolated():
    (actual,) = matched_rows([DATA, *[row("plain", temperature, 2.0, 5.0 + temperature) for temperature in (0.8, 1.2)]])
    assert math.isnan(actual["nll_nats_per_token"])
    assert "outside the sweep" in actual["reason"]


def test_sweeps_of_different_samplers_are_not_mixed():
    quality = [DATA, *[row("plain", w, 2 * w, 1.5 + w, steps) for steps in (4, 8) for w in (0.8, 1.2)]]
    assert [actual["steps"] for actual in matched_rows(quality)] == [4, 8]
    assert matched_rows(quality[1:]) == []
