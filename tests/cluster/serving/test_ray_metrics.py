"""Ray's exporter takes what the endpoint records."""

from cluster.http.metrics.instruments import INSTRUMENTS
from cluster.serving.ray_metrics import RayMetrics
from tests.cluster.http.metrics.test_instruments import record


def test_ray_takes_every_instrument():
    metrics = RayMetrics()
    for instrument in INSTRUMENTS:
        record(metrics, instrument)
