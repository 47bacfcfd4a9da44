"""What `pip install` puts where: a wheel of edlm alone, and a checkout whose folder is on the path."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.places import PROJECT

# The client must work beside the packages of the base dependencies and no others.
CLIENT_ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ray", "numpy", "yaml", "tyro", "fsspec", "cluster", "workflows"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import edlm
from edlm.client import Client, Settings
assert edlm.__file__.startswith(sys.argv[1]), edlm.__file__
print(edlm.__version__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the editable wheel, as the build backend makes them for pip."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in ("edlm", "cluster", "workflows"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source / name)
    build = "from setuptools import build_meta as b; b.build_wheel('../wheel'); b.build_editable('../editable')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return folder


def unpacked(folder: Path) -> Path:
    """The folder with what installing the only wheel of `folder` puts into site-packages."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_installing_adds_edlm_and_no_other_package(built):
    site = unpacked(built / "wheel")
    (metadata,) = site.glob("*.dist-info")
    assert {path.name for path in site.iterdir()} == {"edlm", metadata.name}
    assert (site / "edlm" / "py.typed").is_file()
    modules = {path.relative_to(PROJECT) for path in (PROJECT / "edlm").rglob("*.py")}
    assert modules == {path.relative_to(site) for path in site.rglob("*.py")}


def test_an_editable_installation_puts_the_checkout_on_the_path(built):
    """So Ray's workers, Serve's replicas and commands find `cluster` and `workflows`, wherever they stand."""
    site = unpacked(built / "editable")
    (path,) = site.glob("*.pth")
    assert path.read_text().strip() == str(built / "source")


def test_the_client_of_a_wheel_needs_only_the_base_dependencies(built):
    site = unpacked(built / "wheel")
    done = subprocess.run(
        [sys.executable, "-c", CLIENT_ALONE, str(site)], cwd=site, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (metadata,) = site.glob("*.dist-info")
    assert metadata.name == f"edlm-{done.stdout.strip()}.dist-info"
