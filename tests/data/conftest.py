"""Prepared data in a store, and a cache for what is copied of it."""

import uuid
from pathlib import Path

import pytest

from edlm.local_cache import LocalCache
from edlm.storage import publish


@pytest.fixture
def stored(prepared: Path) -> str:
    """The URI of `prepared`, the folder of the file's own tests, in a store."""
    uri = f"memory://{uuid.uuid4().hex}/data"
    publish(prepared, uri)
    return uri


@pytest.fixture
def cache(tmp_path: Path) -> LocalCache:
    return LocalCache(tmp_path / "cache")
