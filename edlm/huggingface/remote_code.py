"""Code of a network's makers: a model folder holds it as text, and a process runs it by consent to this very text."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydantic

from edlm.config import ConfigurationError

CONSENT = "EDLM_TRUST_REMOTE_CODE"
"""Environment variable: digests of the code that may run, separated by commas. Child processes inherit it."""
COMMIT = re.compile(r"[0-9a-f]{40}")
CONFIG = "config.json"
CONFIGURATIONS = (CONFIG, "tokenizer_config.json")
Code = Mapping[str, str]
"""Source text by file name; empty for an architecture of the library."""


def code_digest(code: Code) -> str:
    """Return the SHA-256 that consent names; of any change of the text it is another."""
    return hashlib.sha256(json.dumps(dict(code), sort_keys=True).encode()).hexdigest()


def consent(code: Code) -> None:
    """Allow this process, and those that it starts from now on, to run this code."""
    given = [digest for digest in os.environ.get(CONSENT, "").split(",") if digest]
    if code and code_digest(code) not in given:
        os.environ[CONSENT] = ",".join([*given, code_digest(code)])


def require_consent(code: Code) -> None:
    """Raise ConfigurationError, naming the files and what to set, unless there is consent to this code."""
    digest = code_digest(code)
    if digest not in os.environ.get(CONSENT, "").split(","):
        raise ConfigurationError(
            f"the network needs code of its makers ({', '.join(sorted(code))}, SHA-256 {digest}), which runs by "
            f"consent only: read it (network.code in the model's model.yaml), and set {CONSENT}={digest} in the "
            "environment of every process that opens the network"
        )


def remote_code(named: str, folder: Path, repository: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the code that a folder's config.json refers to, and its `auto_map` of class names.

    The folder is a copy of the hub's `repository`, or a local one (None). Raise ConfigurationError if code of another
    repository is meant, whose version nothing pins.
    """
    classes = {}
    for file in CONFIGURATIONS:
        for auto_class, references in _auto_map(folder / file).items():
            for reference in references if isinstance(references, list) else [references]:
                origin, _, name = str(reference).rpartition("--")
                if origin not in ("", repository):
                    raise ConfigurationError(
                        f"{named}: {file} takes {auto_class} from the code of another repository, {origin}; copy its "
                        f"files into the folder, and remove {origin}-- from auto_map"
                    )
                if file == CONFIG and isinstance(references, str):
                    classes[auto_class] = name
    code: dict[str, str] = {}
    for module in sorted({name.partition(".")[0] for name in classes.values()}):
        for path in _with_imports(folder / f"{module}.py"):
            code[path.name] = path.read_text(encoding="utf-8")
    return code, classes


@contextmanager
def written(code: Code, architecture: Mapping[str, pydantic.JsonValue]) -> Iterator[Path]:
    """Yield a temporary folder with the code and its config.json, as the library opens it; equal code, equal name."""
    with tempfile.TemporaryDirectory(prefix="edlm-code-") as above:
        folder = Path(above, f"edlm_{code_digest(code)[:16]}")
        folder.mkdir()
        for name, text in code.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(dict(architecture)), encoding="utf-8")
        yield folder


def _auto_map(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8")).get("auto_map") or {}


def _with_imports(path: Path) -> list[Path]:
    """Return a module's file and those that it imports relatively, directly or not, as the library finds them."""
    from transformers.dynamic_module_utils import get_relative_import_files  # type: ignore[import-not-found]

    return [path, *(Path(file) for file in get_relative_import_files(path))] if path.is_file() else []
