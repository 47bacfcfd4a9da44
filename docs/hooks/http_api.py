"""The reference of the HTTP API, from docs/openapi.json, which is what the endpoint says of itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from schema_tables import kind, table

OPENAPI = Path(__file__).parents[1] / "openapi.json"
INTRODUCTION = """\
# HTTP API

Generated from [openapi.json](../openapi.json), which a running endpoint also returns at `/openapi.json`.
What a document of types cannot say, seeds, streams, stop strings and limits, is on the page [Endpoint](../endpoint.md).
"""


def on_files(files, config, **_):
    """Add the page."""
    files.append(File.generated(config, "api/http.md", content=page()))
    return files


def page() -> str:
    """Return the reference as Markdown: the routes, the status codes, then the objects."""
    api = json.loads(OPENAPI.read_text(encoding="utf-8"))
    schemas = api["components"]["schemas"]
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    routes = "\n".join(_route(name, operation) for name, operation in operations)
    objects = "\n".join(
        f"### {name}\n\n{schema.get('description', '')}\n\n{table(schema, schemas, _link)}"
        for name, schema in schemas.items()
    )
    return f"{INTRODUCTION}\n## Routes\n\n{routes}\n{_failures(operations)}\n## Objects\n\n{objects}"


def _route(name: str, operation: Mapping[str, Any]) -> str:
    lines = [f"### {name}", "", operation.get("description", ""), ""]
    for parameter in operation.get("parameters", ()):
        lines.append(f"- `{parameter['name']}` in the {parameter['in']}: {kind(parameter['schema'], _link)}")
    if body := operation.get("requestBody"):
        lines.append(f"- Request: {_content(body)}")
    lines.append(f"- Response: {_content(operation['responses']['200'])}")
    failures = [status for status in operation["responses"] if status != "200"]
    return "\n".join([*lines, f"- Failures: {', '.join(failures)}", ""])


def _content(message: Mapping[str, Any]) -> str:
    types = []
    for media, content in message.get("content", {}).items():
        of = kind(content["schema"], _link) if "schema" in content else "events"
        types.append(f"{of} (`{media}`)")
    return ", or ".join(types)


def _failures(operations: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the table of the status codes of failures. Every one of them has the body `ErrorResponse`."""
    meanings = {
        status: response["description"]
        for _, operation in operations
        for status, response in operation["responses"].items()
        if status != "200"
    }
    rows = "\n".join(f"| {status} | {meanings[status]} |" for status in sorted(meanings))
    body = f"The body of every failure is a {_link('ErrorResponse')}."
    return f"## Failures\n\n{body}\n\n| status | meaning |\n|---|---|\n{rows}\n"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"
