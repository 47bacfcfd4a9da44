"""The configuration reference: every setting of an experiment, from the fields of its dataclasses."""

from collections.abc import Mapping

from mkdocs.structure.files import File
from pydantic import TypeAdapter
from schema_tables import Schema, references, table
from schema_tables import kind as type_of

from workflows.experiment import Experiment

INTRODUCTION = """\
# Configuration

Every setting of an experiment's YAML file, generated from the dataclasses that read it.
An unknown key, a wrong type or a value out of range is an error before anything starts.

Every setting is also a flag of every stage, with dots between its parts:

```bash
python -m workflows.pretrain workflows/experiments/tiny.yaml --pretrain.steps 100 --cluster.zero.stage 1
python -m workflows.pipeline workflows/experiments/tiny.yaml --help
```

Only the file chooses variants (`kind`) and the number of entries in a list.
A flag writes a list as its values: `--evaluate.steps 4 8 16`.
`null` in the file is `None` as a flag, and in the meanings below.
"""


def on_files(files, config, **_):
    """Add the page."""
    files.append(File.generated(config, "configuration.md", content=page()))
    return files


def page() -> str:
    """Return the reference as Markdown: the experiment first, then each section in the order of its first use."""
    schema = TypeAdapter(Experiment).json_schema()
    definitions = schema["$defs"]

    def variant(name: str) -> str | None:
        return definitions[name]["properties"].get("kind", {}).get("const")

    def link(name: str) -> str:
        kind = variant(name)
        return f"[{name if kind is None else f'`{kind}`'}](#{name.lower()})"

    sections = [INTRODUCTION, f"## Experiment\n\n{schema['description']}\n\n{table(schema, definitions, link)}"]
    for name, settings in _settings_of(schema, definitions).items():
        definition = definitions[name]
        used = ", ".join(f"`{setting}`" for setting in settings)
        text = definition.get("description", "")
        title = name if (kind := variant(name)) is None else f"`{kind}` ({name})"
        sections.append(
            f"## {title} {{ #{name.lower()} }}\n\n{text}\n\nUsed by {used}.\n\n{table(definition, definitions, link)}"
        )
    return "\n".join(sections)


def _settings_of(schema: Schema, definitions: Mapping[str, Schema]) -> dict[str, list[str]]:
    """Return for each definition, in the order of its first use, the keys of the YAML file that hold one."""
    settings: dict[str, list[str]] = {}

    def visit(inner: Schema, prefix: str) -> None:
        for key, field in inner["properties"].items():
            path = f"{prefix}{key}" + ("[]" if type_of(field, str).startswith("list") else "")
            for name in references(field):
                settings.setdefault(name, []).append(path)
                visit(definitions[name], f"{path}.")

    visit(schema, "")
    return settings
