"""What `pip install` puts where: a wheel of edlm alone, and a checkout whose folder is on the path."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster.http.local import serving
from edlm.inference.generator import open_bundle
from tests.bundles import make_bundle
from tests.paths import PROJECT
from tests.wheels import build_wheels

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
from edlm.client import Settings
from edlm.client.types import Choice, State
assert edlm.__file__.startswith(sys.argv[1]), edlm.__file__
with edlm.Client(sys.argv[2]) as client:
    settings = Settings(steps=6, candidates=3)
    with client.stream("ab", max_tokens=20, seed=5, settings=settings, denoising=True) as stream:
        events = list(stream)
    whole = client.complete("ab", max_tokens=20, seed=5, settings=settings).choices[0].text
assert "".join(event.text for event in events if isinstance(event, Choice)) == whole
assert any(isinstance(event, State) for event in events)
print(edlm.__version__, len(whole))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the editable wheel, as the build backend makes them for pip."""
    folder = tmp_path_factory.mktemp("packaging")
    build_wheels(folder)
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


def test_the_client_of_a_wheel_streams_with_only_the_base_dependencies(built, tmp_path):
    site = unpacked(built / "wheel")
    with serving(open_bundle(make_bundle(tmp_path)), "1/local") as service:
        client = [sys.executable, "-c", CLIENT_ALONE, str(site), service.url]
        done = subprocess.run(client, cwd=site, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (metadata,) = site.glob("*.dist-info")
    version, letters = done.stdout.split()
    assert (metadata.name, letters) == (f"edlm-{version}.dist-info", "20")
