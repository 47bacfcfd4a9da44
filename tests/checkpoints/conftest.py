"""What a model folder is made of."""

from pathlib import Path

import pytest

from edlm.checkpoints.model_folder import TOKENIZER


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    path = tmp_path / "prepared" / TOKENIZER
    path.parent.mkdir()
    path.write_text('{"kind": "characters"}')
    return path
