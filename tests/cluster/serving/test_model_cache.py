"""Model cache: a model is copied once, verified each time, and then needs its storage no more."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.serving.model_cache import KEPT, cache_folder, cached_model, last_used, require_private
from cluster.tracking.model_version import ModelVersion
from edlm.config import ConfigurationError
from edlm.storage import local_copy, publish


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"12345")
    return folder


def registered(folder: Path, number: int = 1) -> ModelVersion:
    return ModelVersion(str(number), f"file://{folder}", publish(folder, str(folder)).digest)


def test_a_model_is_there_though_its_storage_is_gone(model, tmp_path):
    version = registered(model)
    folder = cached_model(version, tmp_path / "cache")
    shutil.rmtree(model)
    assert cached_model(version, tmp_path / "cache") == folder
    assert (folder / "weights").read_bytes() == b"12345"


def test_a_damaged_copy_is_brought_again_and_never_used(model, tmp_path):
    version = registered(model)
    folder = cached_model(version, tmp_path / "cache")
    (folder / "weights").write_bytes(b"12346")
    assert (cached_model(version, tmp_path / "cache") / "weights").read_bytes() == b"12345"
    (folder / "weights").write_bytes(b"12346")
    shutil.rmtree(model)
    with pytest.raises(ValueError, match="holds no committed output"):
        cached_model(version, tmp_path / "cache")


def test_what_another_registration_left_there_is_refused(model, tmp_path):
    version = registered(model)
    (model / "weights").write_bytes(b"other")
    other = registered(model)
    with pytest.raises(ValueError, match=f"registered with digest {version.digest}, .* holds digest {other.digest}"):
        cached_model(version, tmp_path / "cache")


def test_a_copy_under_anothers_name_is_not_taken_for_it(model, tmp_path):
    version = registered(model)
    folder = cached_model(version, tmp_path / "cache")
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "weights").write_bytes(b"evil!")
    publish(forged, str(forged))
    shutil.rmtree(folder)
    shutil.copytree(forged, folder)
    assert (cached_model(version, tmp_path / "cache") / "weights").read_bytes() == b"12345"


def test_the_models_used_last_are_kept(model, tmp_path):
    taken = []
    for number in range(KEPT + 3):
        (model / "weights").write_bytes(bytes(number))
        taken.append(cached_model(registered(model, number), tmp_path / "cache"))
    assert [folder.is_dir() for folder in taken] == [False] * 3 + [True] * KEPT


def test_the_cache_is_where_it_is_configured_or_a_folder_of_the_user():
    assert cache_folder("/var/edlm") == Path("/var/edlm")
    assert cache_folder(None).name.startswith("edlm-models-")


def test_what_training_has_copied_is_not_cleared(model, tmp_path, monkeypatch):
    """Its copies, too, are folders named by 64 letters."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    publish(model, "memory://data")
    training = local_copy("memory://data")
    for number in range(KEPT + 1):
        (model / "weights").write_bytes(bytes(number))
        cached_model(registered(model, number), cache_folder(None))
    assert (training / "weights").read_bytes() == b"12345"


def test_replicas_evict_concurrently(model, tmp_path):
    version, folder = registered(model), tmp_path / "cache"
    cached_model(version, folder)
    with ThreadPoolExecutor(8) as replicas:
        for _ in range(10):
            for number in range(100):
                (folder / f"{number:064x}").mkdir(exist_ok=True)
            assert (
                list(replicas.map(lambda _: cached_model(version, folder), range(8))) == [folder / version.digest] * 8
            )
    assert len(list(folder.iterdir())) <= KEPT


def test_a_copy_that_another_replica_removes_counts_as_least_recently_used(tmp_path):
    assert last_used(tmp_path / "gone") < last_used(tmp_path)


def test_a_cache_that_other_users_can_access_is_refused(model, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match=rf"serving.cache: {folder} has mode 755.*chmod 700 {folder}"):
        cached_model(registered(model), folder)
    folder.chmod(0o700)
    assert cached_model(registered(model), folder).is_dir()


def test_a_cache_of_another_user_is_refused(tmp_path):
    others = Path("/")
    if os.getuid() == 0:
        others = tmp_path
        os.chown(others, 12345, -1)
    with pytest.raises(
        ConfigurationError, match=rf"serving.cache: {others} belongs to user \d+, but this process runs as user"
    ):
        require_private(others)
