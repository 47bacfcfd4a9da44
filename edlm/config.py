"""Typed configuration: frozen dataclasses, one YAML file per experiment, command-line overrides."""

import dataclasses
import difflib
import json
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import ErrorDetails
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

T = TypeVar("T")

Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]


class ConfigurationError(ValueError):
    """Error in the user's configuration; the message names the key, the value and what is allowed."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(pydantic.Field,))
def config(cls: type[T]) -> type[T]:
    """Return `cls` as a frozen dataclass that checks types strictly and rejects unknown keys.

    The docstring below a field is its description and its command-line help, also in subclasses.
    """
    settings = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    made = pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=settings)
    for field in dataclasses.fields(made):  # pydantic reads the docstrings of a class alone, not those of its bases
        if description := made.__pydantic_fields__[field.name].description:
            field.metadata = {**field.metadata, "description": description}  # type: ignore[misc]
    return made  # type: ignore[return-value]


def load(cls: type[T], path: str | Path) -> T:
    """Load the configuration `cls` from the YAML file `path`.

    Raises ConfigurationError naming every wrong key, with its path, its value and a hint.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigurationError(f"no configuration file {path}; shipped ones are in workflows/experiments/") from error
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text ({error}); configurations are YAML") from error
    return from_yaml(cls, text, str(path))


def from_yaml(cls: type[T], text: str, source: str) -> T:
    """Return the configuration `cls` from the YAML `text`; errors as in `load`."""
    try:
        tree = yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        content = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigurationError(f"{source} holds {content}, not a mapping of settings")
    return parse(cls, tree, source)


def parse(cls: type[T], tree: dict[str, Any], source: str = "configuration") -> T:
    """Return the configuration `cls` from plain dicts, lists and scalars; errors as in `load`."""
    try:
        # Through JSON, because strict mode then accepts a list as a tuple and coerces nothing else.
        return TypeAdapter(cls).validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        raise ConfigurationError(_explain(cls, error, source)) from None
    except (TypeError, ValueError) as error:  # YAML values that JSON lacks: a date, a recursive alias
        raise ConfigurationError(f"{source}: {error}; write text (in quotes), numbers, lists and mappings") from None


def replaced(settings: T, source: str, **changes: Any) -> T:
    """Return the configuration with the changed fields; errors as in `load`."""
    try:
        return dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    except pydantic.ValidationError as error:
        raise ConfigurationError(_explain(type(settings), error, source)) from None


def plain(settings: Any) -> Any:
    """Return the configuration as plain dicts, lists and scalars: the inverse of `parse`."""
    # "constants" keeps infinity as infinity instead of null.
    return TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="constants")).dump_python(settings, mode="json")


def dump(settings: Any) -> str:
    """Return the configuration as YAML text with every default written out; `load` reads back an equal value."""
    return yaml.dump(plain(settings), Dumper=_YamlWriter, sort_keys=False)


