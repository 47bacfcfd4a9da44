"""One browser and one server for all tests of the playground, which run in one process (`tests.conftest`)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from cluster.http.limits.settings import RequestLimits
from edlm.inference.request import Limits
from tests.browser import chromium
from tests.bundles import CHARACTERS, make_bundle
from tests.cluster.http.playground.browsing import LENGTH, NETWORK, WAIT_SECONDS, Open, Playground, Site, site_of


@pytest.fixture(scope="package")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("playground"), "tiny", CHARACTERS, LENGTH)


@pytest.fixture(scope="package")
def shared(bundle) -> Iterator[Site]:
    # Time at the turnstile looks to the engine like slow passes; no request is rejected for it here.
    patient = Limits(patience_seconds=1e6)
    with site_of(bundle, RequestLimits(max_seconds=1e6), patient) as site:
        yield site


@pytest.fixture
def site(shared) -> Iterator[Site]:
    yield shared
    shared.turnstile.release()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Open]:
    """Opens a page at a site; whatever its browser complains of fails the test."""
    with ExitStack() as stack:
        opened: list[Playground] = []

        def open_page(url: str, ready: bool = True, opening: bool = False, **options: Any) -> Playground:
            """Open the page; without `opening` as a link does, so that it does not run by itself."""
            context = stack.enter_context(browser.new_context(**{"reduced_motion": "reduce", **options}))
            context.set_default_timeout(WAIT_SECONDS * 1000)
            playground = Playground(context.new_page())
            opened.append(playground)
            note = playground.complaints.append
            playground.page.on(
                "console", lambda output: note(output.text) if output.type in ("error", "warning") else None
            )
            playground.page.on("pageerror", lambda error: note(str(error)))
            playground.page.on("dialog", lambda dialog: (note(f"a dialog: {dialog.message}"), dialog.dismiss()))
            playground.page.goto(url if opening or "#" in url else f"{url}#still")
            if ready:
                expect(playground.at("#model strong")).to_be_visible()
            return playground

        yield open_page
        for page in opened:
            assert [output for output in page.complaints if not (page.refused and output.startswith(NETWORK))] == []
