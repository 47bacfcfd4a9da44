"""The kernel that draws on a GPU makes the bits of NumPy: interpreted, and compiled for GPUs, on any processor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edlm import rng
from tests.paths import PROJECT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

WORDS = torch.randint(-(2**63), 2**63 - 1, (24,), generator=torch.Generator().manual_seed(0))
KEYS = {
    "one stream": WORDS[:1],
    "without an axis": WORDS[1],
    "extreme words": torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)]),
    "two axes": WORDS.view(4, 6),
    "not contiguous": WORDS.view(4, 6).T,
    "no stream": WORDS[:0],
}
SIZES = (0, 1, 7, 255, 256, 257, 1000)
DTYPES = (torch.float64, torch.int64)
INTERPRETED = f"""
import sys, torch
from edlm.rng_kernel import drawn
keys = torch.load("keys.pt")
numbers = {{(name, m, t): drawn(key, m, t) for name, key in keys.items() for m in {SIZES} for t in {DTYPES}}}
torch.save(numbers, "numbers.pt")
"""
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from edlm.rng_kernel import BLOCK, _draw
for dtype in ("*fp64", "*i64"):
    signature = {"keys": "*i64", "numbers": dtype, "size": "i32", "blocks": "i32", "block_size": "constexpr"}
    source = triton.compiler.ASTSource(_draw, signature, {"block_size": BLOCK})
    for capability in (75, 90, 100):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        print(dtype, capability, len(compiled.asm["cubin"]) > 0)
"""


def run(code: str, folder: Path, **environment: str) -> str:
    """What a fresh interpreter prints: how Triton is to run is decided as a kernel is imported."""
    inherited = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[tuple[str, int, torch.dtype], Tensor]:
    """The numbers of every case, by Triton's interpreter."""
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(KEYS, folder / "keys.pt")
    run(INTERPRETED, folder, TRITON_INTERPRET="1")
    return torch.load(folder / "numbers.pt")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KEYS)
def test_the_kernel_makes_the_bits_of_numpy(interpreted, name, dtype):
    key = KEYS[name]
    for size in SIZES:
        words = key.contiguous().numpy().view(np.uint64)
        expected = rng._numbers(rng._spread(words, (size,)), dtype)
        found = interpreted[name, size, dtype]
        assert found.shape == (*key.shape, size)
        assert found.dtype == dtype
        assert torch.equal(found, expected), size


def test_the_kernel_compiles_to_machine_code_of_gpus(tmp_path):
    compiled = run(COMPILED, tmp_path, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert compiled.split("\n")[:-1] == [
        f"{dtype} {each} True" for dtype in ("*fp64", "*i64") for each in (75, 90, 100)
    ]
