"""A registered model behind Ray Serve, on a private Ray: what it answers, and what is never served."""

import shutil
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import ray

from cluster.config import Serving, Tracking, is_loopback
from cluster.serving import deploy, undeploy, url, wait_until_ready
from cluster.tracking import open_tracking
from edlm.config import ConfigurationError, parse
from edlm.storage import publish
from tests.bundles import make_bundle

TRACKING = Tracking()
START_SECONDS = 120


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A storage with three registered models: a good one, one altered later on disk, and one published anew."""
    folder = Path(tempfile.mkdtemp(prefix="edlm-", dir="/tmp"))  # short, as the names of Ray's sockets must be
    runs = open_tracking(TRACKING, str(folder))
    run_id = runs.start("register")
    for name in ("good", "damaged", "other"):
        bundle = make_bundle(folder / name, name)
        runs.registry.register(name, str(bundle), run_id, "champion", publish(bundle, str(bundle)).digest)
    weights = folder / "damaged" / "bundle" / "denoiser" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    card = folder / "other" / "bundle" / "bundle.yaml"
    card.write_text(card.read_text().replace("steps: 4", "steps: 5"))
    publish(card.parent, str(card.parent))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def serving(root) -> Iterator[Serving]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _temp_dir=str(root / "ray"),
        log_to_driver=False,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield Serving(port=port, max_replicas=1)
    undeploy()
    ray.shutdown()


@pytest.fixture(scope="module")
def endpoint(serving, root) -> str:
    at = deploy(serving, TRACKING, str(root), "good")
    wait_until_ready(at, START_SECONDS)
    return at


def post(at: str, path: str, body: dict) -> dict:
    response = httpx.post(f"{at}{path}", json=body, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    return response.json()


def texts(answer: dict) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.cluster
def test_a_port_in_use_is_named(serving, root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"serving.port: {port} on 127.0.0.1 cannot be bound"):
            deploy(replace(serving, port=port), TRACKING, str(root), "good")


@pytest.mark.cluster
def test_more_than_the_cluster_has_is_named(serving, root):
    with pytest.raises(ConfigurationError, match="99 CPU needed, the cluster has 2"):
        deploy(replace(serving, cpus_per_replica=99.0), TRACKING, str(root), "good")


@pytest.mark.cluster
def test_what_is_not_registered_is_not_served(serving, root):
    with pytest.raises(ValueError, match="no model 'unheard' is registered"):
        deploy(serving, TRACKING, str(root), "unheard")
    with pytest.raises(ValueError, match="has no alias 'challenger'"):
        deploy(replace(serving, alias="challenger"), TRACKING, str(root), "good")
    with pytest.raises(ValueError, match=r"was registered with digest .* register it again"):
        deploy(serving, TRACKING, str(root), "other")


@pytest.mark.cluster
def test_a_damaged_model_never_answers(serving, root):
    at = deploy(serving, TRACKING, str(root), "damaged")
    with pytest.raises(ConfigurationError, match=r"weights.safetensors' has SHA-256"):
        wait_until_ready(at, START_SECONDS)


@pytest.mark.cluster
def test_the_registered_model_answers(endpoint, root):
    version = open_tracking(TRACKING, str(root)).registry.resolve("good", "champion")
    answer = post(endpoint, "/v1/completions", {"prompt": "the ", "max_tokens": 60, "seed": 1})
    assert len(answer["choices"][0]["text"]) == 60
    assert (answer["model"], answer["edlm"]["digest"]) == ("good", version.digest)
    filled = post(endpoint, "/v1/infill", {"parts": ["ab", 3, "cd"], "seed": 1})
    assert (texts(filled)[0][:2], texts(filled)[0][5:]) == ("ab", "cd")
    assert post(endpoint, "/v1/score", {"text": "hello", "seed": 1})["tokens"] == 5
    assert httpx.get(f"{endpoint}/readyz", trust_env=False).json()["digest"] == version.digest


@pytest.mark.cluster
def test_a_seed_gives_the_same_text_alone_and_in_company(endpoint):
    requests = [
        {"prompt": "ab" * i, "seed": i, "n": 2, "max_tokens": 10 + i, "edlm": {"steps": 4 + i, "candidates": 1 + i % 3}}
        for i in range(8)
    ]
    alone = [texts(post(endpoint, "/v1/completions", request)) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: texts(post(endpoint, "/v1/completions", request)), requests))
    assert together == alone


@pytest.mark.cluster
def test_the_gate_stands_behind_serve_too(endpoint):
    foreign = httpx.get(f"{endpoint}/v1/models", headers={"host": "evil.example"}, trust_env=False)
    assert foreign.status_code == 403
    bad = httpx.post(f"{endpoint}/v1/completions", content='{"edlm": {"window": [NaN, 1]}}', trust_env=False)
    assert bad.status_code == 415
    bad = httpx.post(f"{endpoint}/v1/completions", content="x" * 2**21, headers={"content-type": "application/json"})
    assert bad.status_code == 413


@pytest.mark.cluster
@pytest.mark.usefixtures("endpoint")
def test_serve_that_runs_elsewhere_is_not_taken_for_ours(serving, root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Serve already runs on this cluster, and not at .*:{port}"):
            deploy(replace(serving, port=port), TRACKING, str(root), "good")


def test_only_addresses_of_this_machine_are_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.0.1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))


def test_a_server_on_all_addresses_is_reached_on_its_own():
    assert url(Serving(host="0.0.0.0", port=81, open=True)) == "http://127.0.0.1:81"
    assert url(Serving(host="::1", port=81)) == "http://[::1]:81"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 is no loopback address, and no key would be asked for"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas: 3 is more than serving.max_replicas, 2"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica: 1.5; give a fraction below 1, or a whole number"),
    ],
)
def test_settings_that_contradict_one_another_are_named(settings, said):
    with pytest.raises(ConfigurationError, match=said):
        parse(Serving, settings)


def test_beyond_this_machine_the_endpoint_asks_for_keys_or_says_that_it_is_open():
    assert Serving(host="0.0.0.0", key_file="/etc/edlm/keys").host == Serving(host="0.0.0.0", open=True).host
