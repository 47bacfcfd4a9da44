"""Metrics of use are reported as far as FLOP and peak are known."""

import pytest
import torch

from edlm.planning.devices import DEVICES
from edlm.training.device_usage import NAMES, PEAKS, DeviceUsage, peak_flop_per_second


def test_mfu_is_the_share_of_the_peak():
    assert DeviceUsage(flop=300, peak=200.0).of(3.0) == {"model_flop_per_second": 100.0, "mfu": 0.5}


def test_what_is_not_known_is_not_reported():
    assert DeviceUsage(flop=300, peak=None).of(3.0) == {"model_flop_per_second": 100.0}
    assert DeviceUsage(flop=None, peak=200.0).of(3.0) == {}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_peaks_are_those_of_the_data_sheet_of_this_very_device(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flop_per_second(torch.device("cuda"), "bfloat16") == peak
    assert peak_flop_per_second(torch.device("cpu"), "float32") is None


def test_every_peak_is_found_by_a_name_and_planned_with():
    assert set(PEAKS) == set(NAMES.values()) == set(DEVICES)
    for name, peaks in PEAKS.items():
        assert peaks == {precision: DEVICES[name].flops(precision) for precision in ("bfloat16", "float32")}
