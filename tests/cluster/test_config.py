"""Settings of the cluster that do not go together are refused where they are read."""

import pytest

from cluster.config import Cluster
from edlm.config import ConfigurationError, parse


def test_offload_at_stage_0_is_refused_with_what_to_set():
    with pytest.raises(
        ConfigurationError, match=r"cluster\.zero\.offload: true at stage 0.* set cluster\.zero\.stage to 1, 2 or 3"
    ):
        parse(Cluster, {"zero": {"stage": 0, "offload": True}})
    for stage in (1, 2, 3):
        parse(Cluster, {"zero": {"stage": stage, "offload": True}})
