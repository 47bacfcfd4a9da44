"""Every symbol is explained on focus and on hover, also to a screen reader; a replay is short, and Escape ends it."""

from playwright.sync_api import expect


def test_every_symbol_has_a_description_that_is_shown_on_focus_and_hover_and_hidden_by_escape(site, visit):
    playground = visit(site.url + "/")
    playground.complete("plain", "edlm", steps=3, tokens=20)
    described = playground.at("[data-term]")
    texts = described.evaluate_all(
        "all => all.map(one => document.getElementById(one.getAttribute('aria-describedby'))?.textContent)"
    )
    assert all(texts)
    assert set(texts) == set(playground.at("#terms p").all_text_contents()), "no explanation is of nothing"
    tip = playground.at("#tip")
    playground.at("#tokens").focus()
    playground.page.keyboard.press("Tab")
    expect(playground.at("#temperature")).to_be_focused()
    expect(tip).to_contain_text("divides the energy")
    playground.page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    playground.at("#run-edlm .scoring .term").last.hover()
    expect(tip).to_contain_text("Effective number of candidates")
    playground.at("h1").hover()
    expect(tip).to_be_hidden()


def test_a_replay_of_any_number_of_steps_takes_less_than_six_seconds_and_escape_ends_it_at_its_last_step(site, visit):
    playground = visit(site.url + "/", reduced_motion="no-preference")
    for steps in (1, 4, 16, 1024):
        assert 0 < playground.page.evaluate(f"{steps} * pace({{ steps: {steps} }})") < 6000
    playground.choose("edlm")
    playground.at("#pace").select_option("live")
    playground.complete("edlm", steps=16, tokens=24)
    playground.at("#pace").select_option("eye")
    playground.part("edlm", "play").click()
    expect(playground.at("#stop-button")).to_be_enabled()
    playground.page.keyboard.press("Escape")
    expect(playground.at("#stop-button")).to_be_disabled()
    expect(playground.part("edlm", "status")).to_have_text("done")
    expect(playground.part("edlm", "play")).to_have_attribute("aria-label", "Play")
