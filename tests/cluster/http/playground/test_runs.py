"""The playground in a real browser, before the real app around a tiny bundle: what a user sees of a run."""

import re

import pytest
from playwright.sync_api import expect

from edlm.inference.components import DataCard
from tests.bundles import CHARACTERS, make_bundle, make_plain_bundle
from tests.cluster.http.playground.browsing import DIGEST, LENGTH, present, request, site_of, wait_until

OPENING_SECONDS = 5  # from opening the page to text on it


def test_the_model_is_named_and_the_settings_are_its_own(site, visit):
    playground = visit(site.url + "/")
    assert playground.at("#model").text_content() == f"tinyversion 7{DIGEST[:12]}canvas of {LENGTH}"
    values = {name: playground.at(f"#{name}").input_value() for name in ("steps", "candidates", "energy", "tokens")}
    assert values == {"steps": "4", "candidates": "2", "energy": "step", "tokens": str(LENGTH - len("the "))}


def test_the_page_opens_running_on_a_text_of_the_models_data(tmp_path, visit):
    example = "whole words of the corpus it saw"
    card = DataCard(corpus="files", tokens=1000, steps=10, examples=(example,))
    with site_of(make_bundle(tmp_path, "known", CHARACTERS, LENGTH, data=card)) as site:
        playground = visit(site.url + "/", opening=True)
        playground.finish("plain", "edlm")
        prompt = "whole words of the "
        assert playground.at("#prompt").input_value() == prompt
        expect(playground.at("#about")).to_contain_text("27 tokens, 2 layers of width 16")
        expect(playground.at("#about")).to_contain_text("trained for 10 steps on 1K tokens of text files")
        expect(playground.at("#about q")).to_have_text(example)
        expect(playground.at("#chart")).to_contain_text("its data")
        body = {"prompt": prompt, "max_tokens": LENGTH - len(prompt), "seed": 1, "edlm": {"steps": 4}}
        assert playground.text("edlm") == prompt + site.answer("/v1/completions", body)["choices"][0]["text"]


def test_the_opened_page_shows_text_within_seconds(site, visit):
    """The bound is generous, for a busy machine; with -s it prints the seconds (docs/endpoint.md)."""
    playground = visit(site.url + "/", opening=True, ready=False)
    playground.at("#run-edlm .tok.shown").first.wait_for()
    # Of the page's own clock, which begins with the navigation.
    seconds = playground.page.evaluate("performance.now()") / 1000
    print(f"text moves {seconds:.2f} s after the page is opened")
    assert seconds < OPENING_SECONDS
    playground.finish("plain", "edlm")


def test_a_page_that_a_link_opens_does_not_run_by_itself(site, visit):
    playground = visit(site.url + "/")
    expect(playground.at("#run-edlm .masked").first).to_be_visible()
    assert playground.part("edlm", "status").text_content() == ""
    assert site.engine.statistics().running == 0


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


@pytest.mark.parametrize("energy", ["step", "conditional"])
def test_each_resampling_step_shows_its_candidates_as_words_and_marks_the_one_it_kept(site, visit, energy):
    playground = visit(site.url + "/")
    playground.choose("edlm")
    playground.at("#energy").select_option(energy)
    site.turnstile.hold()
    playground.run(steps=2, candidates=5, tokens=28)
    site.turnstile.let(1)
    groups = playground.at("#run-edlm .group")
    expect(groups.first).to_be_visible()
    for index in range(groups.count()):
        group = groups.nth(index)
        times = [int(text[1:]) for text in group.locator(".times").all_text_contents()]
        assert group.locator(".candidate").count() + sum(times) - len(times) == 5
        assert sum(map(percent, group.locator(".weight").all_text_contents())) == pytest.approx(100, abs=3)
        group.hover()
        unmasked = "".join(playground.at("#run-edlm .tok.inblock").all_text_contents()).replace("·", " ")
        assert "".join(group.locator(".kept .new").all_text_contents()) == unmasked
    head = playground.at("#run-edlm .scoring .head").text_content() or ""
    assert re.search(r"Step 1: 5 candidates.*ESS [1-5]\.\d of 5", head)
    site.turnstile.release()
    playground.finish("edlm")


def test_candidates_beyond_the_end_of_a_text_are_not_shown(site, visit):
    playground = visit(site.url + "/")
    playground.choose("edlm")
    playground.complete("edlm", steps=1, candidates=4, tokens=6, prompt="")
    assert playground.at("#run-edlm .group").count() == 2  # of eight blocks of four
    assert "" not in playground.at("#run-edlm .words").all_text_contents()


def percent(text: str) -> float:
    return 0.0 if text.startswith("<") else float(text.removesuffix(" %"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_the_canvases_after_a_run_and_needs_no_sideways_scrolling(site, visit, scheme):
    playground = visit(site.url + "/", viewport={"width": 375, "height": 812}, color_scheme=scheme)
    playground.complete("plain", "edlm")
    expect(playground.at("#verdict")).to_be_visible()
    expect(playground.at("#prompt")).to_be_hidden()
    tops = playground.at(".canvas").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert len(tops) == 2
    assert all(0 < top < 812 for top in tops)
    assert -1 < playground.at("#runs").evaluate("runs => runs.getBoundingClientRect().top") < 812 / 4
    playground.at("#change-button").click()
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


def test_a_line_breaks_between_words_only(tmp_path, visit):
    """Whole words, however the tokens divide them, unless a word is longer than the line."""
    prompt = "a few longer words whose letters stay together in their lines"
    with site_of(make_bundle(tmp_path, "wide", CHARACTERS, 96)) as site:
        playground = visit(site.url + "/", viewport={"width": 900, "height": 812})
        playground.choose("edlm")
        playground.complete("edlm", prompt=prompt, tokens=4, steps=2)
        tops = playground.at("#run-edlm .tok").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
        assert len(set(tops[: len(prompt)])) > 1
        start = 0
        for word in prompt.split():
            assert len(set(tops[start : start + len(word)])) == 1, word
            start += len(word) + 1
