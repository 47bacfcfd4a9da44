"""Stopping, lost connections, refusals, keys and deadlines in the playground: what came stays on the page."""

import re
import subprocess
import sys
import time

import pytest
from playwright.sync_api import expect

from cluster.http.limits.settings import RequestLimits
from cluster.http.middleware.api_keys import add_key
from edlm.inference.request import Limits
from tests.cluster.http.playground.browsing import cancelling, present, share, site_of, wait_until

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
        expect(playground.at("#notice")).to_contain_text("This key is not known")
        playground.fill(key=key)
        playground.at("#notice button").click()
        expect(playground.at("#model strong")).to_have_text("tiny")
        playground.complete("plain", "edlm")
        assert playground.page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert key not in share(playground, True)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 0, "Steps T should be greater than or equal to 1."),
        ("steps", 2000, "Steps T should be less than or equal to 1024."),
        ("candidates", -1, "Candidates k of EDLM should be greater than or equal to 0."),
        ("temperature", 0, "Temperature τ should be greater than or equal to 0.000001."),
        ("seed", 1.5, "Seed should be a valid integer"),
        ("match", "the (cat", "'the (cat' is no regular expression of Python"),
    ],
)
def test_a_run_that_is_refused_looks_so_and_is_explained_by_the_label_of_its_field(site, visit, name, value, words):
    playground = visit(site.url + "/")
    playground.refused = True
    playground.choose("edlm")
    playground.run(**{name: value})
    expect(playground.at("#notice")).to_contain_text("Invalid settings")
    expect(playground.at("#notice")).to_contain_text(words)
    expect(playground.part("edlm", "status")).to_have_text("not started")
    expect(playground.part("edlm", "reading")).to_have_text("This run was not started.")
    assert playground.part("edlm", "progress").evaluate("bar => bar.style.getPropertyValue('--done')") == "0.0000"
    assert playground.part("edlm", "say").text_content() == ""
    marked = playground.at(f"#{name}")
    assert marked.get_attribute("aria-invalid") == "true"
    expect(marked).to_have_accessible_description(re.compile(re.escape(words)))
    expect(playground.at(f"#{name}-fault")).to_be_visible()
    playground.complete("edlm", **{name: "" if name == "match" else 1})
    expect(playground.at("#notice")).to_be_hidden()
    expect(playground.at(".fault")).to_have_count(0)
    expect(marked).not_to_have_accessible_description(re.compile(re.escape(words)))


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
