"""Execute the quickstart notebook in place, which takes minutes: `python docs/hooks/execute_quickstart.py`.

With the outputs it stores a digest of the code that they are of; a test compares it with the code that is shown.
"""

import hashlib
import json
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "quickstart.ipynb"


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """Return the SHA-256 of the sources of all code cells, in order."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def execute(path: Path) -> None:
    """Run all cells in a new kernel and write the notebook; an error of a cell is raised, and nothing is written."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.metadata["edlm"] = {"code_sha256": code_digest(notebook)}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    execute(NOTEBOOK)
