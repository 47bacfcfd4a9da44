"""What the report says follows from the rows, exactly; what they do not allow is refused."""

import math

import pytest

from tests import measurements
from workflows.reporting.comparison import (
    Comparison,
    NotComparable,
    Verdict,
    against_uniform,
    equal_plain_steps,
    same_cost,
    same_steps,
)
from workflows.reporting.findings import (
    LIKELIHOOD,
    TEXTS,
    energy_findings,
    level_findings,
    published_findings,
    short_findings,
    standings,
)
from workflows.reporting.quantities import BOUND, CALLS, JUDGED, TEXT_SECONDS
from workflows.reporting.sampler_labels import series, words
from workflows.reporting.tabulation import bound_table, comparison_table, gain_table, level_table, outcome_cell
from workflows.reporting.text_tabulation import quality_table


def bound(energy: str, steps: int, value: float, gain: float = 0.0, error: float = 0.01, **changes):
    """A row of `bounds`; plain diffusion makes one call a step, an energy nine."""
    k = 1 if energy == "plain" else 8
    row = {
        "energy": energy, "steps": steps, "candidates": k, "window_from": 0.0, "window_to": 1.0, "repeats": 1,
        "energy_temperature": 1.0, "bound_nats_per_token": value, "standard_error": 0.03, "gain_nats_per_token": gain,
        "gain_standard_error": error, "denoiser_calls": float(steps), "energy_calls": 0.0 if k == 1 else 8.0 * steps,
        "seed": 0, "precision": "float32", "published": False, "seconds": 2.0 * steps, "seconds_per_text": 0.2 * steps,
        "sequences": 10,
    }  # fmt: skip
    return row | changes


PLAIN = [bound("plain", steps, value) for steps, value in ((1, 3.0), (4, 2.4), (16, 2.1))]


def judged(energy: str, steps: int, nll: float, entropy: float = 2.8, **changes):
    row = {**bound(energy, steps, 0.0), "nll_nats_per_token": nll, "nll_standard_error": 0.03}
    row |= {"entropy_nats": entropy, "entropy_standard_error": 0.01, "seconds_per_text": 0.1 * steps, "texts": []}
    return row | changes


def test_the_gain_at_the_same_t_is_the_paired_one_of_the_row():
    row = bound("step", 4, 2.3, gain=0.1, error=0.02)
    assert same_steps(row, [*PLAIN, row], BOUND) == Comparison(0.1, 0.02, paired=True)


def test_texts_are_compared_with_the_errors_of_both_sides():
    row = judged("step", 4, 2.5)
    outcome = same_steps(row, [judged("plain", 4, 2.7), row], JUDGED)
    assert outcome == Comparison(pytest.approx(0.2), pytest.approx(0.03 * math.sqrt(2)), paired=False)


def test_plain_diffusion_is_interpolated_in_the_logarithm_of_the_cost():
    row = bound("step", 1, 2.2, denoiser_calls=2.0, energy_calls=6.0)  # 8 calls: half way from 4 to 16
    outcome = same_cost(row, [*PLAIN, row], BOUND, CALLS)
    assert isinstance(outcome, Comparison)
    assert outcome.gain == pytest.approx((2.4 + 2.1) / 2 - 2.2)
    assert outcome.standard_error == pytest.approx(math.hypot(0.03, 0.03))
    assert not outcome.paired


def test_at_the_same_cost_too_what_makes_a_sequence_hard_for_both_sides_cancels():
    hard = [0.0, 1.0, 5.0]
    plain = [row | {"by_sequence": [row["bound_nats_per_token"] + nats for nats in hard]} for row in PLAIN]
    row = bound("step", 1, 2.2, denoiser_calls=2.0, energy_calls=6.0)
    row |= {"by_sequence": [2.2 + nats + off for nats, off in zip(hard, (0.01, 0.0, -0.01), strict=True)]}
    outcome = same_cost(row, [*plain, row], BOUND, CALLS)
    assert outcome == Comparison(pytest.approx((2.4 + 2.1) / 2 - 2.2), pytest.approx(0.01 / math.sqrt(3)), paired=True)


def test_at_a_cost_that_was_measured_nothing_is_interpolated():
    row = bound("step", 1, 2.2, denoiser_calls=1.0, energy_calls=3.0)
    outcome = same_cost(row, [*PLAIN, row], BOUND, CALLS)
    assert outcome == Comparison(pytest.approx(0.2), pytest.approx(math.hypot(0.03, 0.03)), paired=False)


