"""Links and curl lines of the playground give the same text, and no token of a text is ever HTML."""

import json
import shutil
import subprocess
from collections.abc import Sequence

import pytest
import tokenizers
from playwright.sync_api import expect
from tokenizers import decoders, models

from edlm.data.tokenizer import Tokenizer
from tests.bundles import make_bundle
from tests.cluster.http.playground.browsing import (
    request,
    share,
    site_of,
)

HOSTILE = "<img src=x onerror=alert(1)>"


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
