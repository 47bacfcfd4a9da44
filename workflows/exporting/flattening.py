"""Flattening: one source file that holds a module of the project and everything of the project that it uses.

The definitions that are reached from the module's own are copied as they are written, with their comments, in the order
of imports. What only annotations name is not reached: the file postpones the evaluation of annotations, so that
`Float[Tensor, "b l"]` stays as a note on shapes and needs no package.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

PROJECT = Path(__file__).resolve().parent.parent.parent
OURS = ("edlm", "workflows")
REMARK = re.compile(r"  # (?:pyright|type): ignore\S*(?: - .*)?|  # noqa\S*(?: \S+)?")  # to tools of this project
RULE = "# " + "-" * 116

Bound = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Origin:
    """What an imported name stands for: `name` of a module, or a module itself."""

    module: str
    name: str | None


@dataclass(frozen=True)
class Module:
    """Source of one module, its top-level definitions by name, and its imports by the names that they bind."""

    name: str
    text: str
    tree: ast.Module
    definitions: dict[str, Bound]
    ours: dict[str, Origin]
    others: dict[str, str]
    """Import statements of other packages."""

    @property
    def title(self) -> str:
        """First line of the docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]


def flattened(module: str, docstring: str, allowed: frozenset[str], instead: Mapping[str, str]) -> str:
    """Return the source of `module` as one file without imports of this project, with this docstring.

    `allowed`: other packages that it may import, besides the standard library. `instead`: modules of the project that
    are replaced by others, which define the same names. Raise ValueError where two modules define one name, and for an
    import of any other package.
    """
    reached = _reached(module, instead)
    _require_one_origin(reached)
    imports = {line for one, names in reached.items() for line in _imports(one, names, allowed)}
    parts = [f'"""{docstring}"""\n\nfrom __future__ import annotations\n\n{_grouped(imports)}']
    for name, names in reached.items():
        one = parsed(name)
        if name != module:
            parts.append(f"{RULE}\n{fill(f'{name}: {one.title}', 118, initial_indent='# ', subsequent_indent='# ')}")
        parts += [_source(one, one.definitions[bound]) for bound in one.definitions if bound in names]
    return "\n\n\n".join(parts) + "\n"


@functools.cache
def parsed(name: str) -> Module:
    """Return the module of the project by its dotted name."""
    path = _path(name)
    assert path is not None, f"{name} is no module of the project"
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    module = Module(name, text, tree, {}, {}, {})
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=str(source), names=names):
                for alias in names:
                    _add_import(module, source, alias)
            case ast.Import(names=names):
                for alias in names:
                    line = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
                    module.others[alias.asname or alias.name.partition(".")[0]] = line
            case ast.FunctionDef(name=bound) | ast.ClassDef(name=bound):
                module.definitions[bound] = node
            case ast.Assign(targets=targets):
                names = (child for target in targets for child in ast.walk(target))
                module.definitions.update({child.id: node for child in names if isinstance(child, ast.Name)})
            case ast.AnnAssign(target=ast.Name(id=bound)):
                module.definitions[bound] = node
    return module


def _add_import(module: Module, source: str, alias: ast.alias) -> None:
    if source.partition(".")[0] not in OURS:
        renamed = f" as {alias.asname}" if alias.asname else ""
        module.others[alias.asname or alias.name] = f"from {source} import {alias.name}{renamed}"
        return
    if alias.asname is not None:
        raise ValueError(f"{module.name} imports {alias.name} of {source} as {alias.asname}; import it by its name")
    inside = f"{source}.{alias.name}"
    module.ours[alias.name] = Origin(source, alias.name) if _path(inside) is None else Origin(inside, None)


