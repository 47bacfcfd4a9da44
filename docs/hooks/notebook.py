"""The quickstart notebook as a page: its cells and the outputs that are stored in it. Nothing is executed."""

import base64
from pathlib import Path

import nbformat
from mkdocs.structure.files import File

NOTEBOOK = Path(__file__).parents[1] / "quickstart.ipynb"
DOWNLOAD = "This page is a notebook: [download it](quickstart.ipynb).\n"


def on_files(files, config, **_):
    """Add the page and its figures."""
    figures: list[bytes] = []
    content = page(nbformat.read(NOTEBOOK, as_version=4), figures)
    files.append(File.generated(config, "quickstart.md", content=content))
    for i, figure in enumerate(figures):
        files.append(File.generated(config, f"quickstart-{i}.png", content=figure))
    return files


def page(notebook: nbformat.NotebookNode, figures: list[bytes]) -> str:
    """Return the notebook as Markdown; its figures are added to `figures`."""
    title, *cells = notebook.cells
    parts = [title.source, DOWNLOAD]
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.data:
                parts.append(f"![Figure {len(figures) + 1}](quickstart-{len(figures)}.png)")
                figures.append(base64.b64decode(output.data["image/png"]))
            else:
                parts.append(f"```text\n{output.data['text/plain']}\n```")
    return "\n\n".join(parts) + "\n"
