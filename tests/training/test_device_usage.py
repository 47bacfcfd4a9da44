"""Metrics of use are reported as far as FLOP and peak are known."""

import torch

from edlm.training.device_usage import DeviceUsage, peak_flop_per_second


def test_mfu_is_the_share_of_the_peak():
    assert DeviceUsage(flop=300, peak=200.0).of(3.0) == {"model_flop_per_second": 100.0, "mfu": 0.5}


def test_what_is_not_known_is_not_reported():
    assert DeviceUsage(flop=300, peak=None).of(3.0) == {"model_flop_per_second": 100.0}
    assert DeviceUsage(flop=None, peak=200.0).of(3.0) == {}


def test_peaks_are_those_of_the_data_sheet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert peak_flop_per_second(torch.device("cuda"), "bfloat16") == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another")
    assert peak_flop_per_second(torch.device("cuda"), "bfloat16") is None
    assert peak_flop_per_second(torch.device("cpu"), "float32") is None
