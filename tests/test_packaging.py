"""What `pip install` puts where: a wheel of edlm alone, and a checkout whose folder is on the path."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
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


PROJECT_TABLE = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> set[str]:
    """The distributions that the base and these extras name, with those of the extras that they name."""
    lines = [
        *PROJECT_TABLE["dependencies"],
        *(line for e in extras for line in PROJECT_TABLE["optional-dependencies"][e]),
    ]
    found = {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines}  # type: ignore[index]
    inner = {extra for line in lines if line.startswith("edlm[") for extra in line[5:].partition("]")[0].split(",")}
    return (found | (declared(*inner) if inner else set())) - {"edlm"}


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


modules_distributions = functools.cache(packages_distributions)


def imported(folder: Path) -> dict[str, str]:
    """The top-level modules that files of a folder import, but Python's and the project's own, with one such file."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: str(path.relative_to(PROJECT)) for name in names}
    project = {"edlm", "cluster", "workflows", "tests", "docs", *(path.stem for path in folder.rglob("*.py"))}
    return {name: path for name, path in found.items() if name not in project | sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("edlm/client", ()),
        ("edlm", ("models", "hf", "lm-eval", "s3")),
        ("cluster", ("cluster", "hf")),
        ("workflows", ("cluster", "hf")),
        ("tests", ("test",)),
        ("docs", ("docs",)),
    ],
)
def test_every_package_that_is_imported_is_declared_by_an_extra(folder, extras):
    # Of the one version that pydantic asks for, and that torch's builds for CUDA ask for.
    known = declared(*extras) | {"pydantic-core", "triton"}
    distributions = modules_distributions()
    undeclared = {
        name: path
        for name, path in imported(PROJECT / folder).items()
        if not known & {normalised(distribution) for distribution in distributions.get(name, [name])}
    }
    assert undeclared == {}


def test_no_page_and_no_error_installs_from_an_index_where_the_name_may_be_another_projects():
    pages = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "docs").rglob("*.ipynb")]
    sources = [path for package in ("edlm", "cluster", "workflows") for path in (PROJECT / package).rglob("*.py")]
    from_index = re.compile(r"pip install (?:-\S+ )*[\\\"']*edlm")
    assert from_index.search('pip install "edlm[models]"')
    wrong = [str(path) for path in (*pages, *sources) if from_index.search(path.read_text(encoding="utf-8"))]
    assert wrong == []
