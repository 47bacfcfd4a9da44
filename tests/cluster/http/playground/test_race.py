"""A race over seeds compares the texts that single runs of the same seeds give, and says how it ended."""

import re

from playwright.sync_api import expect

from tests.cluster.http.playground.browsing import Playground, Site, present, wait_until

SEEDS = 24


def expected(site: Site, steps: int, tokens: int, first: int) -> list[tuple[float, float]]:
    """Nats per token of the texts of plain diffusion and of EDLM, by seed."""
    pairs = []
    for candidates in (1, 2):
        body = {"prompt": "the ", "max_tokens": tokens, "seed": first, "n": SEEDS}
        settings = {"steps": steps, "candidates": candidates, "return": ["token_ids"]}
        choices = site.answer("/v1/completions", {**body, "edlm": settings})["choices"]
        lead = site.answer("/v1/tokenize", {"text": "the "})["tokens"]
        scores = []
        for seed, choice in enumerate(choices, start=first):
            whole = [*lead, *choice["token_ids"]]
            asked = {"tokens": whole, "seed": seed, "draws": 16, "edlm": {"steps": 1, "candidates": 1}}
            scores.append(site.answer("/v1/score", asked)["nelbo"]["nats"] / len(whole))
        pairs.append(scores)
    return list(zip(*pairs, strict=True))


def race(playground: Playground, **fields: object) -> None:
    playground.fill(**fields)
    playground.at("#race-button").click()


def test_the_race_ends_in_the_number_of_seeds_in_which_edlm_is_lower_and_two_histograms(site, visit):
    playground = visit(site.url + "/")
    race(playground, steps=2, tokens=12, seed=5)
    expect(playground.at("#race-again")).to_be_visible()
    pairs = expected(site, 2, 12, 5)
    wins = sum(edlm < plain for plain, edlm in pairs)
    expect(playground.at("#race-title")).to_have_text(f"EDLM lower in {wins} of {SEEDS}")
    means = [sum(scores) / SEEDS for scores in zip(*pairs, strict=True)]
    text = playground.at("#race-text").text_content() or ""
    assert f"Mean {means[1]:.2f} against {means[0]:.2f} nats per token" in text
    clear = re.search(r"a difference of (\S+) ± (\S+)\.", text.replace("−", "-"))
    assert clear is not None
    assert ("No clear difference" in text) == (abs(float(clear[1])) <= 2 * float(clear[2]))
    labels = [bars.get_attribute("aria-label") or "" for bars in playground.at(".histogram").all()]
    assert [label.split(":")[0] for label in labels] == ["Plain diffusion", "EDLM"]
    assert all(f"{SEEDS} texts" in label for label in labels)


def test_a_race_that_is_stopped_says_so_and_leaves_the_server(site, visit):
    playground = visit(site.url + "/")
    site.turnstile.hold()
    race(playground, steps=8, tokens=12)
    wait_until(lambda: present(site) == 16)
    playground.page.keyboard.press("Escape")
    expect(playground.at("#race-title")).to_have_text("No texts were compared")
    expect(playground.at("#race-again")).to_be_visible()
    site.turnstile.release()
    wait_until(lambda: present(site) == 0)


def test_a_text_that_fits_no_canvas_is_not_raced(site, visit):
    playground = visit(site.url + "/")
    race(playground, tokens=200)
    expect(playground.at("#notice")).to_contain_text("New tokens: a race scores whole texts")
    assert playground.at("#tokens").get_attribute("aria-invalid") == "true"


def test_a_race_and_runs_that_were_not_started_do_not_stand_together(site, visit):
    playground = visit(site.url + "/")
    playground.refused = True
    playground.run(steps=0)
    expect(playground.part("edlm", "status")).to_have_text("not started")
    race(playground, steps=2, tokens=8)
    expect(playground.at("#race-again")).to_be_visible()
    expect(playground.at("#race-title")).to_contain_text("EDLM lower in")
    expect(playground.at(".run.refused")).to_have_count(0)
    playground.run(steps=0)
    expect(playground.part("edlm", "status")).to_have_text("not started")
    expect(playground.at("#race")).to_be_hidden()
