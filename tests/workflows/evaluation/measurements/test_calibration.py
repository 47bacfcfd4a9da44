"""The area under the curve, and the bins of a reliability diagram."""

import pytest
import torch

from workflows.evaluation.measurements.calibration import auc, reliability


def test_the_area_counts_pairs_in_the_right_order_and_half_of_the_ties():
    data, drafts = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 2.0, -1.0]).double()
    assert auc(data, drafts) == pytest.approx((2 + 1.5) / 6)
    assert auc(data, -data.flip(0) + 10) == 1.0


def test_bins_weight_both_sides_equally_whatever_their_sizes():
    even = reliability(torch.zeros(3).double(), torch.zeros(9).double())
    assert even == [{"predicted": 0.5, "observed": pytest.approx(0.5), "count": 12}]
    apart = reliability(torch.full((2,), -9.0).double(), torch.full((5,), 9.0).double())
    assert [bin["observed"] for bin in apart] == [0.0, 1.0]
