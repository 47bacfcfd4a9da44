"""The playground in a real browser, before the real app around a tiny bundle: what a user sees and does."""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from tokenizers import decoders, models

from cluster.http.limits.limits import RequestLimits
from cluster.http.local import LIMITS, REQUEST_LIMITS, serving
from cluster.http.middleware.api_keys import add_key
from edlm.data.tokenizer import Tokenizer
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import open_bundle
from edlm.inference.request import Limits
from edlm.models.denoiser import Denoiser
from tests.bundles import CHARACTERS, make_bundle, make_plain_bundle

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no browser at {CHROMIUM}: install chromium")

LENGTH = 32
WAIT_SECONDS = 30
HOSTILE = "<img src=x onerror=alert(1)>"
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
        response = httpx.post(self.url + path, json=body, timeout=60, trust_env=False)
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("playground"), "tiny", CHARACTERS, LENGTH)


@pytest.fixture(scope="module")
def shared(bundle) -> Iterator[Site]:
    # Time at the turnstile looks to the engine like slow passes; no request is rejected for it here.
    patient = Limits(patience_seconds=1e6)
    with site_of(bundle, RequestLimits(max_seconds=1e6), patient) as site:
        yield site


@pytest.fixture
def site(shared) -> Iterator[Site]:
    yield shared
    shared.turnstile.release()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


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


@pytest.fixture
def visit(browser) -> Iterator[Open]:
    """Opens a page at a site; whatever its browser complains of fails the test."""
    with ExitStack() as stack:
        opened: list[Playground] = []

        def open_page(url: str, ready: bool = True, **options: Any) -> Playground:
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
            playground.page.goto(url)
            if ready:
                expect(playground.at("#model strong")).to_be_visible()
            return playground

        yield open_page
        for page in opened:
            assert [output for output in page.complaints if not (page.refused and output.startswith(NETWORK))] == []


def request(seed: int, tokens: int, **settings: object) -> dict[str, Any]:
    return {"prompt": "the ", "max_tokens": tokens, "seed": seed, "edlm": settings}


