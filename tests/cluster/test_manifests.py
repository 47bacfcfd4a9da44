"""The manifests in `cluster/deploy` are what Serve and KubeRay take, and agree with themselves and with the code."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from cluster.config import Serving
from cluster.http.middleware.api_keys import APIKeys, add_key
from cluster.runtime.ray_connection import CALLBACK, INTAKE
from cluster.serving.deploy import APPLICATION, BUILDER, SPARE_SECONDS, Arguments, application
from cluster.serving.proxy import middlewares
from edlm.config import ConfigurationError, load, parse
from tests.cluster.asking import eventually
from tests.paths import PROJECT
from workflows.experiment import Experiment

DEPLOY = PROJECT / "cluster" / "deploy"
SCHEMAS = PROJECT.parent / "shared" / "kuberay"


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def service() -> dict[str, Any]:
    return yaml.safe_load(text("ray_service.yaml"))


def serve_config(name: str) -> ServeDeploySchema:
    raw = text(name) if name == "serve.yaml" else service()["spec"]["serveConfigV2"]
    return ServeDeploySchema.model_validate(yaml.safe_load(raw))


@pytest.fixture(params=["serve.yaml", "ray_service.yaml"])
def config(request) -> ServeDeploySchema:
    return serve_config(request.param)


def ours(config: ServeDeploySchema) -> tuple[ServeApplicationSchema, Serving]:
    (application,) = config.applications
    return application, parse(Arguments, application.args).serving


def test_serve_takes_the_config_and_finds_the_application(config):
    application, _ = ours(config)
    assert (application.name, application.route_prefix, application.import_path) == (APPLICATION, "/", BUILDER)


def test_address_and_patience_of_the_proxy_are_those_of_the_endpoint(config):
    _, serving = ours(config)
    assert (config.http_options.host, config.http_options.port) == (serving.host, serving.port)
    assert config.http_options.request_timeout_s == serving.request_timeout_seconds + SPARE_SECONDS


def test_the_shipped_config_serves_what_the_main_job_registers():
    application, serving = ours(serve_config("serve.yaml"))
    tiny = load(Experiment, PROJECT / "workflows" / "experiments" / "tiny.yaml")
    assert (application.args["model"], serving.alias) == (tiny.register.model, tiny.serving.alias)
    assert serving.host == "127.0.0.1"


def test_beyond_its_own_machine_the_shipped_service_asks_for_keys():
    _, serving = ours(serve_config("ray_service.yaml"))
    assert serving.key_file == "/keys/keys"
    with pytest.raises(ConfigurationError, match="no API key would be required"):
        parse(Arguments, {"model": "edlm", "serving": {"host": "0.0.0.0"}})


def test_a_misspelt_setting_is_named_before_anything_starts():
    with pytest.raises(ConfigurationError, match=r"serving.max_replica: unknown key; did you mean 'max_replicas'"):
        application({"model": "edlm", "pinned": True, "serving": {"max_replica": 3}})
    with pytest.raises(ConfigurationError, match="model: missing"):
        application({"pinned": True})


def test_the_limits_of_rays_proxy_are_where_it_is_reported_to_look():
    assert f"{middlewares.__module__}.{middlewares.__name__}" == INTAKE


def test_every_node_limits_bodies_before_it_buffers_them():
    for spec in nodes():
        (container,) = spec["containers"]
        assert {variable["name"]: variable["value"] for variable in container["env"]}[CALLBACK] == INTAKE
    assert f"{CALLBACK}={INTAKE}" in text("Dockerfile")
    assert f"{CALLBACK}={INTAKE}" in text("serve.yaml")


def test_a_pod_lives_as_long_as_its_longest_request():
    _, serving = ours(serve_config("ray_service.yaml"))
    for spec in nodes():
        assert spec["terminationGracePeriodSeconds"] > serving.request_timeout_seconds + SPARE_SECONDS


def test_the_dashboard_of_the_service_requires_a_token():
    cluster = service()["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"  # where KubeRay asks
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("node", [0, 1])
def test_a_key_that_is_withdrawn_from_the_secret_is_none_in_a_pod_that_runs(node, tmp_path):
    """The pod's own commands, with folders of this test, and without its pause."""
    first, later = (container["command"] for container in nodes()[node]["initContainers"])
    secret, keys = tmp_path / "secret", tmp_path / "keys"
    keys.mkdir()
    anna, ben = add_key(secret / "keys", "anna"), add_key(secret / "keys", "ben")
    (secret / "keys").chmod(0o444)
    subprocess.run([_here(part, tmp_path) for part in first], check=True)
    assert APIKeys(keys / "keys").owner(anna) == "anna"
    with subprocess.Popen([_here(part, tmp_path) for part in later]) as running:
        try:
            (secret / "keys").chmod(0o600)
            (secret / "keys").write_text((secret / "keys").read_text().splitlines()[1])
            eventually(lambda: APIKeys(keys / "keys").owner(anna) is None, seconds=20)
            assert APIKeys(keys / "keys").owner(ben) == "ben"
            running.terminate()
            assert running.wait(10) == 0  # else the pod would end only when its grace is over
        finally:
            running.kill()


def _here(part: str, root: Path) -> str:
    """A part of a pod's command, for this machine."""
    part = part.replace("/secret/", f"{root}/secret/").replace("sleep 10", "sleep 0.1")
    return re.sub(r"(?<![\w-])/keys/", f"{root}/keys/", part)


def nodes() -> list[dict[str, Any]]:
    cluster = service()["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"]["spec"], *(g["template"]["spec"] for g in cluster["workerGroupSpecs"])]


def test_the_service_is_of_the_ray_that_was_tested():
    assert service()["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def test_the_service_agrees_with_kuberays_schema():
    validator = jsonschema.Draft7Validator(_schema())
    validator.validate(service())
    misspelt = copy.deepcopy(service())
    misspelt["spec"]["serveConfigV3"] = misspelt["spec"].pop("serveConfigV2")
    with pytest.raises(jsonschema.ValidationError, match="serveConfigV3"):
        validator.validate(misspelt)


def _schema() -> dict[str, Any]:
    file = SCHEMAS / "RayService.v1.json"
    if not file.is_file():
        pytest.skip("KubeRay's schemas are not beside this checkout (shared/kuberay)")
    return _closed(json.loads(file.read_text(encoding="utf-8")), top=True)


def _closed(schema: Any, top: bool = False) -> Any:
    """A Kubernetes schema as JSON schema: unknown keys are mistakes, and what has a default may be missing."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):
        closed.pop("anyOf", None)
        closed["type"] = ["integer", "string"]
    properties = closed.get("properties")
    if isinstance(properties, dict) and closed.get("type") == "object" and not top:
        closed.setdefault("additionalProperties", False)
        if "required" in closed:
            closed["required"] = [name for name in closed["required"] if "default" not in properties.get(name, {})]
    return closed
