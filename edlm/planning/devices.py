"""Devices that a training is planned for: peak figures of public data sheets, and bandwidths."""

import re
from dataclasses import dataclass

from edlm.config import ConfigurationError
from edlm.models.readout import CHUNK
from edlm.training.device_usage import PEAKS

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Device:
    """One accelerator of a machine."""

    name: str
    bfloat16_flops: float
    """Peak FLOP per second of dense products in bfloat16."""
    float32_flops: float
    """The same in float32, without TF32, which torch does not use unless it is told to."""
    memory_bytes: float
    link_bytes: float
    """Bytes per second to the other devices of its machine, per direction."""
    network_bytes: float
    """Bytes per second to other machines, per device and direction: an assumption about the cluster."""
    per_machine: int = 8
    chunk: int = CHUNK
    """Most logits in memory at once (`edlm.models.readout`)."""

    def flops(self, precision: str) -> float:
        """Return the peak FLOP per second in this precision."""
        return self.bfloat16_flops if precision == "bfloat16" else self.float32_flops

    def bandwidth(self, count: int) -> float:
        """Return the bytes per second at which `count` devices exchange, each sending to the next of a ring."""
        return self.link_bytes if count <= self.per_machine else min(self.link_bytes, self.network_bytes)


def _device(name: str, memory: float, link: float, network: float) -> Device:
    """Return the device of this name with these GB, and GB per second."""
    peaks = PEAKS[name]
    return Device(name, peaks["bfloat16"], peaks["float32"], memory * GB, link * GB, network * GB)


DEVICES = {
    device.name: device
    for device in (
        # NVIDIA's data sheets; NVLink per direction; 400 Gb/s of network per device (A100 and L40S: 200 Gb/s).
        _device("A100", 80, 300, 25),
        _device("H100", 80, 450, 50),
        _device("H200", 141, 450, 50),
        _device("B200", 180, 900, 50),
        _device("L40S", 48, 32, 25),
    )
}


def parse_devices(text: str) -> tuple[int, str]:
    """Return the number and the name in a text such as `64xH100`; raise ConfigurationError for any other form."""
    match = re.fullmatch(r"([1-9]\d*)x(\w+)", text)
    if match is None:
        raise ConfigurationError(f"devices: {text!r} is not NUMBERxNAME, for example 64xH100")
    return int(match[1]), match[2]
