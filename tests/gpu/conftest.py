"""The devices, and the figures that a run on one of them leaves behind."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from edlm.inference.generator import TextGenerator, open_bundle
from tests.gpu.bundle import make_full_bundle
from workflows.benchmarking.pretended_device import NAME, pretended

FIGURES = "EDLM_GPU_FIGURES"  # names the file that figures are added to, one JSON object per line
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
Report = Callable[..., None]


@pytest.fixture(params=[NAME, CUDA])
def device(request) -> Iterator[str]:
    """A device that is not the processor."""
    if request.param == "cuda":
        require_cuda()
        yield "cuda"
        return
    with pretended():
        yield NAME


@pytest.fixture
def cuda() -> str:
    """For what only a real device can show; such tests are marked `gpu`."""
    require_cuda()
    return "cuda"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A bundle with every kind of energy."""
    return make_full_bundle(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="session")
def on(folder) -> Callable[[str], TextGenerator]:
    """The bundle on a device; it is opened once, so leave its weights alone."""
    return functools.cache(lambda device: open_bundle(folder, device))


@pytest.fixture
def on_device(device, on) -> TextGenerator:
    """The bundle on the device; leave its weights alone."""
    return on(device)


@pytest.fixture(scope="session")
def on_cpu(folder) -> TextGenerator:
    """The bundle on the CPU; leave its weights alone."""
    return open_bundle(folder)


@pytest.fixture
def report(request) -> Report:
    """Keep the figures of a test by its name, where a file for them is named."""

    def keep(**figures: float | str) -> None:
        if path := os.environ.get(FIGURES):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"test": request.node.name, **figures}) + "\n")

    return keep


def require_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
