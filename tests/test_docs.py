"""The documentation site builds strictly: every link, anchor and page of the navigation exists."""

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.places import PROJECT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(folder)))  # strict: a warning of mkdocs ends it
    return folder


def test_every_page_of_the_site_builds_without_the_network(site):
    assert (site / "mathematics/index.html").read_text(encoding="utf-8").count("<h2") >= 5
    remote = [
        (page.relative_to(site).as_posix(), tag)
        for page in site.rglob("*.html")
        if "report" not in page.name
        for tag in page.read_text(encoding="utf-8").split("<")
        if tag.startswith(("script", "link", "img", "iframe")) and "http" in tag.partition(">")[0]
    ]
    assert remote == []
