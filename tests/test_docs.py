"""The documentation site builds strictly: every link, anchor and page of the navigation exists."""

import re
from collections.abc import Iterator
from typing import get_args, get_type_hints

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from cluster.serving.deploy import Arguments
from cluster.serving.replica import Wanted
from edlm.config import _classes
from tests.places import PROJECT
from workflows.benchmark import SampleBenchmark, ServeBenchmark
from workflows.benchmarking.trained import Trained
from workflows.experiment import Experiment
from workflows.promote import Promote

REMOTE = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href|srcset)=\"?(?:https?:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(folder)))  # strict: a warning of mkdocs ends it
    return folder


def test_no_page_of_the_site_loads_anything_from_the_network(site):
    pages = [page for page in site.rglob("index.html") if "benchmarks" not in page.parts]
    assert len(pages) > 20
    loaded = {page.relative_to(site).as_posix(): REMOTE.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert {page: tags for page, tags in loaded.items() if tags} == {}


def test_the_configuration_reference_names_every_setting_with_its_help(site):
    page = (site / "configuration/index.html").read_text(encoding="utf-8")
    for cls in reachable(Experiment):
        section = re.search(rf'<h2 id="{cls.__name__.lower()}">.*?(?=<h2 |</article>)', page, re.DOTALL)
        assert section, f"no section of {cls.__name__}"
        for name, field in cls.__pydantic_fields__.items():
            assert f"<td><code>{name}</code></td>" in section[0], f"{cls.__name__}.{name}"
            first_word = (field.description or "").split()[:1]
            assert all(word.strip("`") in section[0] for word in first_word)


def test_every_setting_has_a_help_text():
    silent = {
        f"{cls.__name__}.{name}"
        for root in (Experiment, Arguments, Wanted, Promote, SampleBenchmark, ServeBenchmark, Trained)
        for cls in reachable(root)
        for name, field in cls.__pydantic_fields__.items()
        if not field.description and not (name == "kind" and len(get_args(field.annotation)) == 1)
    }
    assert silent == set()


def reachable(cls: type, seen: set[type] | None = None) -> Iterator[type]:
    seen = {cls} if seen is None else seen
    yield cls
    for kind in get_type_hints(cls).values():
        for inner in _classes(kind):
            if inner not in seen:
                seen.add(inner)
                yield from reachable(inner, seen)


def test_the_http_reference_names_every_route_and_the_python_reference_the_methods_of_classes(site):
    http = (site / "api/http/index.html").read_text(encoding="utf-8")
    assert all(f">{route}<" in http for route in ("POST /v1/completions", "GET /readyz"))
    python = (site / "api/edlm.sampling/index.html").read_text(encoding="utf-8")
    assert 'id="edlm.sampling.sampler.Sampler.step"' in python
