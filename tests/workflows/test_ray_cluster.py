"""`ray_cluster.yaml` is a file that Ray's launcher takes."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.paths import PROJECT

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "ray_cluster.yaml").read_text(encoding="utf-8"))


def test_the_cluster_agrees_with_rays_own_schema(cluster):
    jsonschema.Draft7Validator(SCHEMA).validate(cluster)


def test_the_launcher_accepts_the_cluster_as_one_machine_and_as_three(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))
    cluster["provider"]["worker_ips"] = ["10.0.0.2", "10.0.0.3"]
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["max_workers"] == 2


def test_the_cloud_that_the_comments_describe_is_accepted_too(cluster):
    cluster["provider"] = {"type": "aws", "region": "us-west-2"}
    cluster["available_node_types"] = {
        "head": {"node_config": {"InstanceType": "m7i.xlarge"}, "resources": {}},
        "gpu": {"node_config": {"InstanceType": "g6.xlarge"}, "resources": {}, "min_workers": 0, "max_workers": 4},
    }
    cluster["head_node_type"] = "head"
    cluster["max_workers"] = 4
    validate_config(prepare_config(cluster))


def test_a_misspelt_key_would_be_noticed(cluster):
    cluster["setup_comands"] = cluster.pop("setup_commands")
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        jsonschema.Draft7Validator(SCHEMA).validate(cluster)


def test_what_the_cluster_copies_is_in_the_project(cluster):
    sources = [source for source in cluster["file_mounts"].values() if not source.startswith("~")]
    assert [source for source in sources if not (PROJECT / source).exists()] == []


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_machine_asks_for_the_token_and_knows_the_storage(cluster, commands):
    start = cluster[commands][-1]
    assert "RAY_AUTH_MODE=token" in start
    assert "EDLM_HOME=" in start
    assert "--object-store-memory=" in start
