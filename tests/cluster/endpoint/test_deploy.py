"""A registered model behind Ray Serve: what it answers, what is never served, and what settings must not say."""

import json
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cluster.config import Serving, is_loopback
from cluster.runtime.ray_connection import CALLBACK, INTAKE
from cluster.serving.deploy import deploy, logs_folder, require_free, url, wait_until_ready
from cluster.serving.replica import require_guard, require_intake, target_version
from cluster.tracking.runs import open_tracking
from edlm.config import ConfigurationError, parse
from tests.cluster.endpoint.spoiled import NAME, plain_bundle, published
from tests.cluster.endpoint.stage import START_SECONDS, TRACKING, until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def storage(machine) -> Path:
    """Two registered models that are no good: one altered later on disk, and one published anew."""
    runs = open_tracking(TRACKING, str(machine))
    run_id = runs.settled(None, "register")
    for name in ("damaged", "other"):
        bundle = plain_bundle(machine / name, seed=0)
        runs.registry.register(name, str(bundle), run_id, "champion", published(bundle))
    weights = machine / "damaged" / "bundle" / "denoiser" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    card = machine / "other" / "bundle" / "bundle.yaml"
    card.write_text(card.read_text().replace("steps: 4", "steps: 5"))
    published(card.parent)
    return machine


def post(at: str, path: str, body: dict) -> dict:
    response = httpx.post(f"{at}{path}", json=body, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    return response.json()


def texts(answer: dict) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"serving.port: {port} on 127.0.0.1 cannot be bound"):
            require_free("127.0.0.1", port)


@pytest.mark.cluster
def test_more_than_the_cluster_has_is_named(settings, storage):
    with pytest.raises(ConfigurationError, match="99 CPU needed, the cluster has 2"):
        deploy(replace(settings, cpus_per_replica=99.0), TRACKING, str(storage), "damaged")


@pytest.mark.cluster
def test_what_is_not_registered_is_not_served(settings, storage):
    with pytest.raises(ValueError, match="no model 'unheard' is registered"):
        deploy(settings, TRACKING, str(storage), "unheard")
    with pytest.raises(ValueError, match="has no alias 'challenger'"):
        deploy(replace(settings, alias="challenger"), TRACKING, str(storage), "damaged")
    with pytest.raises(ValueError, match=r"was registered with digest .* register it again"):
        deploy(settings, TRACKING, str(storage), "other")


@pytest.mark.chaos
@pytest.mark.cluster
def test_a_damaged_model_never_answers(settings, storage):
    at = deploy(replace(settings, min_replicas=1), TRACKING, str(storage), "damaged")
    with pytest.raises(ConfigurationError, match=r"weights.safetensors' has SHA-256"):
        wait_until_ready(at, START_SECONDS)


@pytest.mark.cluster
def test_the_registered_model_answers(stage):
    digest = stage.versions["first"].digest
    answer = post(stage.url, "/v1/completions", {"prompt": "the ", "max_tokens": 60, "seed": 1})
    assert len(answer["choices"][0]["text"]) == 60
    assert (answer["model"], answer["edlm"]["digest"]) == (NAME, digest)
    filled = post(stage.url, "/v1/infill", {"parts": ["ab", 3, "cd"], "seed": 1})
    assert (texts(filled)[0][:2], texts(filled)[0][5:]) == ("ab", "cd")
    assert post(stage.url, "/v1/score", {"text": "hello", "seed": 1})["tokens"] == 5
    assert httpx.get(f"{stage.url}/readyz", trust_env=False).json()["digest"] == digest


@pytest.mark.cluster
def test_a_request_is_one_line_of_a_log_that_outlives_ray_and_no_line_of_rays_own(stage, machine):
    headers = {"x-request-id": "known"}
    httpx.get(f"{stage.url}/v1/models", headers=headers, trust_env=False)
    until(lambda: any("known" in log.read_text() for log in (stage.root / "logs").iterdir()))
    logs = list((stage.root / "logs").glob("replica-*.log"))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "known"]
    assert (line["endpoint"], line["status"]) == ("/v1/models", 200)
    assert {stat.S_IMODE(log.stat().st_mode) for log in logs} == {0o600}
    of_ray = list(machine.glob("r0/session_*/logs/serve/*.log"))
    assert {log.name.partition("_")[0] for log in of_ray} >= {"proxy", "replica"}
    assert [log.name for log in of_ray if "/v1/models 200" in log.read_text()] == []