def from_flags(cls: type[T], arguments: Sequence[str], description: str) -> T:
    """Return the defaults of `cls` overridden by `[--key value ...]`.

    A wrong setting ends the process with status 1, an unknown flag with status 2.
    """
    try:
        return _overridden(cls, cls(), arguments, description)
    except ConfigurationError as error:
        print(f"configuration error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def from_command_line(cls: type[T], arguments: Sequence[str] | None = None, description: str | None = None) -> T:
    """Return the configuration of `EXPERIMENT.yaml [--section.key value ...]`: the file with command-line overrides.

    A wrong setting ends the process with status 1 and a message, an unknown flag or no file with status 2; `--help`
    after the file lists every setting.
    Only the file chooses variants (`kind`) and their number.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0].startswith("-"):
        help_requested = arguments in (["-h"], ["--help"])
        usage = f"usage: python -m MODULE EXPERIMENT.yaml [--section.key VALUE ...] [--help]\n{description or ''}"
        print(usage.strip(), file=sys.stdout if help_requested else sys.stderr)
        raise SystemExit(0 if help_requested else 2)
    try:
        return _overridden(cls, load(cls, arguments[0]), arguments[1:], description)
    except ConfigurationError as error:
        print(f"configuration error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _overridden(cls: type[T], settings: T, arguments: Sequence[str], description: str | None) -> T:
    """Return the settings overridden by the flags, validated as a whole."""
    changed = tyro.cli(
        cls,
        default=settings,
        args=arguments,
        description=description,
        config=(tyro.conf.AvoidSubcommands,),
        registry=_REGISTRY,
    )
    return parse(cls, plain(changed), source="command line")


def _unchecked(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Return a tyro spec that reads a configuration as a plain dict, so that only `parse` validates it, as a whole."""
    if not hasattr(info.type, "__pydantic_fields__"):
        return None
    types = typing.get_type_hints(info.type, include_extras=True)
    fields = (
        StructFieldSpec(
            name=name,
            type=types[name],
            default=getattr(info.default, name, tyro.MISSING),  # missing in variants that the file does not choose
            helptext=field.description,
        )
        for name, field in info.type.__pydantic_fields__.items()
    )
    return StructConstructorSpec(instantiate=dict, fields=tuple(fields))


_REGISTRY = ConstructorRegistry()
_REGISTRY.struct_rule(_unchecked)


class _Yaml(yaml.SafeLoader):
    """YAML loader with two fixes: `1e-3` is a number (YAML 1.1 reads it as text) and duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_OTHER_BREAKS = frozenset("\x85\u2028\u2029")  # which YAML reads as line breaks unless they are escaped


class _YamlWriter(yaml.SafeDumper):
    """YAML dumper for `_Yaml`: the text "1e-3" is quoted, the number is not; lines of a text stay lines.

    Unless a line has a tab or ends with a space, or another control character or line break is in the text: then it is
    one quoted string. Text of one line is written in ASCII: the digests of models depend on it.
    """

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

    def analyze_scalar(self, scalar: str) -> yaml.emitter.ScalarAnalysis:
        self.allow_unicode = "\n" in scalar and not _OTHER_BREAKS.intersection(scalar)
        return super().analyze_scalar(scalar)


_YamlWriter.add_representer(str, _YamlWriter.represent_str)


_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
for side in (_Yaml, _YamlWriter):
    side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))


def _explain(cls: type, error: pydantic.ValidationError, source: str) -> str:
    """Return every problem of `error` on one line: the key as in the file, what is wrong and what would be right."""
    return f"{source}: " + "; ".join(_problem(cls, problem) for problem in error.errors(include_url=False))


def _problem(cls: type, problem: ErrorDetails) -> str:
    path, variants = _follow([cls], problem["loc"])
    name = ".".join(path) or "(top level)"
    context = problem.get("ctx", {})
    kinds = [getattr(variant, "kind", "") for variant in variants]
    match problem["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = {field for variant in _follow([cls], problem["loc"][:-1])[1] for field in _fields(variant)}
            return f"{name}: unknown key; {_hint(path[-1], known)}"
        case "missing" | "missing_argument":
            return f"{name}: missing; it has no default"
        case "union_tag_not_found":
            return f"{name}.kind: missing; allowed: {', '.join(sorted(kinds))}"
        case "union_tag_invalid":
            return f"{name}.kind: there is no {context['tag']!r}; {_hint(context['tag'], kinds)}"
        case "dataclass_type" | "dict_type":
            return f"{name}: should be a mapping of settings; got {_short(problem['input'])}"
        case "value_error":  # raised by a configuration's own validation, which names the value
            return f"{name}: {context['error']}" if path else str(context["error"])
    return f"{name}: {problem['msg']}; got {_short(problem['input'])}"


def _follow(classes: list[type], path: Sequence[str | int]) -> tuple[list[str], list[type]]:
    """Return the keys along pydantic's `path` as the file spells them, and the possible configurations at its end."""
    keys = []
    for part in path:
        variants = [cls for cls in classes if getattr(cls, "kind", None) == part]
        if len(classes) > 1 and variants:  # not a key: the union variant that pydantic chose
            classes = variants
            continue
        keys.append(str(part))
        if any(part in _fields(cls) for cls in classes):
            classes = [inner for cls in classes for inner in _classes(_fields(cls).get(str(part)))]
        # Otherwise a tuple index or a dict key, below which the configurations are the same.
    return keys, classes


def _fields(cls: type) -> dict[str, Any]:
    """Return the settings by name, without the attributes that belong to the class."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _classes(kind: Any) -> list[type]:
    """Return the configurations in the type `kind`, through unions, tuples, dicts and None."""
    if dataclasses.is_dataclass(kind):
        return [typing.cast(type, kind)]
    return [cls for part in typing.get_args(kind) for cls in _classes(part)]


def _hint(word: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, allowed := sorted(allowed), n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
