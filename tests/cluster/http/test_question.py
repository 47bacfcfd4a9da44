"""The question at the end of the main job: asked with a key where the endpoint wants one, as the printed curl does."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from cluster.http.limits.settings import RequestLimits
from cluster.http.local import serving
from cluster.http.middleware.api_keys import add_key
from tests.cluster.conftest import PATIENT
from workflows.serve import query

ASKED = {"prompt": "the ", "max_tokens": 8, "seed": 1}


@pytest.fixture
def keyed(generator, tmp_path):
    """The URL of a service that asks for a key, and a key."""
    key = add_key(tmp_path / "keys", "anna")
    with serving(generator, "7/0", request_limits=RequestLimits(keys=tmp_path / "keys"), limits=PATIENT) as service:
        yield service.url, key


def test_without_keys_it_is_asked_without(url):
    output = query(url, ASKED, keyed=False, key="of something else")
    assert output.text is not None
    assert output.text.startswith("the ")
    assert "authorization" not in output.curl


def test_with_a_key_it_is_answered_and_the_printed_command_hides_it(keyed):
    url, key = keyed
    output = query(url, ASKED, keyed=True, key=key)
    assert output.text is not None
    assert key not in output.curl
    if shutil.which("curl"):
        assert "the " + printed(output.curl, key)["choices"][0]["text"] == output.text
        assert printed(output.curl, "wrong")["error"]["code"] == "invalid_api_key"


def printed(command: str, key: str) -> dict[str, Any]:
    """What the command prints in a shell whose environment holds the key."""
    environment = {"EDLM_API_KEY": key, "PATH": "/usr/local/bin:/usr/bin:/bin", "no_proxy": "*"}
    asked = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, timeout=60, check=True)
    return json.loads(asked.stdout)


def test_without_a_key_it_is_not_asked_and_states_why(keyed, capsys):
    output = query(keyed[0], ASKED, keyed=True, key=None)
    assert output.text is None
    assert "serving.key_file is set and EDLM_API_KEY is not" in capsys.readouterr().out
    assert output.curl.startswith(f"curl -s {keyed[0]}/v1/completions")


def test_a_key_that_is_none_is_named(keyed):
    with pytest.raises(RuntimeError, match=r"answered 401 .*is what EDLM_API_KEY holds a key of serving.key_file"):
        query(keyed[0], ASKED, keyed=True, key="wrong")
