"""A preset sets all fields and runs."""

from edlm.inference.components import DataCard
from tests.bundles import CHARACTERS, make_bundle
from tests.cluster.http.playground.browsing import sent, site_of

EXAMPLE = "ab cde fg hijk lm no"


def test_the_gap_preset_masks_the_middle_words_of_a_text_of_the_models_data(tmp_path, visit):
    card = DataCard(corpus="files", tokens=1000, steps=10, examples=(EXAMPLE,))
    with site_of(make_bundle(tmp_path, "known", CHARACTERS, 24, card)) as site:
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
