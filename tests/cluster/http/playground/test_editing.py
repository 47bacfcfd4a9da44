"""The text on the playground's canvas is masked by clicks, drags and keys, and generated again."""

import re

from playwright.sync_api import expect

from tests.cluster.http.playground.browsing import sent


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
    playground.part("edlm", "canvas").scroll_into_view_if_needed()
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
