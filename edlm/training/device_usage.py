"""Use that a training makes of its devices: model FLOP per second, and their share of the peak by data sheet (MFU)."""

from dataclasses import dataclass

import torch

# Of NVIDIA's data sheets, dense: bfloat16 with tensor cores, float32 without TensorFloat-32, which this project never
# switches on.
PEAKS = {
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "B200": {"bfloat16": 2250e12, "float32": 75e12},
    "L40S": {"bfloat16": 362e12, "float32": 91.6e12},
}
"""FLOP per second; of the variants with SXM sockets, where there are several."""
NAMES = {
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-PCIE-40GB": "A100",  # as fast at its peak, unlike other cards for PCIe
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "NVIDIA L40S": "L40S",
}
"""What CUDA calls them; a name with more words is of another device, or of a part of one."""


def peak_flop_per_second(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP per second of a device; None if it is not known, such as that of a CPU."""
    if device.type != "cuda":
        return None
    known = NAMES.get(torch.cuda.get_device_name(device))
    return None if known is None else PEAKS[known][precision]


@dataclass(frozen=True)
class DeviceUsage:
    """What is known of a training for its metrics."""

    flop: int | None
    """Model FLOP of a step on all devices together; None if they are not known."""
    peak: float | None
    """FLOP per second of all devices together; None if they are not known."""

    def of(self, seconds: float) -> dict[str, float]:
        """Return the metrics of a step of so many seconds, as far as they are known."""
        if self.flop is None:
            return {}
        rate = self.flop / seconds
        return {"model_flop_per_second": rate} | ({} if self.peak is None else {"mfu": rate / self.peak})
