"""Weights leave a pickle as safetensors, whole or not at all; a process of its own reads the pickle."""

import pytest
import torch
from safetensors.torch import load_file

from edlm.config import ConfigurationError
from tests.workflows.importing.checkpoints import ROTARY, Executes, lightning
from workflows.convert import convert, main


def test_the_averages_of_a_training_checkpoint_are_written_and_the_command_says_so(tmp_path, capsys):
    content = lightning()
    torch.save(content, tmp_path / "last.ckpt")
    main([str(tmp_path / "last.ckpt"), str(tmp_path / "out" / "model.safetensors")])
    count = len(content["state_dict"])
    target = tmp_path / "out" / "model.safetensors"
    assert capsys.readouterr().out == f"{target}: {count} tensors, running averages, decay 0.9999\n"
    converted = load_file(target)
    for name, tensor in content["state_dict"].items():
        assert torch.equal(converted[name], tensor if name == ROTARY else 2 * tensor), name
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_a_pickle_with_code_is_refused_without_a_trace(tmp_path, capsys):
    torch.save({"x": Executes(tmp_path / "executed")}, tmp_path / "last.ckpt")
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path / "last.ckpt"), str(tmp_path / "out" / "model.safetensors")])
    assert "last.ckpt: it holds posix.mkdir, and reading these would execute code" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "executed").exists()


def test_a_reading_process_that_fails_is_reported_with_its_last_line(tmp_path, monkeypatch):
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "reader.py").write_text("raise MemoryError('too large')")
    monkeypatch.setattr("workflows.importing.pickled_weights.__file__", str(tmp_path / "reader.py"))
    with pytest.raises(ConfigurationError, match="the process that reads it ended with status 1: MemoryError: too la"):
        convert(tmp_path / "last.ckpt", tmp_path / "out" / "model.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_paths_are_refused_before_anything_is_read(tmp_path):
    existing = tmp_path / "there.safetensors"
    existing.write_text("kept")
    for source, target, message in (
        (tmp_path / "a.ckpt", existing, r"there\.safetensors is there already"),
        (tmp_path / "a.ckpt", tmp_path / "b.bin", r"b\.bin does not end in \.safetensors"),
        (existing, tmp_path / "b.safetensors", r"already; give it to python -m workflows\.import_published"),
        (tmp_path / "a.ckpt", tmp_path / "b.safetensors", r"a\.ckpt is no file"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            convert(source, target)
    assert existing.read_text() == "kept"
