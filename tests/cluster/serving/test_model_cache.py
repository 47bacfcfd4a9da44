"""Model cache: a model is copied once, verified after any change, and then needs its storage no more."""

import shutil
from pathlib import Path

import pytest

from cluster.config import Serving
from cluster.serving.model_cache import cached_model, model_cache
from cluster.tracking.model_version import ModelVersion
from edlm.config import ConfigurationError
from edlm.local_cache import LocalCache
from edlm.storage import publish

SOURCES = Serving().sources


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"12345")
    return folder


@pytest.fixture
def cache(tmp_path) -> LocalCache:
    return LocalCache(tmp_path / "cache")


def registered(folder: Path, number: int = 1) -> ModelVersion:
    return ModelVersion(str(number), f"file://{folder}", publish(folder, str(folder)).digest)


def weights(version: ModelVersion, cache: LocalCache) -> bytes:
    with cached_model(version, cache, SOURCES) as folder:
        return (folder / "weights").read_bytes()


def test_a_model_is_there_though_its_storage_is_gone(model, cache):
    version = registered(model)
    weights(version, cache)
    shutil.rmtree(model)
    assert weights(version, cache) == b"12345"


def test_a_damaged_copy_is_brought_again_and_never_used(model, cache):
    version = registered(model)
    weights(version, cache)
    (cache.folder / version.digest / "weights").write_bytes(b"12346")
    assert weights(version, cache) == b"12345"
    (cache.folder / version.digest / "weights").write_bytes(b"12346")
    shutil.rmtree(model)
    with pytest.raises(ValueError, match="holds no committed output"):
        weights(version, cache)


def test_what_another_registration_left_there_is_refused(model, cache):
    version = registered(model)
    (model / "weights").write_bytes(b"other")
    other = registered(model)
    with pytest.raises(ValueError, match=f"registered with digest {version.digest}, .* holds digest {other.digest}"):
        weights(version, cache)


def test_a_copy_under_anothers_name_is_not_taken_for_it(model, cache, tmp_path):
    version = registered(model)
    weights(version, cache)
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "weights").write_bytes(b"evil!")
    publish(forged, str(forged))
    shutil.rmtree(cache.folder / version.digest)
    shutil.copytree(forged, cache.folder / version.digest)
    assert weights(version, cache) == b"12345"


def test_the_cache_is_where_it_is_configured_or_that_of_all_copies(monkeypatch):
    monkeypatch.setenv("EDLM_CACHE", "/fast/cache")
    assert model_cache("/var/edlm").folder == Path("/var/edlm")
    assert model_cache(None).folder == Path("/fast/cache")


def test_a_model_in_a_place_that_is_not_allowed_is_not_read_even_if_it_is_cached(model, cache):
    version = registered(model)
    weights(version, cache)
    with (
        pytest.raises(ConfigurationError, match=r"serving\.sources: the model lies at file://"),
        cached_model(version, cache, ["s3://models"]),
    ):
        pass
