"""The summary of an evaluation."""

from tests import measurements
from workflows.evaluate import summarise


def test_the_papers_estimate_in_the_summary_is_the_one_whose_log_z_was_estimated():
    reference = {"name": "denoiser_nelbo", "nats_per_token": 1.9, "standard_error": 0.01, "by_sequence": [1.9]}
    tables = {"reference": [reference], "paper": measurements.paper()}
    summary = summarise("made-up", tables, {"sequences": 1, "length": 1})
    assert summary["paper_ppl_nats_NOT_A_BOUND"] == measurements.summary()["paper_ppl_nats_NOT_A_BOUND"]
