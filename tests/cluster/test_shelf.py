"""The shelf: a model is copied once, never trusted, and needs its storage no more."""

import shutil
from pathlib import Path

import pytest

from cluster.registry import ModelVersion
from cluster.shelf import KEPT, shelf, take
from edlm.storage import publish


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
    place = take(version, tmp_path / "shelf")
    shutil.rmtree(model)
    assert take(version, tmp_path / "shelf") == place
    assert (place / "weights").read_bytes() == b"12345"


def test_a_damaged_copy_is_brought_again_and_never_used(model, tmp_path):
    version = registered(model)
    place = take(version, tmp_path / "shelf")
    (place / "weights").write_bytes(b"12346")
    assert (take(version, tmp_path / "shelf") / "weights").read_bytes() == b"12345"
    (place / "weights").write_bytes(b"12346")
    shutil.rmtree(model)
    with pytest.raises(ValueError, match="holds nothing that is committed"):
        take(version, tmp_path / "shelf")


def test_what_another_registration_left_there_is_refused(model, tmp_path):
    version = registered(model)
    (model / "weights").write_bytes(b"other")
    other = registered(model)
    with pytest.raises(ValueError, match=f"registered with digest {version.digest}, .* holds digest {other.digest}"):
        take(version, tmp_path / "shelf")


def test_a_copy_under_anothers_name_is_not_taken_for_it(model, tmp_path):
    version = registered(model)
    place = take(version, tmp_path / "shelf")
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "weights").write_bytes(b"evil!")
    publish(forged, str(forged))
    shutil.rmtree(place)
    shutil.copytree(forged, place)
    assert (take(version, tmp_path / "shelf") / "weights").read_bytes() == b"12345"


def test_the_models_used_last_are_kept(model, tmp_path):
    taken = []
    for number in range(KEPT + 3):
        (model / "weights").write_bytes(bytes(number))
        taken.append(take(registered(model, number), tmp_path / "shelf"))
    assert [place.is_dir() for place in taken] == [False] * 3 + [True] * KEPT


def test_the_shelf_is_where_it_is_configured_or_the_users_own():
    assert shelf("/var/edlm") == Path("/var/edlm")
    assert shelf(None).name.startswith("edlm-cache-")
