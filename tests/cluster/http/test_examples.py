"""Every curl command and every client of README.md and docs/ is run against a served model."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from cluster.http.local import serving
from edlm.inference.generator import open_bundle
from tests.bundles import make_bundle
from tests.cluster.conftest import DIGEST, PATIENT, VERSION
from tests.test_docs_commands import SERVED, Example, examples

CURLS = [
    Example(example.page, example.line, "bash", line)
    for example in examples("bash")
    for line in example.text.replace("\\\n", " ").splitlines()
    if line.startswith("curl ")
]
CLIENTS = [example for example in examples("python") if SERVED in example.text]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    """The URL of a model with the name, and about the canvas, of the one that the pages' reader has trained."""
    bundle = make_bundle(tmp_path_factory.mktemp("served"), "edlm-tiny", length=64)
    with serving(open_bundle(bundle), f"{VERSION}/{DIGEST}", limits=PATIENT) as service:
        yield service.url


@pytest.mark.parametrize("example", CURLS, ids=str)
def test_every_curl_command_is_answered(served, example):
    line = example.text.replace(SERVED, served)
    output = subprocess.run(["bash", "-c", line], capture_output=True, check=True, text=True, timeout=120).stdout
    if '"stream": true' in line:
        assert output.endswith("data: [DONE]\n\n")
        assert '"error"' not in output
    else:
        assert "error" not in json.loads(output)


@pytest.mark.parametrize("example", CLIENTS, ids=str)
def test_every_client_of_a_page_runs_and_prints(served, example, capsys):
    exec(compile(example.text.replace(SERVED, served), str(example), "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_examples_are_those_of_the_pages_that_a_client_reads():
    assert {example.page for example in CURLS} >= {"README.md", "docs/endpoint.md", "docs/serving.md"}
    guides = {"docs/guides/constraints.md", "docs/guides/use-from-python.md"}
    assert {example.page for example in CLIENTS} == {"docs/endpoint.md", *guides}
