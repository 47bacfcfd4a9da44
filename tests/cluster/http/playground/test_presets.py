"""A preset sets all fields and runs; a text matches the expression that it must match."""

import re

import pytest
from playwright.sync_api import expect

from edlm.data.tokenizer_kinds import BPE
from edlm.inference.components import DataCard
from tests.bundles import CHARACTERS, make_bundle
from tests.cluster.http.playground.browsing import sent, share, site_of

EXAMPLE = "ab cde fg hijk lm no"


def test_the_gap_preset_masks_the_middle_words_of_a_text_of_the_models_data(tmp_path, visit):
    card = DataCard(corpus="files", tokens=1000, steps=10, examples=(EXAMPLE,))
    with site_of(make_bundle(tmp_path, "known", CHARACTERS, 24, data=card)) as site:
        playground = visit(site.url + "/")
        body = sent(playground, playground.page.get_by_role("button", name="Fill the gap").click)
        assert body["parts"] == ["ab cde ", len("fg hijk"), " lm no"]
        playground.finish("plain", "edlm")
        assert playground.text("edlm").startswith("ab cde ")
        assert playground.text("edlm").endswith(" lm no")


def test_the_preset_of_one_step_compares_plain_diffusion_with_exact_draws_whatever_was_set(site, visit):
    playground = visit(site.url + "/")
    playground.fill(steps=7, seed=9)
    playground.choose("plain")
    playground.page.get_by_role("button", name="One step: plain against exact").click()
    playground.finish("plain", "edlm")
    fields = {name: playground.at(f"#{name}").input_value() for name in ("steps", "candidates", "energy", "seed")}
    assert fields == {"steps": "1", "candidates": "0", "energy": "conditional", "seed": "1"}
    body = {"prompt": "the ", "max_tokens": 28, "seed": 1}
    settings = {"steps": 1, "candidates": 0, "energy": "conditional"}
    answer = site.answer("/v1/completions", {**body, "edlm": settings})
    assert playground.text("edlm") == "the " + answer["choices"][0]["text"]


def test_what_the_text_must_match_is_sent_with_both_runs_and_is_in_a_link_that_holds_the_text(site, visit):
    playground = visit(site.url + "/")
    playground.fill(prompt="", tokens=12, match="the [a-z ]+")
    body = sent(playground, playground.at("#run-button").click, "/v1/completions")
    assert body["edlm"]["constraint"] == {"regex": "the [a-z ]+"}
    playground.finish("plain", "edlm")
    for kind in ("plain", "edlm"):
        assert re.fullmatch("the [a-z ]{8}", playground.text(kind))
    assert "match" not in share(playground, False)
    again = visit(share(playground, True))
    again.finish("plain", "edlm")
    assert [again.text(kind) for kind in ("plain", "edlm")] == [playground.text(kind) for kind in ("plain", "edlm")]


def test_an_expression_that_no_text_of_the_length_matches_is_refused_with_the_length_that_one_has(site, visit):
    playground = visit(site.url + "/")
    playground.refused = True
    playground.run(prompt="", tokens=12, match="the [a-z]")
    expect(playground.at("#notice")).to_contain_text("its texts have 5 tokens")
    expect(playground.part("edlm", "status")).to_have_text("not started")


@pytest.mark.parametrize("length", [12, 32])
def test_the_gap_preset_fits_the_canvas_of_a_model_without_texts_of_its_data(tmp_path, visit, length):
    with site_of(make_bundle(tmp_path, "small", CHARACTERS, length)) as site:
        playground = visit(site.url + "/")
        playground.page.get_by_role("button", name="Fill the gap").click()
        playground.finish("plain", "edlm")
        assert len(playground.states("edlm")) <= length
        assert playground.states("edlm").count("shown") >= 3


def test_the_gap_preset_fits_the_canvas_though_words_alone_have_more_tokens_than_within_the_text(tmp_path, visit):
    text = "the cat and the dog sat on a mat under some tree by our house, and then all of them went home again " * 3
    learned = BPE(size=300)
    tokenizer = learned.build([text] * 9)
    example = tokenizer.decode(tokenizer.encode(text)[:24])
    card = DataCard(corpus="files", tokens=1000, steps=10, examples=(example,))
    with site_of(make_bundle(tmp_path, "pieces", learned, 24, [text] * 9, data=card)) as site:
        playground = visit(site.url + "/")
        playground.page.get_by_role("button", name="Fill the gap").click()
        playground.finish("plain", "edlm")
        assert 12 <= len(playground.states("edlm")) <= 24
