"""What a test of the playground does: at its server, in front of the denoiser, and on the page."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, expect

from cluster.http.limits.settings import RequestLimits
from cluster.http.local import LIMITS, REQUEST_LIMITS, serving
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import open_bundle
from edlm.inference.request import Limits
from edlm.models.denoiser import Denoiser

LENGTH = 32

WAIT_SECONDS = 30

DIGEST = "0123456789abcdef" * 4

# What the browser itself writes of an answer that is no success, or of a connection that ended.
NETWORK = "Failed to load resource"


class Turnstile:
    """Gate in front of a denoiser that allows single passes, so that a test can look at a text in progress."""

    def __init__(self, network: Denoiser) -> None:
        self._changed, self._passes = threading.Condition(), math.inf
        network.transformer.register_forward_pre_hook(self._wait)

    def _wait(self, *_: object) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._passes > 0)
            self._passes -= 1

    def let(self, passes: float) -> None:
        """Allow `passes` more passes, then block."""
        with self._changed:
            self._passes = passes
            self._changed.notify_all()

    def hold(self) -> None:
        self.let(0)

    def release(self) -> None:
        self.let(math.inf)


@dataclass
class Site:
    """A server, its engine, and the turnstile before its denoiser."""

    url: str
    engine: InferenceEngine
    turnstile: Turnstile

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = httpx.post(self.url + path, json=body, timeout=60, trust_env=False, verify=False)
        assert response.status_code == 200, response.text
        return response.json()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)


@contextmanager
def site_of(folder: Path, request_limits: RequestLimits = REQUEST_LIMITS, limits: Limits = LIMITS) -> Iterator[Site]:
    generator = open_bundle(folder)
    turnstile = Turnstile(generator.denoiser.network)
    with serving(generator, f"7/{DIGEST}", request_limits=request_limits, limits=limits) as service:
        try:
            yield Site(service.url, service.endpoint.engine, turnstile)
        finally:
            turnstile.release()


@dataclass
class Playground:
    """One open page."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    refused: bool = False
    """Whether the test has the server refuse something: the browser complains of that by itself."""

    def at(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def part(self, kind: str, name: str) -> Locator:
        return self.at(f"#run-{kind} [data-part={name}]")

    def fill(self, **fields: object) -> None:
        for name, value in fields.items():
            self.at(f"#{name.replace('_', '-')}").fill(str(value))

    def choose(self, value: str) -> None:
        self.at(f"input[value={value}]").check()

    def run(self, **fields: object) -> None:
        self.fill(**fields)
        self.at("#run-button").click()

    def finish(self, *kinds: str) -> None:
        """Wait until the runs are done."""
        for kind in kinds:
            expect(self.part(kind, "status")).to_contain_text("done")
        expect(self.at("#stop-button")).to_be_disabled()
        expect(self.at("#summary")).not_to_be_empty()

    def complete(self, *kinds: str, **fields: object) -> None:
        self.run(**fields)
        self.finish(*kinds)

    def text(self, kind: str) -> str:
        return self.part(kind, "reading").text_content() or ""

    def states(self, kind: str) -> list[str]:
        """Of each token on the canvas: masked, shown, given, cut or unused."""
        return self.at(f"#run-{kind} .tok").evaluate_all("all => all.map(one => one.dataset.state)")

    def pieces(self, kind: str) -> list[str]:
        return self.at(f"#run-{kind} .tok").all_text_contents()

    def scrub(self, kind: str, step: int) -> None:
        self.part(kind, "scrub").fill(str(step))


Open = Callable[..., Playground]


def request(seed: int, tokens: int, **settings: object) -> dict[str, Any]:
    return {"prompt": "the ", "max_tokens": tokens, "seed": seed, "edlm": settings}


def sent(playground: Playground, act: Callable[[], None], path: str = "/v1/infill") -> dict[str, Any]:
    """What the page asks the server while `act` is done."""
    with playground.page.expect_request(lambda request: request.url.endswith(path)) as asked:
        act()
    return json.loads(asked.value.post_data or "")


@contextmanager
def cancelling(site: Site, texts: int) -> Iterator[None]:
    """Require that the block cancels as many running texts, and wait until the engine has removed them."""
    wait_until(lambda: present(site) == texts)
    before = site.engine.statistics().finished
    yield
    expected = {**before, "cancelled": before.get("cancelled", 0) + texts}
    # Pass by pass, until the server has heard of it.
    wait_until(lambda: site.turnstile.let(1) or site.engine.statistics().finished == expected)
    assert present(site) == 0
    site.turnstile.release()


def present(site: Site) -> int:
    now = site.engine.statistics()
    return now.running + now.waiting


def share(playground: Playground, with_text: bool) -> str:
    playground.at("#share-text").set_checked(with_text)
    playground.at("#share-button").click()
    sheet = playground.at("#sheet")
    if sheet.is_visible():
        playground.page.keyboard.press("Escape")
    return playground.page.url
