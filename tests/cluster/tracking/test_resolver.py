"""A registered model is found by its name, in the registry that the environment names."""

import re
from pathlib import Path

import pytest

import edlm
from cluster.tracking.resolver import resolve
from edlm.config import ConfigurationError
from edlm.inference.loading import BundleLocation
from edlm.storage import committed, publish
from tests.bundles import make_bundle
from tests.paths import PROJECT
from tests.tracking_database import open_copied_tracking


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A storage root, with two versions of one model in its registry."""
    root = tmp_path_factory.mktemp("home")
    runs = open_copied_tracking(root)
    run_id = runs.settled(None, "register")
    for number in "12":
        folder = make_bundle(root / number)
        publish(folder, str(folder), {"number": number})
        digest = committed(str(folder)).digest
        runs.registry.register("edlm-tiny", str(folder), run_id, "champion", digest)
    return root


@pytest.fixture(autouse=True)
def environment(home, monkeypatch) -> None:
    monkeypatch.setenv("EDLM_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("name", "number"), [("edlm-tiny@champion", "2"), ("models:/edlm-tiny@champion", "2"), ("models:/edlm-tiny/1", "1")]
)
def test_a_registered_model_is_loaded_by_its_name(home, name, number):
    model = edlm.load(name)
    assert (model.name, model.version) == ("tiny", number)
    assert model.generate("ab", seed=1).text == edlm.load(home / number / "bundle").generate("ab", seed=1).text


def test_the_registry_of_mlflows_own_variable_comes_first(home, tmp_path, monkeypatch):
    monkeypatch.setenv("EDLM_HOME", str(tmp_path))
    with pytest.raises(
        ConfigurationError,
        match=r"no database .*; run `make run` first, or set EDLM_HOME to the folder that it wrote to$",
    ):
        resolve("models:/edlm-tiny@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    folder = home / "2" / "bundle"
    actual = resolve("models:/edlm-tiny@champion")
    assert actual == BundleLocation(f"file://{folder}", committed(str(folder)).digest, "2")


def test_the_readmes_lines_run(capsys):
    block = re.search(r"## From Python\n.*?```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    exec(compile(block[1], "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 5 + 1  # a text, three, a score's lines, a stream


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("edlm-tiny@chief", r"'edlm-tiny' has no alias 'chief' \(aliases: champion -> version 2\)"),
        ("other@champion", r"no model 'other' is registered \(registered: edlm-tiny\)"),
        ("models:/edlm-tiny/3", r"'edlm-tiny' has no version 3 \(versions: 1, 2\)"),
        ("models:/edlm-tiny", "models:/edlm-tiny is no registered model; write models:/NAME@ALIAS"),
        ("models://edlm-tiny@champion", "is no registered model; write"),
    ],
)
def test_a_model_that_is_not_registered_is_reported_with_those_that_are(name, message):
    with pytest.raises(ConfigurationError, match=message):
        edlm.load(name)
