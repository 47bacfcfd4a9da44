"""The playground's page is sent from memory, and a browser that keeps to its policy runs nothing but its own script."""

import base64
import hashlib
import re

from cluster.http.playground_page import FOLDER, assembled, page
from tests.cluster.asking import ask


def policy(headers) -> dict[str, list[str]]:
    parts = [part.split() for part in headers["content-security-policy"].split(";")]
    return {name: values for name, *values in parts}


def test_the_page_is_sent_with_a_policy_that_names_its_own_script_and_style(url):
    response = ask(url, "/", method="GET")
    assert response.content == assembled()
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    actual = policy(response.headers)
    assert actual["default-src"] == ["'none'"]
    assert actual["connect-src"] == ["'self'"]
    assert actual["frame-ancestors"] == ["'none'"]
    for kind in ("script", "style"):
        contents = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", response.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        assert actual[f"{kind}-src"] == [f"'sha256-{digest}'" for digest in hashes]
        assert contents
    assert "unsafe" not in response.headers["content-security-policy"]


def test_the_page_loads_nothing_from_elsewhere_and_uses_nothing_that_its_policy_forbids():
    html = assembled().decode()
    tags = re.sub(r"<(script|style)[^>]*>.*?</\1>|<!--.*?-->", "", html, flags=re.DOTALL)
    assert not re.search(r"\son[a-z]+=|\sstyle=|\ssrc=|javascript:", tags)
    assert not re.search(r"\.innerHTML|\.outerHTML|document\.write|insertAdjacentHTML|\beval\(", html)


def test_every_file_of_the_page_is_in_it_and_the_page_asks_for_none():
    html, parts = assembled().decode(), [path for path in FOLDER.iterdir() if path.name != "index.html"]
    assert [path.suffix for path in parts].count(".js") > 1
    assert [path.name for path in parts if html.count(path.read_text(encoding="utf-8")) != 1] == []
    assert not re.search(r"<script\s|<link rel=\"stylesheet", html)


def test_a_page_without_scripts_may_run_none():
    assert policy(page(b"<p>hello</p>").headers)["script-src"] == ["'none'"]
