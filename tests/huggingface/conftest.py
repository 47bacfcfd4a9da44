"""Fixtures of networks with code of their makers, which runs in the process of a test and leaves nothing there."""

import sys
from pathlib import Path

import pytest

from edlm.huggingface.remote_code import CONSENT


@pytest.fixture
def marks(tmp_path, monkeypatch):
    """A folder in which the code leaves a mark as it runs; what it is copied to, and consent, end with the test."""
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(CONSENT, "")
    (tmp_path / "marks").mkdir()
    yield tmp_path / "marks"
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def theirs(tmp_path, marks) -> Path:
    """The folder of a network with code of its makers."""
    from tests.huggingface.their_code import save_theirs  # skips, where transformers is not installed

    return save_theirs(tmp_path / "theirs", marks)
