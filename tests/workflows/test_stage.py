"""What a command says of a mistake that its user can mend: one line; a real fault keeps its traceback."""

import re

import pytest

from cluster.http.middleware.api_keys import BadKeyFile
from edlm.config import ConfigurationError
from edlm.storage import StorageError, write_text
from tests.small_disk import small_disk
from workflows.stage import StageFailed, user_errors


@pytest.mark.parametrize("kind", [ConfigurationError, BadKeyFile, StorageError, StageFailed])
def test_what_a_user_can_mend_is_one_line_and_status_1(kind, capsys):
    with pytest.raises(SystemExit) as ended, user_errors():
        raise kind("the way out")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the way out\n"


@pytest.mark.parametrize("fault", [ValueError("x"), KeyError("x"), OSError("x")])
def test_a_real_fault_keeps_its_traceback(fault):
    with pytest.raises(type(fault)) as raised, user_errors():
        raise fault
    assert raised.value is fault


def test_a_full_disk_is_one_line(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "64k") as disk, pytest.raises(SystemExit) as ended, user_errors():
        write_text(f"{disk}/settings.yaml", "x" * 2**17)
    assert ended.value.code == 1
    assert re.fullmatch(r"error: a disk is full \(No space left on device\); make room .*\n", capsys.readouterr().err)
