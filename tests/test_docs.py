"""The documentation site builds strictly: every link, anchor and page of the navigation exists, and fits its screen."""

import html
import re
from collections.abc import Iterator
from typing import get_args, get_type_hints

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from playwright.sync_api import sync_playwright

from cluster.serving.deploy import Arguments
from cluster.serving.replica import TargetVersion
from edlm.config import _classes
from tests.browser import chromium
from tests.paths import PROJECT
from workflows.benchmark import ConstraintsBenchmark, SampleBenchmark, ServeBenchmark
from workflows.benchmarking.trained import Trained
from workflows.experiment import Experiment
from workflows.promote import Promote

TOO_WIDE = """() => {
    const page = document.documentElement, tables = [...document.querySelectorAll("div.settings table")];
    const wide = tables.filter(table => table.scrollWidth > table.closest("div.settings").clientWidth);
    return [page.scrollWidth > page.clientWidth, wide.map(table => table.textContent.trim().slice(0, 60))];
}"""
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
            row = re.search(rf"<td><code>{name}</code></td>.*?</tr>", section[0], re.DOTALL)
            assert row, f"{cls.__name__}.{name}"
            meaning = re.findall(r"<td[^>]*>(.*?)</td>", row[0], re.DOTALL)[-1]
            if field.description:
                assert letters(re.sub("<[^>]*>", "", meaning)) == letters(field.description), f"{cls.__name__}.{name}"


def letters(text: str) -> str:
    """What Markdown and HTML leave of a text as it is."""
    return re.sub(r"\W", "", html.unescape(text))


def test_no_page_is_wider_than_the_screen_and_no_setting_leaves_it(site):
    # Of the generated Python reference, whose pages are alike, one.
    pages = [page for page in site.rglob("index.html") if "report" not in page.parts]
    pages = [page for page in pages if "api" not in page.parts or page.parent.name == "edlm"]
    assert (site / "configuration/index.html") in pages
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        view = browser.new_page()
        found = {}
        for page in pages:
            view.goto(page.as_uri())
            for width in (375, 1280):
                view.set_viewport_size({"width": width, "height": 800})
                found[page.parent.relative_to(site).as_posix(), width] = view.evaluate(TOO_WIDE)
        browser.close()
    assert {page: wide for page, wide in found.items() if wide != [False, []]} == {}


def test_functions_stand_apart_from_their_arguments_and_figures_open_at_full_size(site):
    mathematics = (site / "mathematics/index.html").read_text(encoding="utf-8")
    assert re.search(r"<mi>log</mi><mspace [^>]*>(</mspace>)?<msub", mathematics)
    assert not re.search(r"<mi>log</mi><mspace [^>]*>(</mspace>)?<mo[^>]*>\(", mathematics)
    report = (site / "benchmarks/english-27-variants/report/index.html").read_text(encoding="utf-8")
    assert '<a href="../quality-cost.png"><img' in report


def test_examples_of_docstrings_are_code_and_flags_do_not_break(site):
    for page in site.glob("api/*/index.html"):
        assert "<blockquote>" not in page.read_text(encoding="utf-8"), page.parent.name
    assert "edlm-tiny@champion" in (site / "api/edlm/index.html").read_text(encoding="utf-8")
    assert 'class="flag">--dry-run<' in (site / "experiments/index.html").read_text(encoding="utf-8")


def test_every_setting_has_a_help_text():
    silent = {
        f"{cls.__name__}.{name}"
        for root in (
            Experiment,
            Arguments,
            TargetVersion,
            Promote,
            SampleBenchmark,
            ConstraintsBenchmark,
            ServeBenchmark,
            Trained,
        )
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


def test_the_guide_to_constraints_quotes_the_measured_cost():
    measured = (PROJECT / "docs/benchmarks/constraints.md").read_text()
    guide = (PROJECT / "docs/guides/constraints.md").read_text()
    for candidates in (1, 8):
        row = rf"\| [^|]*, k = {candidates} +\|[^|]*\| +([\d.]+) \("
        ratios = sorted(re.findall(row, measured), key=float)
        assert f"{ratios[0]} to {ratios[-1]} times" in guide, candidates
