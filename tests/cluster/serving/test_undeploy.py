"""Taking the endpoint down: nothing new, what is on its way may end, and whoever takes too long is told."""

import threading
import time

import httpx
import pytest
from ray import serve

from cluster.serving import APPLICATION, undeploy
from edlm.answers import ServiceError
from edlm.client import Settings
from tests.cluster.serving.stage import SECONDS, until

SLOW = Settings(steps=12, candidates=1)  # with 4096 tokens, ten seconds and more
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_texts_on_their_way_end_or_are_told_and_nothing_new_is_begun(stage):
    """R15, with a drain limit of five seconds."""
    short, refused = [], []
    with stage.client() as client, client.stream("", max_tokens=4096, seed=1, settings=SLOW) as stream:
        next(iter(stream))
        on_its_way = threading.Thread(target=lambda: short.append(stage.ask(max_tokens=100)))
        on_its_way.start()
        time.sleep(0.2)  # until it is accepted
        down = threading.Thread(target=lambda: undeploy(stage.settings))
        down.start()
        until(lambda: refuses(stage, refused))
        with pytest.raises(ServiceError) as told:
            list(stream)
        on_its_way.join()
        down.join()
    assert short[0].status_code == 200
    assert told.value.code == "engine_failed"
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
