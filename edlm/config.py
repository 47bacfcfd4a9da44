"""Typed configuration: frozen dataclasses, one YAML for each experiment, overrides on the command line."""

import dataclasses
import difflib
import json
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter

T = TypeVar("T")

Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]


class ConfigurationError(ValueError):
    """The user's configuration is wrong; the message names the key, the value and what is allowed."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """`cls` as a frozen dataclass that checks types strictly and refuses keys it does not know."""
    settings = ConfigDict(extra="forbid", strict=True)
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=settings)  # type: ignore[return-value]


def load(cls: type[T], path: str | Path) -> T:
    """The configuration `cls` written in the YAML file `path`.

    Raises ConfigurationError naming every wrong key, with its path, its value and a hint.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigurationError(f"no configuration file {path}; shipped ones are in workflows/experiments/") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text ({error}); configurations are YAML") from error
    try:
        tree = yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path} holds {type(tree).__name__}, not a mapping of settings")
    return parse(cls, tree, source=str(path))


def parse(cls: type[T], tree: dict[str, Any], source: str = "configuration") -> T:
    """The configuration `cls` given as plain dicts, lists and scalars; errors as in `load`."""
    try:
        # Through JSON: strict mode then reads a list as a tuple, and nothing else is coerced.
        return TypeAdapter(cls).validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        raise ConfigurationError(_explain(cls, error, source)) from None
    except TypeError as error:
        raise ConfigurationError(f"{source}: {error}; quote dates and other special values") from None


def plain(settings: Any) -> Any:
    """The configuration as plain dicts, lists and scalars: the inverse of `parse`."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def dump(settings: Any) -> str:
    """The configuration as YAML text, every default written out; `load` reads it back to an equal value."""
    return yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True)


def from_command_line(cls: type[T], arguments: Sequence[str] | None = None, description: str | None = None) -> T:
    """The configuration of `EXPERIMENT.yaml [--section.key value ...]`: the file, with the overrides laid over it.

    A user's mistake ends the process with status 2 and a message; `--help` after the file lists every setting.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0].startswith("-"):
        print(f"{description or ''}\nusage: python -m MODULE EXPERIMENT.yaml [--section.key VALUE ...] [--help]".strip())
        raise SystemExit(0 if arguments in (["-h"], ["--help"]) else 2)
    try:
        default = load(cls, arguments[0])
        settings = tyro.cli(
            cls, default=default, args=arguments[1:], description=description, config=(tyro.conf.AvoidSubcommands,)
        )
        return parse(cls, plain(settings), source="command line")
    except ConfigurationError as error:
        print(f"configuration error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except pydantic.ValidationError as error:
        print(f"configuration error: {_explain(cls, error, 'command line')}", file=sys.stderr)
        raise SystemExit(2) from None


class _Yaml(yaml.SafeLoader):
    """YAML with two mends: `1e-3` is a number (YAML 1.1 reads it as text) and a key may not be given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"key {key_node.value!r} given twice (line {line})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _explain(cls: type, error: pydantic.ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = tuple(problem["loc"])
        name = ".".join(str(part) for part in path) or "(top level)"
        value = repr(problem["input"])
        value = value if len(value) <= 60 else value[:57] + "..."
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = _keys(cls, path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(sorted(known))}"
            lines.append(f"{name}: unknown key; {hint}")
        elif problem["type"] in ("missing", "missing_argument"):
            lines.append(f"{name}: missing; it has no default")
        else:
            lines.append(f"{name}: {problem['msg']}; got {value}")
    return f"{source}: " + "; ".join(lines)


def _keys(kind: Any, path: tuple) -> set[str]:
    """The keys that stand at `path` below the type `kind`, through unions, tuples and dicts."""
    found: set[str] = set()
    for cls in _classes(kind):
        fields = typing.get_type_hints(cls)
        if not path:
            found |= {field.name for field in dataclasses.fields(cls)}
        elif path[0] in fields:
            found |= _keys(fields[path[0]], path[1:])
        else:  # the tag of a union, the index in a tuple or the key of a dict
            found |= _keys(cls, path[1:]) if getattr(cls, "kind", None) in (path[0], None) else set()
    return found


def _classes(kind: Any) -> list[type]:
    if dataclasses.is_dataclass(kind):
        return [typing.cast(type, kind)]
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        return [cls for part in typing.get_args(kind) for cls in _classes(part)]
    return []
