"""A model is found by its folder, its URI, or a name that an installed package looks up."""

import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette

import edlm
from cluster.http.local import listening
from edlm.config import ConfigurationError
from edlm.inference.loading import BundleLocation, locate
from edlm.models.execution import Execution
from edlm.storage import StorageError, committed, publish
from tests.bundles import make_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("loading"))


@pytest.fixture
def provider(tmp_path, monkeypatch) -> Path:
    """An installed distribution that looks up names of the scheme `hub`, and its module; one of `lost` has none."""
    site = tmp_path / "site"
    information = site / "provider-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: provider\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[edlm.resolvers]\nhub = provider:resolve\nlost = no_such:resolve\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which would hide that the module has changed at once
    monkeypatch.delitem(sys.modules, "provider", raising=False)
    return site / "provider.py"


def test_a_folder_and_a_uri_give_the_same_model(folder, tmp_path):
    publish(folder, "memory://loading/bundle")
    text = edlm.load(folder).generate("ab", seed=1).text
    assert edlm.load("memory://loading/bundle", cache=tmp_path).generate("ab", seed=1).text == text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [committed("memory://loading/bundle").digest]
    assert edlm.load(f"file://{folder}").generate("ab", seed=1).text == text


def test_a_published_folder_is_verified(tmp_path):
    folder = make_bundle(tmp_path)
    publish(folder, str(folder))
    assert edlm.load(folder).name == "tiny"
    (folder / "bundle.yaml").write_text((folder / "bundle.yaml").read_text() + "\n")
    with pytest.raises(StorageError, match=r"bundle\.yaml"):
        edlm.load(folder)


@pytest.mark.parametrize("load", [edlm.load, edlm.TextGenerator.load])
def test_layers_that_this_machine_cannot_compile_are_refused_before_a_model_is_read(load, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(edlm.ConfigurationError, match=r"lacks a C\+\+ compiler.* or set compiled: false"):
        load("memory://loading/nowhere", execution=Execution(compiled=True))


@pytest.mark.parametrize("kind", ["nothing", "empty", "model"])
def test_what_is_no_bundle_is_reported(tmp_path, folder, kind):
    place = {"nothing": tmp_path / "nowhere", "empty": tmp_path, "model": folder / "denoiser"}[kind]
    expected = {"nothing": "there is no folder .*nowhere; give the"}.get(kind, r"is no bundle \(no bundle.yaml\)")
    with pytest.raises(ValueError, match=expected):
        edlm.load(place)


def test_a_uri_without_a_publication_and_an_unknown_scheme_are_reported():
    with pytest.raises(StorageError, match="memory://loading/nothing is not committed"):
        edlm.load("memory://loading/nothing")
    with pytest.raises(StorageError, match="nowhere:// cannot be read: Protocol not known"):
        edlm.load("nowhere://a/b")


def test_a_package_may_look_up_names_of_its_own(folder, tmp_path, provider):
    publish(folder, "memory://loading/hub")
    digest = committed("memory://loading/hub").digest
    provider.write_text(
        "from edlm.inference.loading import BundleLocation\n"
        "def resolve(uri):\n"
        "    assert uri == 'hub:tiny'\n"
        f"    return BundleLocation('memory://loading/hub', {digest!r}, '3')\n"
    )
    assert edlm.load("hub:tiny", cache=tmp_path / "cache").version == "3"
    provider.write_text(provider.read_text().replace(digest, "0" * 64))
    sys.modules.pop("provider")
    with pytest.raises(ValueError, match=f"has digest {digest}, expected {'0' * 64}"):
        edlm.load("hub:tiny", cache=tmp_path / "cache")


@pytest.mark.usefixtures("provider")
def test_a_resolver_that_is_not_installed_is_named():
    with pytest.raises(ConfigurationError, match=r"lost:x is .* registered model, and no_such is not installed"):
        edlm.load("lost:x")


@pytest.mark.parametrize("name", ["models:/tiny@champion", "tiny@champion"])
def test_without_a_checkout_a_registered_name_states_what_it_needs(monkeypatch, name):
    for module in [module for module in sys.modules if module.partition(".")[0] == "cluster"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cluster", None)
    with pytest.raises(ConfigurationError, match=r"models:/tiny@champion is .* package `cluster` of a checkout"):
        edlm.load(name)


def test_a_folder_is_a_folder_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny@champion").mkdir()
    assert locate("tiny@champion") == BundleLocation("tiny@champion")


def test_the_url_of_a_service_is_told_its_client(tmp_path):
    with (
        listening(Starlette()) as url,  # it has no files
        pytest.raises(ConfigurationError, match=f"{url} is not committed .* ask that with edlm.Client"),
    ):
        edlm.load(url, cache=tmp_path)