@pytest.mark.cluster
def test_a_seed_gives_the_same_text_alone_and_in_company(stage):
    requests = [
        {"prompt": "ab" * i, "seed": i, "n": 2, "max_tokens": 10 + i, "edlm": {"steps": 4 + i, "candidates": 1 + i % 3}}
        for i in range(6)  # 12 texts: as many as are let in, in progress or waiting
    ]
    alone = [texts(post(stage.url, "/v1/completions", request)) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: texts(post(stage.url, "/v1/completions", request)), requests))
    assert together == alone


@pytest.mark.cluster
def test_the_gate_stands_behind_serve_too(stage):
    endpoint = stage.url
    foreign = httpx.get(f"{endpoint}/v1/models", headers={"host": "evil.example"}, trust_env=False)
    assert foreign.status_code == 403
    bad = httpx.post(f"{endpoint}/v1/completions", content='{"edlm": {"window": [NaN, 1]}}', trust_env=False)
    assert bad.status_code == 415
    bad = httpx.post(f"{endpoint}/v1/completions", content="x" * 2**21, headers={"content-type": "application/json"})
    assert bad.status_code == 413


@pytest.mark.cluster
@pytest.mark.usefixtures("stage")
def test_serve_that_runs_elsewhere_is_not_taken_for_ours(settings, storage):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Serve already runs on this cluster, and not at .*:{port}"):
            deploy(replace(settings, port=port), TRACKING, str(storage), "damaged")


def test_logs_stay_beside_the_storages_outputs_if_it_is_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert logs_folder("runs") == str(tmp_path / "runs" / "logs")
    assert logs_folder("s3://bucket/edlm") is None


def test_only_addresses_of_this_machine_are_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.0.1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))


def test_a_server_on_all_addresses_is_reached_on_its_own():
    assert url(Serving(host="0.0.0.0", port=81, open=True)) == "http://127.0.0.1:81"
    assert url(Serving(host="::1", port=81)) == "http://[::1]:81"


@pytest.mark.parametrize(
    ("settings", "output"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 is not a loopback address, and no API key would be required"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas: 3 is more than serving.max_replicas, 2"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica: 1.5; give a fraction below 1, or a whole number"),
    ],
)
def test_settings_that_contradict_one_another_are_named(settings, output):
    with pytest.raises(ConfigurationError, match=output):
        parse(Serving, settings)


def test_beyond_this_machine_the_endpoint_asks_for_keys_or_states_that_it_is_open():
    assert Serving(host="0.0.0.0", key_file="/etc/edlm/keys").host == Serving(host="0.0.0.0", open=True).host


@pytest.mark.parametrize(
    ("user_config", "output"),
    [
        (None, "version, uri and digest of a model are needed, got None"),
        ({"version": "1", "uri": "file:///x"}, "user_config: digest: missing"),
        ({"version": "1", "uri": "file:///x", "digest": "12"}, "user_config: digest"),
        ({"version": "1", "uri": "file:///x", "digest": "a" * 64, "alias": "champion"}, "alias: unknown key"),
    ],
)
def test_a_replica_takes_a_whole_version_and_no_alias(user_config, output):
    with pytest.raises(ConfigurationError, match=output):
        target_version(user_config)


def test_without_limits_in_rays_proxy_only_this_machine_is_listened_to(monkeypatch):
    monkeypatch.delenv(CALLBACK, raising=False)
    require_intake("127.0.0.1")
    with pytest.raises(ConfigurationError, match=f"{CALLBACK}=cluster.serving.proxy.middlewares was not set"):
        require_intake("0.0.0.0")


def test_where_serve_listens_beyond_this_machine_its_settings_do_not_count(monkeypatch):
    """Another application may have started Serve there, or `http_options.host` says so, and `serving.host` does not."""
    monkeypatch.setenv(CALLBACK, INTAKE)
    require_guard(Serving(), "127.0.0.1")
    require_guard(Serving(open=True), "0.0.0.0")
    require_guard(Serving(key_file="/etc/edlm/keys"), "0.0.0.0")
    with pytest.raises(ConfigurationError, match=r"serving.host: 127.0.0.1, but Serve listens on 0.0.0.0.*key_file"):
        require_guard(Serving(), "0.0.0.0")
