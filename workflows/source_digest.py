"""Source digest: the SHA-256 of the code that computes a result.

A stage names the modules that compute its result. Its digest covers their files and, within `FOLLOWED`, the files that
they import, directly or indirectly. Once a sub-package of `edlm` (a room) is reached, all of its files count, so that a
new file counts before anything imports it; but only reached files lead on to other rooms. A change in a module that the
stage never reaches, such as the client, changes nothing. A folder of templates is named like a module.
"""

import ast
import functools
import hashlib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SCIENCE = "edlm"
FOLLOWED = (SCIENCE, "workflows.evaluation.measurements", "workflows.reporting")
"""Packages whose imports are followed. Others only decide where and when something is computed."""
MEASURES = ("edlm.training.flops",)
"""Modules that measure a training, know every energy for that, and change no result: their imports are not followed."""
NAMES = "workflows.row_names"  # followed, too, because tables and stored measurements hold these names


def source_digest(*modules: str, project: Path = PROJECT) -> str:
    """Return the SHA-256 of the modules' files and of everything that they import from `FOLLOWED`.

    Raise ModuleNotFoundError for an unknown name.

    >>> source_digest("edlm.schedule") == source_digest("edlm.schedule", "edlm.config")  # imported by edlm.schedule
    True
    """
    return _digest(source_files(*modules, project=project), project)


@functools.cache
def source_files(*modules: str, project: Path = PROJECT) -> frozenset[Path]:
    """Return the files that `source_digest` covers."""
    for name in modules:
        if not _files(project, name):
            raise ModuleNotFoundError(f"{name} is no module below {project}", name=name)
    followed = tuple(f"{package}." for package in FOLLOWED)
    waiting, read, rooms = list(modules), set[Path](), set[Path]()
    while waiting:
        module = waiting.pop()
        for path in _files(project, module) - read:
            read.add(path)
            if path.suffix == ".py" and module not in MEASURES:
                waiting += (name for name in _imported(path.read_bytes()) if name == NAMES or name.startswith(followed))
            if len((inside := path.relative_to(project)).parts) > 2 and inside.parts[0] == SCIENCE:
                rooms.add(project.joinpath(*inside.parts[:2]))
    return frozenset(read.union(*(room.rglob("*.py") for room in rooms)))


@functools.cache
def _digest(files: frozenset[Path], project: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(project).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(project: Path, module: str) -> set[Path]:
    """Return the file of a module, the `__init__` of a package or the files of a folder; empty for any other name."""
    base = project.joinpath(*module.split("."))
    if base.is_dir() and not (base / "__init__.py").is_file():
        return {path for path in base.iterdir() if path.is_file()}
    return {path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()}


@functools.cache
def _imported(source: bytes) -> tuple[str, ...]:
    """Return the names that a file imports, and each with the names taken from it, which may also be modules."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed"
            assert node.module is not None
            names += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(names)
