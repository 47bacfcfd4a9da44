"""The manifests in `cluster/deploy` are what Serve and KubeRay take, and agree with themselves and with the code."""

import copy
import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from mlflow.cli import server as mlflow_server
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from cluster.config import Serving
from cluster.http.metrics.dashboard import dashboard
from cluster.http.metrics.instruments import INSTRUMENTS
from cluster.http.middleware.api_keys import APIKeys, add_key
from cluster.runtime.ray_connection import CALLBACK, INTAKE
from cluster.serving.deploy import APPLICATION, BUILDER, SPARE_SECONDS, Arguments, application
from cluster.serving.proxy import middlewares
from edlm.config import ConfigurationError, load, parse
from tests.cluster.asking import eventually
from tests.paths import PROJECT
from workflows.command import experiment_from
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


def test_the_image_installs_what_is_locked_by_digests_and_nothing_else():
    installs = [line for line in text("Dockerfile").splitlines() if "pip install" in line]
    assert [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line] == []
    assert any("--require-hashes --requirement requirements.lock" in line for line in installs)
    (lock,) = re.findall(r"COPY --chown=edlm (\S+/requirements\.lock) ", text("Dockerfile"))
    assert f"!{lock}" in (PROJECT / ".dockerignore").read_text().splitlines()
    assert f"--output-file {lock} " in (PROJECT / "Makefile").read_text()


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
            changed = secret / "changed"
            changed.write_text((secret / "keys").read_text().splitlines()[1])
            changed.chmod(0o444)
            changed.replace(secret / "keys")  # whole, as Kubernetes replaces a secret's files
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


def ray_cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    """The Ray cluster that a manifest of any kind describes."""
    below = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}.get(manifest["kind"])
    return manifest["spec"] if below is None else manifest["spec"][below]


@pytest.fixture(params=["ray_service.yaml", "ray_job.yaml", "ray_jobs_cluster.yaml"])
def manifest(request) -> dict[str, Any]:
    return yaml.safe_load(text(request.param))


def test_a_manifest_is_of_the_ray_that_was_tested_and_asks_for_its_token(manifest):
    cluster = ray_cluster(manifest)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_manifest_agrees_with_kuberays_schema(manifest):
    validator = jsonschema.Draft7Validator(_schema(manifest["kind"]))
    validator.validate(manifest)
    misspelt = copy.deepcopy(manifest)
    ray_cluster(misspelt)["rayVersions"] = ray_cluster(misspelt).pop("rayVersion")
    with pytest.raises(jsonschema.ValidationError, match="rayVersions"):
        validator.validate(misspelt)


def test_the_job_runs_stages_that_there_are_on_the_workers_that_there_are(monkeypatch):
    spec = yaml.safe_load(text("ray_job.yaml"))["spec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    for command in spec["entrypoint"].split("&&"):
        interpreter, flag, module, *arguments = shlex.split(command)
        assert (interpreter, flag) == ("python", "-m")
        assert importlib.util.find_spec(module) is not None
        monkeypatch.setattr("sys.argv", [module, str(PROJECT / arguments[0]), *arguments[1:]])
        experiment, _ = experiment_from(None)
        assert experiment.cluster.workers <= workers["maxReplicas"]


def test_grafana_shows_every_metric_by_the_name_that_ray_exports():
    shown = json.loads(text("grafana_dashboard.json"))
    assert shown == dashboard(), "run python -m cluster.http.metrics.dashboard > cluster/deploy/grafana_dashboard.json"
    expressions = [target["expr"] for panel in shown["panels"] for target in panel["targets"]]
    for instrument in INSTRUMENTS:
        assert any(re.search(rf"\bray_{instrument.name}(_bucket)?\b", expression) for expression in expressions)


def test_prometheus_looks_where_ray_lists_its_nodes():
    (job,) = yaml.safe_load(text("prometheus.yaml"))["scrape_configs"]
    ((file,),) = (source["files"] for source in job["file_sd_configs"])
    assert Path(file) == Path("/tmp/ray") / PROMETHEUS_SERVICE_DISCOVERY_FILE


def test_the_tracking_server_of_the_unit_is_one_that_mlflow_starts():
    unit = text("mlflow.service").replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, command, *flags = shlex.split(line)
    assert (Path(program).name, command) == ("mlflow", "server")
    context = mlflow_server.make_context("mlflow server", flags)  # raises for a flag that there is not
    assert context.params["backend_store_uri"].startswith("sqlite:////var/lib/")


def test_the_slurm_script_is_bash_and_its_stages_are_there():
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sbatch")], check=True)
    (stages,) = re.findall(r"^stages=\((.*?)\)", text("slurm.sbatch"), re.MULTILINE)
    assert all(importlib.util.find_spec(f"workflows.{stage}") for stage in stages.split())


def _schema(kind: str) -> dict[str, Any]:
    file = SCHEMAS / f"{kind}.v1.json"
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
