"""The benchmark of tracking: what it records is what a stage records, and its table has every interval."""

from workflows.benchmarking.tracking import TrackingCost, measure_tracking, tracking_blocks
from workflows.reporting.document import Table


def test_each_call_of_the_loop_is_measured_with_as_many_metrics_as_a_stage_has():
    settings = TrackingCost(steps=6, log_every=(1, 3), width=16, layers=1, length=16, batch=4)
    lines: list[str] = []
    costs = list(measure_tracking(settings, lines.append))
    assert [cost.log_every for cost in costs] == [1, 3]
    for cost in costs:
        assert len(cost.logged) == cost.steps == 6
        assert cost.values == 18
        assert 0 < cost.share < 1
    assert len(lines) == 2
    (table,) = (block for block in tracking_blocks(costs) if isinstance(block, Table))
    assert [row[:2] for row in table.rows] == [("1", "18"), ("3", "18")]
