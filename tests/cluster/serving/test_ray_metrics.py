"""What the endpoint records reaches Ray's exporter, and the replica's own text with exact sums."""

from prometheus_client.parser import text_string_to_metric_families

from cluster.http.metrics.instruments import E2E_SECONDS, INSTRUMENTS, MODEL
from cluster.serving.ray_metrics import RayMetrics
from tests.cluster.http.metrics.test_instruments import record


def test_ray_takes_every_instrument_and_the_text_shows_it_with_the_replica():
    metrics = RayMetrics("one")
    for instrument in INSTRUMENTS:
        record(metrics, instrument)
    families = list(text_string_to_metric_families(metrics.text()))
    assert len(families) == len(INSTRUMENTS)
    assert {sample.labels["replica"] for family in families for sample in family.samples} == {"one"}


def test_sums_are_exact_and_only_the_serving_model_is_shown():
    metrics = RayMetrics("one")
    for seconds in (0.003, 0.007, 40.0):
        metrics.observe(E2E_SECONDS, seconds, "/")
    for version in ("1", "2"):
        metrics.set(MODEL, 1, version, "0")
    samples = {
        (sample.name, sample.labels.get("version")): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }
    assert samples["edlm_e2e_seconds_sum", None] == 40.01
    assert samples["edlm_model_info", "2"] == 1
    assert ("edlm_model_info", "1") not in samples
