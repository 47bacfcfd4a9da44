"""Provenance of a run: the machine, the package versions and the commit."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("torch", "numpy", "ray", "deepspeed", "mlflow", "tokenizers", "matplotlib")
GIB = 2**30


def machine() -> dict[str, str]:
    """Return processor, usable cores, memory, accelerators and operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": str(cores),
        "memory": f"{psutil.virtual_memory().total / GIB:.1f} GiB",
        "accelerators": _accelerators(),
        "system": f"{platform.system()} {platform.release()}",
    }


def packages() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on; not all need be installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@dataclass(frozen=True)
class Commit:
    """Commit of the repository that contains the code, and whether files in it differ from the commit."""

    digest: str
    changed: bool

    def __str__(self) -> str:
        return self.digest + (", with uncommitted changes" if self.changed else "")


def commit() -> Commit | None:
    """Return the commit of the code; None if it is in no repository, or none that can be read."""
    code = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=code, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=code, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return Commit(head.stdout.strip(), bool(changed.stdout.strip())) if head.returncode == 0 else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Return the processor's model as named by Linux; elsewhere its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _accelerators() -> str:
    import torch  # takes seconds

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "none"