def test_the_model_is_named_and_the_settings_are_its_own(site, visit):
    playground = visit(site.url + "/")
    assert playground.at("#model").text_content() == f"tinyversion 7{DIGEST[:12]}canvas of {LENGTH}"
    values = {name: playground.at(f"#{name}").input_value() for name in ("steps", "candidates", "energy", "tokens")}
    assert values == {"steps": "4", "candidates": "2", "energy": "step", "tokens": str(LENGTH * 15 // 16)}


def test_a_model_without_energies_is_shown_by_plain_diffusion_alone(visit, tmp_path):
    with site_of(make_plain_bundle(tmp_path)) as site:
        playground = visit(site.url + "/")
        expect(playground.at('input[name="view"][value="plain"]')).to_be_checked()
        for view in ("both", "edlm"):
            expect(playground.at(f'input[name="view"][value="{view}"]')).to_be_disabled()
        playground.complete("plain", steps=4, tokens=6, seed=3)
        answer = site.answer("/v1/completions", request(3, 6, steps=4))
        assert playground.text("plain") == "the " + answer["choices"][0]["text"]


def test_masks_fall_to_zero_as_the_text_appears(site, visit):
    playground = visit(site.url + "/", reduced_motion="no-preference")
    playground.choose("edlm")
    playground.at("#pace").select_option("live")
    site.turnstile.hold()
    playground.run(steps=8, tokens=24, seed=3)
    masked = []
    for _ in range(4):
        site.turnstile.let(1)
        expect(playground.part("edlm", "passes")).to_have_text(str(len(masked) + 1))
        masked.append(playground.states("edlm").count("masked"))
        assert playground.at("#run-edlm .age0").count() > 0
    assert 24 > masked[0] > masked[1] > masked[2] > masked[3] > 0
    assert playground.states("edlm")[:4] == ["given"] * 4
    site.turnstile.release()
    playground.finish("edlm")
    assert set(playground.states("edlm")) == {"given", "shown"}
    answer = site.answer("/v1/completions", request(3, 24, steps=8))
    assert playground.text("edlm") == "the " + answer["choices"][0]["text"]


def test_two_columns_show_the_same_seed_and_what_each_one_cost(site, visit):
    playground = visit(site.url + "/")
    playground.complete("plain", "edlm", steps=6, candidates=3, tokens=20, seed=5)
    expect(playground.at("#verdict")).to_be_visible()
    answer = {}
    for kind, candidates in (("plain", 1), ("edlm", 3)):
        answer = site.answer("/v1/completions", request(5, 20, steps=6, candidates=candidates))
        assert playground.text(kind) == "the " + answer["choices"][0]["text"]
        assert playground.part(kind, "passes").text_content() == str(answer["edlm"]["denoiser_calls"])
        assert playground.part(kind, "scored").text_content() == str(answer["edlm"]["energy_calls"])
        tokens = site.answer("/v1/tokenize", {"text": playground.text(kind)})["tokens"]
        body = {"tokens": tokens, "seed": 5, "draws": 32, "edlm": {"steps": 1, "candidates": 1}}
        energy = site.answer("/v1/score", body)["energies"]["step"]["nats"]
        assert f"{energy:.2f}".replace("-", "−") in (playground.part(kind, "energy").text_content() or "")
    assert f"scored {answer['edlm']['energy_calls']} candidates" in (
        playground.at("#verdict-text").text_content() or ""
    )
    assert "Plain diffusion finished: 20 tokens" in (playground.at("#summary").text_content() or "")


def test_runs_one_after_the_other_do_not_share_the_server(site, visit):
    playground = visit(site.url + "/")
    playground.at("#order").select_option("apart")
    site.turnstile.hold()
    playground.run(steps=4, tokens=8)
    wait_until(lambda: present(site) == 1)
    assert playground.part("edlm", "status").text_content() == "queued"
    site.turnstile.release()
    playground.finish("plain", "edlm")
    assert "fair clock" not in (playground.at("#verdict-text").text_content() or "")


def test_the_scrubber_replays_each_step_as_it_was(site, visit):
    playground = visit(site.url + "/")
    playground.choose("plain")
    playground.complete("plain", steps=10, tokens=28, seed=8)
    body = request(8, 28, steps=10, candidates=1)
    body["edlm"]["return"] = ["trajectory"]
    unmasked_at = site.answer("/v1/completions", body)["choices"][0]["unmasked_at"]
    for step in range(11):
        playground.scrub("plain", step)
        shown = [state == "shown" for state in playground.states("plain")[4:]]
        assert shown == [at <= step for at in unmasked_at]
        fresh = playground.at("#run-plain .tok").evaluate_all("all => all.map(one => one.matches('.age0'))")[4:]
        assert fresh == [at == step for at in unmasked_at]


def test_keys_step_through_and_play(site, visit):
    playground = visit(site.url + "/")
    playground.complete("plain", "edlm", steps=6, tokens=20)
    playground.at("h1").click()
    keyboard = playground.page.keyboard
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowLeft")
    for kind in ("plain", "edlm"):
        assert playground.part(kind, "scrub").input_value() == "4"
    keyboard.press("ArrowRight")
    assert playground.part("edlm", "scrub").input_value() == "5"
    keyboard.press(" ")
    expect(playground.part("edlm", "status")).to_have_text("done")
    assert playground.part("plain", "scrub").input_value() == "6"


def test_each_resampling_step_shows_its_candidates_and_the_choice(site, visit):
    playground = visit(site.url + "/")
    playground.choose("edlm")
    site.turnstile.hold()
    playground.run(steps=2, candidates=5, tokens=28)
    site.turnstile.let(1)
    groups = playground.at("#run-edlm .group")
    expect(groups.first).to_be_visible()
    for index in range(groups.count()):
        assert groups.nth(index).locator(".bar").count() == 5
        assert groups.nth(index).locator(".bar.picked").count() == 1
    head = playground.at("#run-edlm .scoring .head").text_content() or ""
    assert re.search(r"step 1.*ESS [1-5]\.\d of 5", head)
    site.turnstile.release()
    playground.finish("edlm")


def sent(playground: Playground, act: Callable[[], None], path: str = "/v1/infill") -> dict[str, Any]:
    """What the page asks the server while `act` is done."""
    with playground.page.expect_request(lambda request: request.url.endswith(path)) as asked:
        act()
    return json.loads(asked.value.post_data or "")


def test_clicked_tokens_are_masked_and_written_anew(site, visit):
    playground = visit(site.url + "/")
    playground.complete("plain", "edlm", steps=4, tokens=20, seed=2)
    before, tokens = playground.pieces("edlm"), playground.at("#run-edlm .tok")
    tokens.nth(6).click()
    tokens.nth(9).click()
    tokens.nth(9).click()
    tokens.nth(12).click()
    tokens.nth(15).click(modifiers=["Shift"])
    holes = [6, 12, 13, 14, 15]
    assert [position for position, state in enumerate(playground.states("edlm")) if state == "cut"] == holes
    body = sent(playground, playground.part("edlm", "again").click)
    assert [position for position, token in enumerate(body["tokens"]) if token is None] == holes
    playground.finish("plain", "edlm")
    for kind in ("plain", "edlm"):
        after = playground.pieces(kind)
        assert [after[position] for position in range(24) if position not in holes] == [
            before[position] for position in range(24) if position not in holes
        ]
        assert [position for position, state in enumerate(playground.states(kind)) if state == "shown"] == holes
    assert (
        playground.text("edlm")
        == site.answer("/v1/infill", body | {"stream": False, "stream_options": None})["choices"][0]["text"]
    )


def test_a_drag_masks_a_range_and_all_can_be_kept_or_masked(site, visit):
    playground = visit(site.url + "/")
    playground.choose("edlm")
    playground.complete("edlm", steps=4, tokens=20)
    first, last = (playground.at("#run-edlm .tok").nth(position).bounding_box() for position in (5, 11))
    assert first is not None
    assert last is not None
    mouse = playground.page.mouse
    mouse.move(first["x"] + 4, first["y"] + 8)
    mouse.down()
    mouse.move(last["x"] + 4, last["y"] + 8, steps=6)
    mouse.up()
    assert playground.states("edlm").count("cut") == 7
    playground.part("edlm", "mask-all").click()
    assert set(playground.states("edlm")) == {"cut"}
    playground.part("edlm", "keep-all").click()
    assert set(playground.states("edlm")) == {"given"}
    expect(playground.part("edlm", "again")).to_be_disabled()
    playground.page.keyboard.press("Escape")
    assert set(playground.states("edlm")) == {"given", "shown"}


def test_tokens_are_masked_from_the_keyboard(site, visit):
    playground = visit(site.url + "/")
    playground.choose("edlm")
    playground.complete("edlm", steps=4, tokens=20)
    playground.at("#run-edlm .tok").first.focus()
    keyboard = playground.page.keyboard
    for pressed in ("ArrowRight", "ArrowRight", " ", "Shift+ArrowRight", "ArrowRight", "Enter"):
        keyboard.press(pressed)
    assert [position for position, state in enumerate(playground.states("edlm")) if state == "cut"] == [2, 3, 4]


def test_gaps_are_typed_in_braces(site, visit):
    playground = visit(site.url + "/")
    playground.choose("fill")
    playground.fill(prompt="ab{3}cd{2}")
    body = sent(playground, playground.at("#run-button").click)
    assert body["parts"] == ["ab", 3, "cd", 2]
    playground.finish("plain", "edlm")
    assert re.fullmatch(r"ab...cd..", playground.text("edlm"))
    assert playground.states("edlm").count("given") == 4
    playground.choose("continue")
    assert playground.at("#prompt").input_value() == "the "


LONG = 600  # tokens: more canvases than a test waits for


def test_stop_cancels_both_on_the_server(site, visit):
    playground = visit(site.url + "/")
    site.turnstile.hold()
    playground.run(steps=30, tokens=LONG)
    with cancelling(site, 2):
        site.turnstile.let(4)
        for kind in ("plain", "edlm"):
            expect(playground.part(kind, "passes")).not_to_have_text("–")
        playground.at("#stop-button").click()
        for kind in ("plain", "edlm"):
            expect(playground.part(kind, "status")).to_contain_text("stopped at step")
            assert playground.states(kind).count("masked") > LONG // 2


def test_a_closed_tab_cancels_on_the_server(site, visit):
    playground = visit(site.url + "/")
    site.turnstile.hold()
    playground.run(steps=30, tokens=LONG)
    with cancelling(site, 2):
        playground.page.close()


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


class Hostile:
    """A vocabulary whose words are HTML."""

    def build(self, texts: Sequence[str]) -> Tokenizer:
        rust = tokenizers.Tokenizer(models.WordLevel({HOSTILE: 0, "<b>bold</b>": 1, "\n": 2}, unk_token=HOSTILE))
        rust.decoder = decoders.Fuse()
        return Tokenizer(rust.to_str())


def test_a_token_that_spells_html_stays_text(tmp_path, visit):
    with site_of(make_bundle(tmp_path, "hostile", Hostile(), 12)) as site:
        playground = visit(site.url + "/")
        playground.complete("plain", "edlm", prompt=HOSTILE, tokens=8)
        assert playground.pieces("edlm")[0].replace("·", " ") == HOSTILE
        assert playground.text("edlm").startswith(HOSTILE)
        assert playground.at("img, #runs b").count() == playground.at("#runs .scoring b").count()
        link = share(playground, with_text=True)
        again = visit(link)
        again.finish("plain", "edlm")
        assert again.text("edlm") == playground.text("edlm")
        assert again.at("img").count() == 0


def share(playground: Playground, with_text: bool) -> str:
    playground.at("#share-text").set_checked(with_text)
    playground.at("#share-button").click()
    sheet = playground.at("#sheet")
    if sheet.is_visible():
        playground.page.keyboard.press("Escape")
    return playground.page.url


def test_a_link_gives_the_same_text_and_holds_the_prompt_only_if_ticked(site, visit):
    playground = visit(site.url + "/")
    playground.complete("plain", "edlm", prompt="a secret", steps=5, candidates=3, tokens=18, seed=11)
    without, link = share(playground, False), share(playground, True)
    assert "secret" not in without
    again = visit(link)
    again.finish("plain", "edlm")
    assert [again.text(kind) for kind in ("plain", "edlm")] == [playground.text(kind) for kind in ("plain", "edlm")]
    bare = visit(without)
    expect(bare.at("#notice")).to_contain_text("A link without its text")
    assert bare.at("#seed").input_value() == "11"
    bare.complete("plain", "edlm", prompt="a secret")
    assert bare.text("edlm") == playground.text("edlm")


def test_an_empty_seed_is_drawn_once_for_both_runs_and_is_in_the_link(site, visit):
    playground = visit(site.url + "/")
    playground.complete("plain", "edlm", steps=5, candidates=3, tokens=18, seed="")
    seed = playground.at("#seed").input_value()
    answer = site.answer("/v1/completions", request(int(seed), 18, steps=5, candidates=3))
    assert playground.text("edlm") == "the " + answer["choices"][0]["text"]
    again = visit(share(playground, True))
    again.finish("plain", "edlm")
    assert again.at("#seed").input_value() == seed
    assert [again.text(kind) for kind in ("plain", "edlm")] == [playground.text(kind) for kind in ("plain", "edlm")]


def test_a_link_to_an_edited_text_and_of_another_version(site, visit):
    playground = visit(site.url + "/")
    playground.choose("edlm")
    playground.complete("edlm", steps=4, tokens=18)
    playground.at("#run-edlm .tok").nth(7).click()
    playground.part("edlm", "again").click()
    playground.finish("edlm")
    link = share(playground, True)
    again = visit(link)
    again.finish("edlm")
    assert again.text("edlm") == playground.text("edlm")
    assert again.states("edlm").count("shown") == 1
    other = visit(link.replace("tiny%407", "tiny%406"))
    expect(other.at("#notice")).to_contain_text("made with tiny@6; this server runs tiny@7")


def test_the_curl_line_gives_the_same_text(site, visit):
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    playground = visit(site.url + "/", permissions=["clipboard-read", "clipboard-write"])
    playground.complete("plain", "edlm", prompt='it\'s a "test"', tokens=12, seed=4)
    for kind in ("plain", "edlm"):
        playground.part(kind, "curl").click()
        expect(playground.part(kind, "curl")).to_contain_text("Copied")
        line = playground.page.evaluate("navigator.clipboard.readText()")
        output = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=30).stdout
        assert playground.text(kind).endswith(json.loads(output)["choices"][0]["text"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(site, visit, scheme):
    playground = visit(site.url + "/", viewport={"width": 375, "height": 812}, color_scheme=scheme)
    playground.complete("plain", "edlm")
    expect(playground.at("#verdict")).to_be_visible()
    playground.at("#settings summary").click()
    playground.at("#run-edlm .tok").nth(6).click()
    assert playground.page.evaluate("document.documentElement.scrollWidth") == 375
    nameless = playground.at("input, select, textarea, button").evaluate_all(
        """all => all.filter(one => !one.labels?.length && !one.ariaLabel && !one.getAttribute("aria-labelledby")
                                     && !(one.tagName === "BUTTON" && one.innerText.trim()))
                      .map(one => one.id || one.dataset.part)
                      .filter(name => !["copy", "curl"].includes(name))"""
    )
    assert nameless == []


def test_a_server_that_dies_is_a_lost_connection_and_what_came_stays(bundle, visit):
    command = [sys.executable, "-m", "cluster.http.local", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().partition(";")[0]
            playground = visit(url + "/")
            playground.refused = True
            playground.choose("edlm")
            playground.run(steps=64, tokens=3000)
            expect(playground.at("#run-edlm .shown").first).to_be_visible()
        finally:
            server.kill()
    expect(playground.part("edlm", "status")).to_have_text("connection lost")
    expect(playground.part("edlm", "notice")).to_contain_text("The connection was lost")
    states = playground.states("edlm")
    assert states.count("shown") > 0
    assert states.count("masked") > 0
    playground.part("edlm", "notice").get_by_role("button", name="Run again").click()
    expect(playground.at("#notice")).to_contain_text("The server cannot be reached")


def test_a_key_is_asked_for_and_held_in_memory_only(bundle, tmp_path, visit):
    keys = tmp_path / "keys"
    key = add_key(keys, "reader")
    with site_of(bundle, RequestLimits(keys=keys)) as site:
        playground = visit(site.url + "/", ready=False)
        playground.refused = True
        expect(playground.at("#notice")).to_contain_text("This server asks for an API key")
        playground.fill(key="wrong")
        playground.at("#notice button").click()
        expect(playground.at("#notice")).to_contain_text("This server asks for an API key")
        playground.fill(key=key)
        playground.at("#notice button").click()
        expect(playground.at("#model strong")).to_have_text("tiny")
        playground.complete("plain", "edlm")
        assert playground.page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert key not in share(playground, True)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("steps", 2000), ("candidates", -1), ("temperature", 0), ("seed", 1.5)]
)
def test_a_value_that_is_refused_is_named_beside_its_field(site, visit, name, value):
    playground = visit(site.url + "/")
    playground.refused = True
    playground.choose("edlm")
    playground.run(**{name: value})
    expect(playground.at("#notice")).to_contain_text("Invalid settings")
    assert playground.at(f"#{name}").get_attribute("aria-invalid") == "true"
    playground.complete("edlm", **{name: 1})
    expect(playground.at("#notice")).to_be_hidden()


def test_a_busy_server_sends_retry_after(bundle, visit):
    with site_of(bundle, limits=Limits(slots=1, waiting=1)) as site:
        playground, other = visit(site.url + "/"), visit(site.url + "/")
        site.turnstile.hold()
        playground.run(steps=8, tokens=20)
        wait_until(lambda: present(site) == 2)
        other.refused = True
        other.choose("edlm")
        other.run()
        expect(other.at("#notice")).to_contain_text("The server is busy")
        button = other.at("#notice button")
        expect(button).to_contain_text(re.compile(r"Run again in \d+ s"))
        expect(button).to_be_disabled()
        site.turnstile.release()
        playground.finish("plain", "edlm")
        expect(button).to_be_enabled()
        button.click()
        other.finish("edlm")


def test_a_text_that_is_not_done_in_time_keeps_what_it_has(bundle, visit):
    with site_of(bundle, RequestLimits(max_seconds=1.5)) as site:
        playground = visit(site.url + "/")
        playground.choose("edlm")
        site.turnstile.hold()
        playground.run(steps=12, tokens=24)
        site.turnstile.let(3)
        expect(playground.part("edlm", "passes")).to_have_text("3")
        time.sleep(1.5)
        site.turnstile.let(1)
        expect(playground.part("edlm", "notice")).to_contain_text("Deadline exceeded")
        assert playground.states("edlm").count("shown") > 0
        site.turnstile.release()