def _path(name: str) -> Path | None:
    path = PROJECT.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def _reached(module: str, instead: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the names that are reached in each module, in the order of imports: a module after those it uses."""
    reached: dict[str, set[str]] = {}
    waiting = [(module, name) for name in parsed(module).definitions]
    while waiting:
        name, bound = waiting.pop()
        if bound in reached.setdefault(name, set()):
            continue
        reached[name].add(bound)
        one = parsed(name)
        if bound not in one.definitions:
            raise ValueError(f"{name} defines no {bound!r}, which is imported of it")
        for origin in _uses(one, one.definitions[bound]):
            source = instead.get(origin.module, origin.module)
            assert origin.name is not None
            waiting.append((source, origin.name))
    ordered: dict[str, set[str]] = {}

    def place(name: str) -> None:
        one = parsed(name)
        for bound in sorted(reached[name]):
            for origin in _uses(one, one.definitions[bound]):
                source = instead.get(origin.module, origin.module)
                if source != name and source not in ordered:
                    place(source)
        ordered.setdefault(name, reached[name])

    place(module)
    return ordered


def _uses(module: Module, definition: Bound) -> Iterator[Origin]:
    """Yield what a definition of the module uses of the project."""
    for node in _evaluated(definition):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            origin = module.ours.get(node.value.id)
            if origin is not None and origin.name is None:
                yield Origin(origin.module, node.attr)
        if isinstance(node, ast.Name):
            if node.id in module.definitions and module.definitions[node.id] is not definition:
                yield Origin(module.name, node.id)
            elif node.id in module.ours and module.ours[node.id].name is not None:
                yield module.ours[node.id]


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below `node` that are evaluated: all but annotations."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _evaluated(child)


def _require_one_origin(reached: Mapping[str, set[str]]) -> None:
    """Raise ValueError where one name has two meanings in the flat file."""
    origins: dict[str, str] = {}
    for module, names in reached.items():
        one = parsed(module)
        used = {node.id for name in names for node in _evaluated(one.definitions[name]) if isinstance(node, ast.Name)}
        for name, origin in [(n, module) for n in names] + [(n, one.others[n]) for n in used if n in one.others]:
            if origins.setdefault(name, origin) != origin:
                raise ValueError(f"{name!r} is of {origins[name]} and of {origin}; give one of them another name")


def _imports(module: str, names: set[str], allowed: frozenset[str]) -> Iterator[str]:
    """Yield the import statements of other packages that the reached definitions need."""
    one = parsed(module)
    used = {node.id for name in names for node in _evaluated(one.definitions[name]) if isinstance(node, ast.Name)}
    # A dataclass recognises a ClassVar by the name in its postponed annotation.
    used |= {"ClassVar"} & one.others.keys()
    for name in used & one.others.keys():
        line = one.others[name]
        package = line.split()[1].partition(".")[0]
        if package not in allowed | sys.stdlib_module_names:
            raise ValueError(f"{module} imports {package}, and the file may import {', '.join(sorted(allowed))} only")
        yield line


def _grouped(imports: set[str]) -> str:
    """Return import statements in the usual order: the standard library first, one statement for names of a module."""
    merged: dict[str, list[str]] = {}
    for line in sorted(imports):
        start, _, name = line.rpartition(" import ")
        merged.setdefault(start or line, []).append(name if start else "")
    lines = [start if names == [""] else f"{start} import {', '.join(names)}" for start, names in merged.items()]

    def key(line: str) -> tuple[bool, bool, str]:
        return line.split()[1].partition(".")[0] not in sys.stdlib_module_names, line.startswith("from"), line

    lines.sort(key=key)
    standard = [line for line in lines if not key(line)[0]]
    return "\n".join([*standard, "", *lines[len(standard) :]])


def _source(module: Module, definition: Bound) -> str:
    """Return the text of a definition with its comment, and without the names of modules in front of other names."""
    lines = module.text.splitlines()
    start = min([definition.lineno, *(node.lineno for node in getattr(definition, "decorator_list", []))]) - 1
    first = start
    while first and lines[first - 1].startswith("# ") and not lines[first - 1].startswith("# ---"):
        first -= 1
    taken = lines[first : definition.end_lineno]
    for node in _evaluated(definition):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            continue
        origin = module.ours.get(node.value.id)
        if origin is None or origin.name is not None:
            continue
        if node.attr in _local_names(definition):
            raise ValueError(f"{module.name} has a variable {node.attr!r}, which hides that of {origin.module}")
        index = node.lineno - 1 - first
        taken[index] = re.sub(rf"\b{node.value.id}\.{node.attr}\b", node.attr, taken[index])
    return REMARK.sub("", "\n".join(taken))


def _local_names(definition: Bound) -> set[str]:
    """Return the arguments and variables of the functions in a definition."""
    names = {node.arg for node in ast.walk(definition) if isinstance(node, ast.arg)}
    stores = (node for node in ast.walk(definition) if isinstance(node, ast.Name))
    return names | {node.id for node in stores if isinstance(node.ctx, ast.Store)}
