"""Numbers for a GPU are drawn by the kernel where it can run, and by torch's operators elsewhere."""

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from edlm import kernel_choice, rng

choose = kernel_choice.rng_kernel_for.__wrapped__
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


@pytest.fixture
def machine(monkeypatch, tmp_path) -> pytest.MonkeyPatch:
    """A machine with the headers of Python and a C compiler."""
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", sys.executable)
    return monkeypatch


def test_the_kernel_draws_on_cuda(machine):  # noqa: ARG001
    assert choose("cuda").__module__ == "edlm.rng_kernel"


@pytest.mark.parametrize("device_type", ["cpu", "mps", "pretended"])
def test_no_kernel_draws_on_other_devices(machine, device_type):  # noqa: ARG001
    assert choose(device_type) is None


def test_no_kernel_draws_without_triton(machine):
    machine.setattr("importlib.util.find_spec", lambda _: None)
    assert choose("cuda") is None


def test_no_kernel_draws_without_a_c_compiler(machine):
    machine.delenv("CC")
    assert choose("cuda") is None


def test_no_kernel_draws_without_the_headers_of_python(machine, tmp_path):  # noqa: ARG001
    (tmp_path / "Python.h").unlink()
    assert choose("cuda") is None


def test_the_kernel_that_is_chosen_draws(monkeypatch):
    monkeypatch.setattr(rng, "rng_kernel_for", {"cuda": lambda *given: given}.get)
    with FakeTensorMode():
        key = torch.empty(5, dtype=torch.int64, device="cuda")
    assert rng._draw_on_device(key, (7,), torch.float64) == (key, 7, torch.float64)
    words = torch.arange(5)
    assert rng._draw_on_device(words, (7,), torch.float64).shape == (5, 7)
