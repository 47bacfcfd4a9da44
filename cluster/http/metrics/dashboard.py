"""Grafana dashboard of the endpoint: one panel per metric of `instruments`.

python -m cluster.http.metrics.dashboard > cluster/deploy/grafana_dashboard.json
"""

import json
from typing import Any

from cluster.http.metrics.instruments import INSTRUMENTS, Instrument

PREFIX = "ray_"  # that Ray's exporter gives the metrics of its replicas
QUANTILES = (0.5, 0.95, 0.99)
WIDTH, HEIGHT, COLUMNS = 8, 7, 3  # of a panel, in Grafana's units, of which a row has 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it; its data source is a variable."""
    return {
        "title": "edlm endpoint",
        "uid": "edlm-endpoint",
        "tags": ["edlm"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [_panel(number, instrument) for number, instrument in enumerate(INSTRUMENTS)],
    }


def queries(instrument: Instrument) -> dict[str, str]:
    """Return the PromQL expressions of a metric's panel, by their legend."""
    name, by = PREFIX + instrument.name, ", ".join(instrument.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in instrument.labels)
    if instrument.kind == "histogram":
        rate = f"sum by (le) (rate({name}_bucket[$__rate_interval]))"
        return {f"{quantile:g} quantile": f"histogram_quantile({quantile:g}, {rate})" for quantile in QUANTILES}
    if instrument.kind == "counter":
        return {legend or "per second": f"sum{f' by ({by})' if by else ''} (rate({name}[$__rate_interval]))"}
    return {legend or "{{instance}} {{replica}}": name}


def _panel(number: int, instrument: Instrument) -> dict[str, Any]:
    per_second = ", per second" if instrument.kind == "counter" else ""
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": instrument.text.removesuffix(".") + per_second,
        "description": f"{PREFIX}{instrument.name}",
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": _unit(instrument), "min": 0}, "overrides": []},
        "gridPos": {"x": number % COLUMNS * WIDTH, "y": number // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for i, (legend, expression) in enumerate(queries(instrument).items())
        ],
    }


def _unit(instrument: Instrument) -> str:
    if instrument.kind == "counter":
        return "short"
    return "s" if instrument.name.endswith("_seconds") else "short"


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
