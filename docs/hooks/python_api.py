"""The reference of the Python API: one page per package of `edlm`, whose modules mkdocstrings reads without imports."""

import ast
from pathlib import Path

from mkdocs.structure.files import File

PROJECT = Path(__file__).parents[2]


def on_files(files, config, **_):
    """Add the pages: `edlm` itself with its modules, and each of its packages."""
    root = PROJECT / "edlm"
    packages = [root, *sorted(path.parent for path in root.glob("*/__init__.py"))]
    for package in packages:
        name = "edlm" if package == root else f"edlm.{package.name}"
        files.append(File.generated(config, f"api/{name}.md", content=page(package, name)))
    return files


def page(package: Path, name: str) -> str:
    """Return the page of a package: its docstring, and a reference to each of its modules."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = sorted(path.stem for path in package.glob("*.py") if not path.stem.startswith("_"))
    return "\n\n".join([f"# {name}", text, *(f"::: {name}.{module}" for module in modules)]) + "\n"