def test_beyond_what_was_measured_there_is_no_extrapolation_but_the_cheaper_one_may_already_win():
    row = bound("step", 4, 2.6)  # 36 calls
    outcome = same_cost(row, [*PLAIN, row], BOUND, CALLS)
    assert isinstance(outcome, NotComparable)
    assert "measured up to 16 network calls, this is 36" in outcome.reason
    assert outcome.cheaper is not None
    assert outcome.cheaper.gain == pytest.approx(-0.5)
    assert outcome.cheaper.verdict == Verdict.WORSE
    cheap = bound("step", 1, 2.6, denoiser_calls=0.25, energy_calls=0.25)
    refused = same_cost(cheap, [*PLAIN, cheap], BOUND, CALLS)
    assert isinstance(refused, NotComparable)
    assert "from 1 network calls on" in refused.reason
    assert refused.cheaper is None


def test_one_measurement_of_plain_diffusion_is_no_curve():
    row = bound("step", 1, 2.6)
    outcome = same_cost(row, [PLAIN[0], row], BOUND, CALLS)
    assert isinstance(outcome, NotComparable)
    assert "two are needed" in outcome.reason


def test_a_sampler_that_was_not_timed_is_compared_at_no_seconds():
    row = bound("coar", 4, 2.3, seconds_per_text=float("nan"))
    outcome = same_cost(row, [*PLAIN, row], BOUND, TEXT_SECONDS)
    assert isinstance(outcome, NotComparable)
    assert "seconds per text of the row were not measured" in outcome.reason


@pytest.mark.parametrize(
    ("gain", "error", "verdict"),
    [
        (0.31, 0.1, Verdict.BETTER),
        (-0.31, 0.1, Verdict.WORSE),
        (0.25, 0.1, Verdict.PERHAPS_BETTER),
        (-0.25, 0.1, Verdict.PERHAPS_WORSE),
        (0.19, 0.1, Verdict.TIE),
        (-0.19, 0.1, Verdict.TIE),
        (0.0, 0.0, Verdict.TIE),
        (0.01, 0.0, Verdict.BETTER),
        (0.01, math.nan, Verdict.UNKNOWN),
    ],
)
def test_a_difference_within_two_standard_errors_is_none(gain, error, verdict):
    assert Comparison(gain, error, paired=True).verdict == verdict


def test_the_control_is_the_same_sampler_with_uniform_weights():
    row = bound("step", 4, 2.3, by_sequence=[1.0, 3.6])
    control = bound("uniform", 4, 2.41, by_sequence=[1.1, 3.72])
    outcome = against_uniform(row, [*PLAIN, control, row], BOUND)
    assert outcome == Comparison(pytest.approx(0.11), pytest.approx(0.01), paired=True)
    assert isinstance(against_uniform(row | {"candidates": 2}, [*PLAIN, control], BOUND), NotComparable)
    plan = against_uniform(row | {"energy": "adaptive effort, 2 times plain"}, [*PLAIN, control, row], BOUND)
    assert plan == NotComparable("a plan has no single k for all steps")
    exact = against_uniform(row | {"candidates": 0}, [*PLAIN, control], BOUND)
    assert isinstance(exact, NotComparable)
    assert "no candidates" in exact.reason


def test_the_steps_that_plain_diffusion_needs_are_interpolated_and_never_extrapolated():
    assert equal_plain_steps(bound("step", 1, 2.25), PLAIN, BOUND) == pytest.approx(8.0)
    assert equal_plain_steps(bound("step", 1, 2.1), PLAIN, BOUND) == pytest.approx(16.0)
    assert equal_plain_steps(bound("step", 1, 2.0), PLAIN, BOUND) == NotComparable("more than 16")
    assert equal_plain_steps(bound("step", 1, 3.1), PLAIN, BOUND) == NotComparable("less than 1")


def test_findings_name_where_an_energy_helps_how_surely_and_for_how_much():
    rows = [*PLAIN, bound("step", 1, 2.8, 0.2, 0.02), bound("step", 4, 2.35, 0.05, 0.01), bound("step", 16, 2.09, 0.01)]
    (bullet,) = energy_findings(LIKELIHOOD, rows)
    assert bullet.lead == "step"
    assert "Helps at T = 1, 4; most at T = 1, k = 8: by 0.200 nats per token (10 paired standard errors)" in bullet.text
    assert "for 9.0 times the network calls and 1.0 times the seconds" in bullet.text
    assert "Harms" not in bullet.text
    short = {bullet.lead: bullet.text for bullet in short_findings(LIKELIHOOD, rows)}
    assert (
        "1 of 1 energies, most step (by 0.200 at T = 1, k = 8; 10σ)" in short["Against plain diffusion at the same T"]
    )
    assert short["Against k candidates with uniform weights"] == "Not comparable: step."


def test_a_tie_is_reported_to_be_one():
    rows = [*PLAIN, bound("step", 4, 2.39, 0.01, 0.01)]
    assert energy_findings(LIKELIHOOD, rows)[0].text == "No significant gain in 1 samplers."
    short = short_findings(LIKELIHOOD, rows)[0].text
    assert short == "Better somewhere: none. Worse somewhere: none. Undecided everywhere: step."
    assert standings(LIKELIHOOD, rows)["step"].steps.count(Verdict.TIE) == 1


