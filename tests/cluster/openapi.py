"""The OpenAPI document of the endpoint, which is committed so that a change of the interface is seen.

python -m tests.cluster.openapi        # write docs/openapi.json
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from cluster.http.endpoint import Endpoint, make_app
from cluster.http.limits.settings import RequestLimits
from cluster.http.metrics.instruments import PrometheusMetrics
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import open_bundle
from edlm.inference.request import Limits
from tests.bundles import make_bundle
from tests.paths import PROJECT

FILE = PROJECT / "docs" / "openapi.json"


def written(document: Any) -> str:
    """The document as it is committed."""
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generator = open_bundle(make_bundle(Path(folder)))
    with InferenceEngine(generator, "7/0", Limits()) as engine:
        document = make_app(Endpoint(engine, RequestLimits(), PrometheusMetrics())).openapi()
    FILE.write_text(written(document), encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
