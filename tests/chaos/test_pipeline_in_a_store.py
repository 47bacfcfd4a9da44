"""The whole pipeline in object stores that are not S3: prepared, trained, registered and served from there."""

import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.tracking.mlflow_server import MlflowServer, mlflow_server
from tests.paths import PROJECT
from tests.store_servers import azure_server, google_server
from tests.workflows.commands import run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]
EXPERIMENT = PROJECT / "tests" / "workflows" / "one_energy.yaml"


@pytest.fixture(scope="module", params=[google_server, azure_server])
def root(request, tmp_path_factory) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("store")) as root:
        yield root


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


def test_a_pipeline_in_the_store_answers_and_is_reused_whole(root, mlflow, tmp_path):
    settings = ("--storage", f"{root}/{uuid.uuid4().hex}", "--tracking.uri", mlflow.uri)
    first = run(tmp_path, "pipeline", *settings, experiment=EXPERIMENT)
    assert "the endpoint answered" in first
    assert "Traceback" not in first
    again = run(tmp_path, "pipeline", *settings, experiment=EXPERIMENT)
    for stage in ("prepare", "pretrain", "finetune-step"):
        assert f"[{stage}] reused" in again
    assert "the endpoint answered" in again