def test_texts_of_lower_entropy_are_pointed_out():
    rows = [judged("plain", 4, 2.7), judged("step", 4, 2.3, entropy=2.7)]
    assert "In 1 of 1 its texts have lower entropy" in energy_findings(TEXTS, rows)[0].text
    rows[1]["entropy_nats"] = 2.79
    assert "entropy" not in energy_findings(TEXTS, rows)[0].text


def test_rows_of_the_published_sampler_are_counted_and_in_no_other_finding():
    kept = [*PLAIN, bound("step", 4, 2.35, 0.05)]
    published = bound("step", 1, 1.0, 2.0, published=True)
    plain = bound("plain", 1, 0.5, published=True)
    for findings in (energy_findings, short_findings):
        assert findings(LIKELIHOOD, [*kept, published, plain]) == findings(LIKELIHOOD, kept)
    assert level_findings({}, [*kept, published]) == level_findings({}, kept)
    assert published_findings([*kept, published])[0].text.startswith(
        "Rows of the published sampler, its errors included: 1."
    )
    assert published_findings(kept) == []


def test_rows_of_the_published_sampler_are_named_in_every_table():
    rows = measurements.bounds()
    for table in (bound_table(rows), gain_table(rows), comparison_table(LIKELIHOOD, "published-nce", rows)):
        assert any("published sampler" in cell for row in table.rows for cell in row), table.caption
    quality = [judged("plain", 4, 2.7), judged("plain", 4, 2.0, published=True), judged("step", 4, 2.0, published=True)]
    assert [row[2] for row in quality_table(quality).rows] == ["–", "published sampler", "k = 8, published sampler"]


def test_what_is_no_bound_is_reported_beside_the_number():
    rows = {row[0]: row[-1] for row in level_table(measurements.summary()).rows}
    assert rows["the paper's estimator, coar"] == "NOT a bound"
    assert rows["denoiser, NELBO (T = ∞)"] == "upper bound on −log p"


def test_numbers_that_are_not_finite_are_dashes_and_never_findings():
    rows = [*PLAIN, bound("step", 4, math.nan, math.nan, math.nan), bound("step", 1, math.inf, -math.inf)]
    assert energy_findings(LIKELIHOOD, rows) == []
    assert short_findings(LIKELIHOOD, rows) == []
    table = comparison_table(LIKELIHOOD, "step", rows)
    assert {row[2] for row in table.rows} == {"–"}
    assert "nan" not in str(table.rows)
    assert "inf" not in str(table.rows)


def test_a_cell_shows_the_gain_with_its_standard_errors_and_a_cheaper_winner_in_brackets():
    assert outcome_cell(Comparison(0.2164, 0.0046, paired=True)) == "+0.216 +47σ"
    assert outcome_cell(Comparison(0.016, 0.0, paired=True)) == "+0.016"
    assert outcome_cell(NotComparable("beyond")) == "–"
    assert outcome_cell(NotComparable("beyond", Comparison(-0.5, 0.05, paired=False))) == "(-0.500 -10σ)"


def test_samplers_are_named_by_what_sets_them_apart():
    assert words(bound("step", 4, 2.0)) == "k = 8"
    assert words(bound("coar", 4, 2.0, window_to=0.25)) == "k = 8, last step"
    assert words(bound("coar", 4, 2.0, window_from=0.5)) == "k = 8, t from 0.5 to 1"
    assert (
        words(bound("step", 4, 2.0, candidates=0, energy_temperature=0.5, published=True))
        == "exact, τ = 0.5, published sampler"
    )


def test_a_series_of_the_last_step_alone_begins_where_the_last_step_is_all():
    rows = [bound("coar", 1, 2.8), bound("coar", 4, 2.6), bound("coar", 4, 2.3, window_to=0.25)]
    actual = series(rows)
    assert [row["steps"] for row in actual["k = 8"]] == [1, 4]
    assert [row["bound_nats_per_token"] for row in actual["k = 8, last step"]] == [2.8, 2.3]
    assert [row[2:] for row in bound_table(rows).rows] == [
        ("2.800 ± 0.030", "2.600 ± 0.030"),
        ("", "2.300 ± 0.030"),
    ]


def test_seeds_are_series_of_their_own():
    rows = [bound("step", 4, 2.3), bound("step", 4, 2.31, seed=1)]
    assert list(series(rows)) == ["k = 8, seed 0", "k = 8, seed 1"]
    assert isinstance(same_steps(judged("step", 4, 2.0, seed=1), [judged("plain", 4, 2.0)], JUDGED), NotComparable)
