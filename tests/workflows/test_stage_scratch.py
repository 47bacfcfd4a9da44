"""The scratch folder of a stage is where its output need not be copied, and leaves alone what other machines make."""

import tempfile

import pytest
import torch

from edlm.checkpoints.weight_files import write_weights
from edlm.storage import StorageError
from tests.small_disk import small_disk
from workflows.stage_scratch import stage_scratch

STORE, NAME = "memory://outputs", "prepare-0123456789ab"


def test_beside_an_output_on_a_disk_it_is_on_that_disk(tmp_path):
    with stage_scratch(str(tmp_path / "outputs" / NAME)) as folder:
        assert folder.parent == tmp_path / "outputs"


def test_of_an_output_in_a_store_it_is_in_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with stage_scratch(f"{STORE}/{NAME}") as folder:
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_another_machine_makes_is_left_to_it_unless_the_lease_on_its_output_is_held(tmp_path):
    """It looks abandoned: not every shared disk shares locks."""
    for name in (NAME, "pretrain-0123456789ab"):
        folder = tmp_path / f"edlm-stage-{name}-another-x"
        folder.mkdir()
        (folder / ".held").write_text("")
    with stage_scratch(str(tmp_path / NAME)) as mine:
        assert set(tmp_path.iterdir()) == {mine, tmp_path / "edlm-stage-pretrain-0123456789ab-another-x"}


def test_a_full_folder_for_temporary_files_is_named_with_the_setting(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "64k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        message = f"{disk} is full .*set TMPDIR to a folder on a larger disk"
        with pytest.raises(StorageError, match=message), stage_scratch(f"{STORE}/{NAME}") as folder:
            write_weights(folder, {"a": torch.zeros(2**16)})
        assert list(disk.iterdir()) == []
