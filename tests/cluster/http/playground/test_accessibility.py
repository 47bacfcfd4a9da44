"""axe finds nothing to mend on the page: before and after a run, with a refused field, light and dark."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

PHONE = {"width": 375, "height": 812}


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}: {node['failureSummary']}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("scheme", "viewport"), [("light", None), ("dark", PHONE)], ids=["wide", "phone"])
def test_axe_finds_nothing_before_and_after_a_run_and_with_a_refused_field(site, visit, scheme, viewport):
    options = {"color_scheme": scheme} | ({"viewport": viewport} if viewport else {})
    playground = visit(site.url + "/", **options)
    assert violations(playground.page) == []
    playground.complete("plain", "edlm")
    assert violations(playground.page) == []
    if viewport:  # the fields are folded away
        playground.at("#change-button").click()
        playground.at("#settings summary").click()
    playground.refused = True
    playground.run(temperature=-1)
    expect(playground.at("#temperature")).to_have_attribute("aria-invalid", "true")
    assert violations(playground.page) == []
