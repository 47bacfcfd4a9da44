"""Prometheus's own parser reads what the endpoint exports, under the documented names and labels."""

from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from cluster.http.metrics.instruments import (
    E2E_SECONDS,
    ENGINE_STEPS,
    ESS,
    INSTRUMENTS,
    MODEL,
    QUEUE_SECONDS,
    REJECTED,
    Instrument,
    Metrics,
    PrometheusMetrics,
)

DOCUMENT = Path(__file__).parents[4] / "docs" / "endpoint.md"


def record(metrics: Metrics, instrument: Instrument, value: float = 1.0, label: str = "x") -> None:
    by_kind = {"counter": metrics.add, "gauge": metrics.set, "histogram": metrics.observe}
    by_kind[instrument.kind](instrument, value, *[label] * len(instrument.labels))


def test_every_metric_is_exported_under_its_name_with_its_labels_and_nothing_else_is():
    metrics = PrometheusMetrics()
    for instrument in INSTRUMENTS:
        record(metrics, instrument)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text())}
    assert len(families) == len(INSTRUMENTS)
    for instrument in INSTRUMENTS:
        family = families[instrument.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (instrument.kind, instrument.text)
        assert all(set(sample.labels) - {"le"} == set(instrument.labels) for sample in family.samples)
        parts = ("_bucket", "_sum", "_count") if instrument.kind == "histogram" else ("",)
        assert {sample.name for sample in family.samples} == {instrument.name + part for part in parts}


def test_the_documentation_lists_every_metric_with_its_labels():
    document = DOCUMENT.read_text()
    for instrument in INSTRUMENTS:
        labels = "{" + ",".join(instrument.labels) + "}" if instrument.labels and instrument is not E2E_SECONDS else ""
        assert f"`{instrument.name}{labels}`" in document


def test_a_histogram_counts_cumulatively_and_keeps_the_sum():
    metrics = PrometheusMetrics()
    for value in (1.5, 1.6, 7.0, 1000.0):
        metrics.observe(ESS, value)
    (family,) = [family for family in text_string_to_metric_families(metrics.text()) if family.name == "edlm_ess"]
    buckets = {sample.labels["le"]: sample.value for sample in family.samples if "le" in sample.labels}
    assert (buckets["1.5"], buckets["2.0"], buckets["8.0"], buckets["64.0"], buckets["+Inf"]) == (1, 2, 3, 3, 4)
    assert metrics.value(ESS) == pytest.approx(1010.1)


def test_what_was_never_recorded_reads_as_zero():
    metrics = PrometheusMetrics()
    assert metrics.value(REJECTED, "waiting") == metrics.value(ENGINE_STEPS) == metrics.value(QUEUE_SECONDS) == 0.0


def test_a_counter_never_falls():
    metrics = PrometheusMetrics()
    with pytest.raises(ValueError, match="non-negative"):
        metrics.add(ENGINE_STEPS, -1)


def test_a_label_that_is_missing_or_too_many_is_an_error():
    metrics = PrometheusMetrics()
    with pytest.raises(ValueError, match="label"):
        metrics.add(REJECTED, 1)
    with pytest.raises(ValueError, match="label"):
        metrics.add(ENGINE_STEPS, 1, "waiting")


def test_two_apps_of_one_process_count_apart_and_outside_the_global_registry():
    first, other = PrometheusMetrics(), PrometheusMetrics()
    first.add(ENGINE_STEPS, 3)
    assert (first.value(ENGINE_STEPS), other.value(ENGINE_STEPS)) == (3, 0)
    assert REGISTRY.get_sample_value(ENGINE_STEPS.name) is None


def test_only_the_model_that_serves_is_shown():
    metrics = PrometheusMetrics()
    for version in ("1", "2", "2"):
        metrics.set(MODEL, 1, version, "0")
    assert 'version="2"' in metrics.text()
    assert 'version="1"' not in metrics.text()


def test_a_label_is_escaped():
    metrics = PrometheusMetrics()
    metrics.set(MODEL, 1, 'a"b\\c\nd', "0")
    assert r'version="a\"b\\c\nd"' in metrics.text()


def test_a_replica_is_a_label_of_every_series():
    metrics = PrometheusMetrics("one")
    for instrument in INSTRUMENTS:
        record(metrics, instrument)
    families = text_string_to_metric_families(metrics.text())
    assert {sample.labels["replica"] for family in families for sample in family.samples} == {"one"}
