"""Every Python example of README.md and docs/ is run.

Clients of a service run in `tests/cluster/http/test_examples.py`, examples on an exported model in
`tests/workflows/exporting/test_modeling.py`.
"""

import ast
import re

import pytest

import edlm
from tests.bundles import make_bundle
from tests.test_docs_commands import PAGES, SERVED, examples

RUNS, ON_A_SMALL_MODEL = "<!-- runs -->", "<!-- runs on a small model -->"
ON_AN_EXPORTED_MODEL = "<!-- runs on an exported model -->"
IMPORTS_RUN = "<!-- downloads data: only its imports run -->"


@pytest.mark.parametrize("page", [page for page in PAGES if RUNS in page.read_text(encoding="utf-8")])
def test_the_code_of_a_page_runs_from_its_first_block_to_its_last(page):
    text, names = page.read_text(encoding="utf-8"), {}
    for marked in re.finditer(rf"{RUNS}\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, marked.start())
        exec(compile("\n" * (line + 2) + marked[1], str(page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if ON_A_SMALL_MODEL in page.read_text(encoding="utf-8")])
def test_the_code_for_a_trained_model_runs_on_a_small_one(page, tmp_path, monkeypatch, capsys):
    model = edlm.load(make_bundle(tmp_path, length=64))
    monkeypatch.setattr(edlm, "load", lambda _: model)
    text, names = page.read_text(encoding="utf-8"), {}
    for block in re.findall(rf"{ON_A_SMALL_MODEL}\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out.strip()


def marked(*marks: str) -> list[str]:
    """The Python blocks that follow one of the marks."""
    block = re.compile(rf"(?:{'|'.join(marks)})\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [text for page in PAGES for text in block.findall(page.read_text(encoding="utf-8"))]


def test_every_python_example_is_run():
    run = {*marked(RUNS, ON_A_SMALL_MODEL, ON_AN_EXPORTED_MODEL, IMPORTS_RUN)}
    others = [example for example in examples("python") if example.text not in run and SERVED not in example.text]
    assert list(map(str, others)) == []


@pytest.mark.parametrize("text", marked(IMPORTS_RUN))
def test_an_example_that_downloads_data_compiles_and_imports_what_there_is(text):
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "an example", "exec"), {})
