"""A machine that cannot compile is refused with what to install, where torch or Triton would fail later."""

import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.cpp_builder import cpp_compiler_search, get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from edlm.compilers import missing_to_compile, require_compiler
from edlm.config import ConfigurationError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


@pytest.fixture
def commands(monkeypatch, tmp_path) -> Path:
    """The folder of all commands, at first none; no variable names a compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def install(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (
            "cpu",
            r"'cpu' .* lacks a C\+\+ compiler, g\+\+: .* apt-get install g\+\+\), or name .* the variable CXX; or set",
        ),
        (
            "cuda",
            r"'cuda' .* lacks a C compiler, gcc or clang: .* apt-get install gcc\), or name .* the variable CC; or",
        ),
    ],
)
def test_without_a_compiler_the_error_says_which_to_install(commands, device, expected):  # noqa: ARG001
    with pytest.raises(ConfigurationError, match=expected):
        require_compiler(torch.device(device))


@pytest.mark.parametrize("name", ["g++", "clang++", "c++"])
def test_the_cpp_compilers_that_count_are_those_that_torch_finds(commands, name):
    install(commands, name)
    cpp_compiler_search.cache_clear()
    try:
        found = get_cpp_compiler() == name
    except InvalidCxxCompiler:
        found = False
    finally:
        cpp_compiler_search.cache_clear()
    assert (missing_to_compile("cpu") is None) == found


@pytest.mark.parametrize("name", ["gcc", "clang", "cc"])
def test_the_c_compilers_that_count_are_those_that_triton_finds(commands, name):
    build = pytest.importorskip("triton.runtime.build")._build
    install(commands, name)
    try:
        found = bool(build("x", "x.c", str(commands), [], [], [], []))
    except RuntimeError as error:
        assert "C compiler" in str(error)  # noqa: PT017
        found = False
    assert (missing_to_compile("cuda") is None) == found


@pytest.mark.parametrize(("device", "variable"), [("cpu", "CXX"), ("cuda", "CC")])
def test_a_compiler_that_a_variable_names_counts_instead_of_the_others(commands, monkeypatch, device, variable):
    monkeypatch.setenv(variable, "another")
    for name in ("g++", "gcc"):
        install(commands, name)
    assert "compiler, another: install it" in str(missing_to_compile(device))
    install(commands, "another")
    assert missing_to_compile(device) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_the_headers_of_python_none_can_be_compiled(commands, monkeypatch, device):
    for name in ("g++", "gcc"):
        install(commands, name)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(commands))
    assert str(missing_to_compile(device)) == (
        f"{commands}/Python.h: install Python's headers (Debian: apt-get install python3-dev)"
    )


def test_only_a_gpu_needs_triton(commands, monkeypatch):
    for name in ("g++", "gcc"):
        install(commands, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert missing_to_compile("cpu") is None
    assert "Triton: install torch for CUDA" in str(missing_to_compile("cuda"))
