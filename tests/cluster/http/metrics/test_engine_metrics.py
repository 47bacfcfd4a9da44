"""What the engine counts arrives in the metrics, whole."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.http.metrics.engine_metrics import EngineMetrics
from cluster.http.metrics.instruments import BUSY_SECONDS, ENGINE_STEPS, STEP_SECONDS, PrometheusMetrics
from edlm.inference.engine import InferenceEngine
from tests.cluster.asking import COMPLETIONS, INFILL, ask, eventually, stream
from tests.cluster.conftest import PATIENT


def samples(text: str) -> dict[str, list[float]]:
    """Return the values of every sample, by its name."""
    actual: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            actual.setdefault(sample.name, []).append(sample.value)
    return actual


def test_the_engines_counts_are_exported(service):
    ask(service.url, COMPLETIONS, {"max_tokens": 7, "edlm": {"candidates": 4}})
    stream(service.url, INFILL, {"parts": [3]})
    response = ask(service.url, "/metrics", method="GET")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    actual = samples(response.text)
    assert actual["edlm_tokens_total"] == [service.endpoint.engine.statistics().tokens]
    assert f'edlm_model_info{{digest="{"0" * 64}",version="7"}} 1.0\n' in response.text
    assert 'edlm_forwards_total{model="denoiser"}' in response.text
    assert actual["edlm_ess_count"][0] > 0
    assert actual["edlm_queue_seconds_bucket"] == sorted(actual["edlm_queue_seconds_bucket"])


def test_every_step_of_the_engine_is_timed_once(service):
    names = ("edlm_engine_steps_total", "edlm_step_seconds_count", "edlm_busy_seconds_total", "edlm_step_seconds_sum")

    def read() -> list[float]:
        actual = samples(ask(service.url, "/metrics", method="GET").text)
        return [actual[name][0] for name in names]

    ask(service.url, COMPLETIONS, {"max_tokens": 4, "edlm": {"steps": 2}})
    before = read()
    ask(service.url, COMPLETIONS, {"max_tokens": 40, "edlm": {"steps": 8, "candidates": 3}})
    eventually(lambda: service.endpoint.engine.statistics().running == 0)
    steps, timed, busy, seconds = (now - then for now, then in zip(read(), before, strict=True))
    assert steps == timed > 0
    assert seconds == pytest.approx(busy)


def test_no_step_duration_is_lost_however_rarely_the_metrics_are_read(generator):
    with InferenceEngine(generator, "1/0", PATIENT) as engine:
        metrics = PrometheusMetrics()
        engine_metrics = EngineMetrics(engine, metrics)
        for _ in range(5000):
            engine._statistics.count_step(0.25)
        engine_metrics.update()
    (count,) = samples(metrics.text())["edlm_step_seconds_count"]
    assert count == metrics.value(ENGINE_STEPS) == 5000
    assert metrics.value(STEP_SECONDS) == metrics.value(BUSY_SECONDS) == 1250
