"""The reference of the Python API: one page per package of `edlm`, whose modules mkdocstrings reads without imports."""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

PROJECT = Path(__file__).parents[2]
ROOT = PROJECT / "edlm"
DOCTEST = re.compile(r"(?:^>>> .*\n)+", re.MULTILINE)


def on_files(files, config, **_):
    """Add the pages: `edlm` itself with its public names and its modules, and each of its packages."""
    for package in (ROOT, *sorted(path.parent for path in ROOT.glob("*/__init__.py"))):
        name = ".".join(package.relative_to(PROJECT).parts)
        files.append(File.generated(config, f"api/{name}.md", content=page(package, name)))
    return files


def page(package: Path, name: str) -> str:
    """Return the page of a package: its docstring, and a reference to each of its modules."""
    text = DOCTEST.sub(_code, ast.get_docstring(_tree(package / "__init__.py")) or "")
    modules = sorted(path.stem for path in package.glob("*.py") if not path.stem.startswith("_"))
    public = [public_names()] if package == ROOT else []
    return "\n\n".join([f"# {name}", text, *public, *(f"::: {name}.{module}" for module in modules)]) + "\n"


def _code(example: re.Match[str]) -> str:
    """Return the lines of a doctest as a code block; `>>>` would be a quotation in Markdown."""
    lines = [line.removeprefix(">>> ").partition("  # doctest:")[0] for line in example[0].splitlines()]
    return "\n".join(["```python", *lines, "```", ""])


def public_names() -> str:
    """Return a list of the names that `edlm` offers, each with a link to its reference."""
    lines = ["## Public names", ""]
    for name, module in sorted(_imports(ROOT / "__init__.py").items()):
        home = (
            _imports(path)[name] if (path := PROJECT.joinpath(*module.split("."), "__init__.py")).exists() else module
        )
        parts = home.split(".")
        target = ".".join(parts[:2]) if ROOT.joinpath(parts[1]).is_dir() else "edlm"
        lines.append(f"- [`edlm.{name}`]({target}.md#{home}.{name})")
    return "\n".join(lines)


def _imports(path: Path) -> dict[str, str]:
    """Return the module of `edlm` that each name is imported from, anywhere in a file."""
    nodes = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, node.names) for node in nodes if node.module and node.module.startswith("edlm.")]
    return {alias.name: module for module, names in ours for alias in names}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
