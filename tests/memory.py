"""How much memory a piece of work takes at most, beside what its process already holds.

Not by `ru_maxrss`: a process inherits the peak of the one that starts it, and pytest's own would hide every growth.
"""

import re
from collections.abc import Callable
from pathlib import Path


def status_mib(name: str) -> float:
    """Return a figure of this process, such as VmRSS (resident now) or VmHWM (its peak), in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[1]) / 1024  # type: ignore[index]


def growth_mib(work: Callable[[], object]) -> float:
    """Return the peak of this process until `work` has ended, less what was resident before."""
    before = status_mib("VmRSS")
    work()
    return status_mib("VmHWM") - before
