"""Use that a training makes of its devices: model FLOP per second, and their share of the peak by data sheet (MFU)."""

from dataclasses import dataclass

import torch

# Dense products: bfloat16 with tensor cores, float32 without TensorFloat-32, which this project does not switch on.
PEAKS = {
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "B200": {"bfloat16": 2250e12, "float32": 75e12},
}
"""By a word of the device's name; of the variants with SXM sockets."""


def peak_flop_per_second(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP per second of a device; None if it is not known, such as that of a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for word, peaks in PEAKS.items() if word in name), None)


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
