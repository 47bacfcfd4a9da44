"""The distances from an exact distribution in a report are exact functions of the rows."""

import pytest

from workflows.reporting.exact_chapter import excess_table, share_table
from workflows.reporting.exact_comparison import by_sampler, excess, gain_shares, nelbo_excess

SUMMARY = {"entropy_nats_per_token": 1.5, "entropy_by_sequence": [1.0, 2.0]}


def bound(energy: str, gain: float, value: float = 2.0, **changes):
    row = {
        "energy": energy, "steps": 2, "candidates": 8, "window_from": 0.0, "window_to": 1.0, "energy_temperature": 1.0,
        "precision": "float32", "seed": 0, "published": False, "whole_sequence": False, "block": None,
        "bound_nats_per_token": value, "standard_error": 0.5, "gain_nats_per_token": gain, "by_sequence": [],
    }  # fmt: skip
    return row | changes


def test_a_learned_energy_is_compared_with_the_exact_energy_of_the_same_positions():
    rows = [
        bound("plain", 0.0, candidates=1, whole_sequence=None),
        bound("whole", 0.3), bound("blocks", 0.1, block=8), bound("whole sequence", -0.2, whole_sequence=True),
        bound("exact-step", 0.4), bound("exact-step-8", 0.2, block=8),
        bound("exact-whole-sequence", 0.1, whole_sequence=True),
        bound("whole", 0.3, steps=4), bound("exact-step", 0.3, steps=4), bound("whole", 0.1, candidates=2),
    ]  # fmt: skip
    shares = {share.energy: (share.exact_energy, share.by_steps) for share in gain_shares(rows)}
    assert shares == {
        "whole": ("exact-step", {2: pytest.approx(0.75), 4: pytest.approx(1.0)}),
        "blocks": ("exact-step-8", {2: pytest.approx(0.5)}),
        "whole sequence": ("exact-whole-sequence", {2: pytest.approx(-2.0)}),
    }
    assert share_table(rows).rows[0][3:] == ("75%", "100%")


def test_where_the_exact_energy_gains_nothing_there_is_no_share():
    assert gain_shares([bound("whole", 0.1), bound("exact-step", 0.0)]) == []


def test_a_bound_is_measured_from_the_entropy_of_the_same_sequences():
    paired = excess(bound("whole", 0.0, value=1.6, by_sequence=[1.05, 2.15]), SUMMARY)
    assert (paired.gain, paired.standard_error) == (pytest.approx(0.1), pytest.approx(0.05))
    alone = excess(bound("whole", 0.0, value=1.6), SUMMARY)
    assert (alone.gain, alone.standard_error, alone.paired) == (pytest.approx(0.1), 0.5, False)


def test_the_quarters_of_the_nelbo_add_up():
    quarters = [{"nelbo_above_entropy_nats_per_token": 0.25, "nelbo_standard_error": 0.5}] * 4
    assert nelbo_excess(quarters) == (pytest.approx(1.0), pytest.approx(1.0))


def test_rows_are_grouped_by_their_sampler():
    rows = [bound("a", 0.0), bound("a", 0.0, steps=4), bound("a", 0.0, candidates=0), bound("b", 0.0)]
    last = [bound("c", 0.0, steps=t, window_to=1 / t) for t in (2, 4)]
    assert by_sampler(last) == [last]
    assert [[(r["energy"], r["candidates"], r["steps"]) for r in group] for group in by_sampler(rows)] == [
        [("a", 8, 2), ("a", 8, 4)],
        [("a", 0, 2)],
        [("b", 8, 2)],
    ]
    table = excess_table([bound("a", 0.0, value=1.65, by_sequence=[1.1, 2.2])], SUMMARY)
    assert table.rows == [("a", "k = 8", "+10.00% ± 3.33%")]
