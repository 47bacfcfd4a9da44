"""Settings of the cluster that do not go together are refused where they are read."""

import pytest

from cluster.config import Cluster
from edlm.config import ConfigurationError, parse
from tests.paths import PROJECT


def test_offload_at_stage_0_is_refused_with_what_to_set():
    with pytest.raises(
        ConfigurationError, match=r"cluster\.zero\.offload: true at stage 0.* set cluster\.zero\.stage to 1, 2 or 3"
    ):
        parse(Cluster, {"zero": {"stage": 0, "offload": True}})
    for stage in (1, 2, 3):
        parse(Cluster, {"zero": {"stage": stage, "offload": True}})


@pytest.mark.parametrize(("stage", "offload"), [(3, False), (2, True), (1, True)])
def test_a_folder_of_what_is_offloaded_is_refused_where_nothing_would_be_in_it(stage, offload):
    with pytest.raises(
        ConfigurationError, match=rf"offload_folder: /nvme at stage {stage} with .*{offload}.*stage 3 with".lower()
    ):
        parse(Cluster, {"zero": {"stage": stage, "offload": offload, "offload_folder": "/nvme"}})
    parse(Cluster, {"zero": {"stage": 3, "offload": True, "offload_folder": "/nvme"}})


def test_offload_to_nvme_is_refused_as_the_documentation_says():
    with pytest.raises(ConfigurationError) as refused:
        parse(Cluster, {"zero": {"stage": 3, "offload": "nvme"}}, "cluster")
    message = "zero.offload: Input should be a valid boolean; got 'nvme'"
    assert message in str(refused.value)
    assert f"`cluster.{message}`" in (PROJECT / "docs" / "cluster.md").read_text(encoding="utf-8")
