"""Taking the endpoint down: nothing new, running requests may end, and those that take too long get an error.

What needs another Serve than these tests' own stands here, too, after its end.
"""

import threading
import time

import httpx
import pytest
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeApplicationSchema

from cluster.serving.deploy import APPLICATION, BUILDER, Arguments, apply, deploy, undeploy, wait_until_ready
from edlm.client.errors import ServiceError
from edlm.client.settings import Settings
from edlm.config import ConfigurationError, plain
from tests.cluster.endpoint.spoiled import NAME
from tests.cluster.endpoint.stage import SECONDS, START_SECONDS, TRACKING, until

SLOW = Settings(steps=12, candidates=1)  # with 4096 tokens, ten seconds and more
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_running_texts_end_or_get_an_error_and_nothing_new_begins(stage):
    """R15, with a drain limit of five seconds."""
    short, refused = [], []
    with stage.client() as client, client.stream("", max_tokens=4096, seed=1, settings=SLOW) as stream:
        next(iter(stream))
        running = threading.Thread(target=lambda: short.append(stage.ask(max_tokens=100)))
        running.start()
        time.sleep(0.2)  # until it is accepted
        down = threading.Thread(target=lambda: undeploy(stage.settings))
        down.start()
        until(lambda: refuses(stage, refused))
        with pytest.raises(ServiceError) as reported:
            list(stream)
        running.join()
        down.join()
    assert short[0].status_code == 200
    assert reported.value.code == "engine_failed"
    assert set(refused) <= {429, 503, 404}
    assert APPLICATION not in serve.status().applications
    with pytest.raises(httpx.TransportError):
        stage.ask()


def refuses(stage, refused: list[int]) -> bool:
    status = httpx.post(
        f"{stage.url}/v1/completions", json={"max_tokens": 1}, timeout=SECONDS, trust_env=False
    ).status_code
    if status != 200:
        refused.append(status)
    return status != 200


@pytest.mark.chaos
def test_a_serve_that_listens_for_everybody_is_not_used_without_keys(stage):
    """Neither by the command nor by a replica of a config; the setting `serving.host` names loopback all the while."""
    serve.shutdown()
    serve.start(http_options=HTTPOptions(host="0.0.0.0", port=stage.settings.port))
    with pytest.raises(ConfigurationError, match=r"Serve listens on 0.0.0.0"):
        deploy(stage.settings, TRACKING, str(stage.root), NAME)
    args = plain(Arguments(model=NAME, storage=str(stage.root), serving=stage.settings, tracking=TRACKING))
    apply(ServeApplicationSchema(name=APPLICATION, route_prefix="/", import_path=BUILDER, args=args))
    with pytest.raises(ConfigurationError, match=r"does not start: (.|\n)*Serve listens on 0.0.0.0"):
        wait_until_ready(stage.url, START_SECONDS)
