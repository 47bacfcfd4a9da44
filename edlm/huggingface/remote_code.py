"""Code of a network's makers: a model folder holds it as text, and a process runs it by consent to this very text."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic

from edlm.config import ConfigurationError

CONSENT = "EDLM_TRUST_REMOTE_CODE"
"""Environment variable: digests of the code that may run, separated by commas. Child processes inherit it."""
COMMIT = re.compile(r"[0-9a-f]{40}")
CONFIG = "config.json"
CONFIGURATIONS = (CONFIG, "tokenizer_config.json")
FILE = re.compile(r"[A-Za-z_]\w*\.py")
"""Name of a file of code. The library itself copies no sub-folders along with a module."""
REFERENCE = re.compile(r"([A-Za-z_]\w*)\.[A-Za-z_]\w*")
"""MODULE.CLASS. The library would run a file anywhere: `/folder/module.Class`, `../module.Class`."""
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
    repository is meant, whose version nothing pins, or a file that is missing or elsewhere than in the folder, and if a
    configuration is damaged or takes its values from another file.
    """
    classes, modules = {}, set()
    for file in CONFIGURATIONS:
        for auto_class, references in _auto_map(named, folder / file).items():
            for reference in references if isinstance(references, list) else [references]:
                if reference is None:  # a tokenizer without a slow or a fast class
                    continue
                origin, separator, name = str(reference).rpartition("--")
                if separator and origin != repository:
                    raise ConfigurationError(
                        f"{named}: {file} takes {auto_class} from the code of another repository, {origin}; copy its "
                        f"files into the folder, and remove {origin}-- from auto_map"
                    )
                module = REFERENCE.fullmatch(name)
                if module is None:
                    raise ConfigurationError(
                        f"{named}: auto_map of {file} takes {auto_class} from {name!r}; it must be MODULE.CLASS, of a "
                        "file MODULE.py directly in the folder"
                    )
                if file == CONFIG and isinstance(references, str):
                    classes[auto_class] = name
                    modules.add(module[1])
    code: dict[str, str] = {}
    for module_name in sorted(modules):
        code |= _with_imports(named, folder, f"{module_name}.py")
    return code, classes


@contextmanager
def written(code: Code, architecture: Mapping[str, pydantic.JsonValue]) -> Iterator[Path]:
    """Yield a temporary folder with the code and its config.json, as the library opens it; equal code, equal name.

    Raise ConfigurationError for a file's name that is none of a module, such as a path out of the folder.
    """
    for name in code:
        _require_module(f"`code` of the network names the file {name!r}", name)
    with tempfile.TemporaryDirectory(prefix="edlm-code-") as above:
        folder = Path(above, f"edlm_{code_digest(code)[:16]}")
        folder.mkdir()
        for name, text in code.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(dict(architecture)), encoding="utf-8")
        yield folder


@contextmanager
def failures_named(named: str, code: Code) -> Iterator[None]:
    """Raise ConfigurationError for an exception of the makers' code, which runs within; without `code` change none.

    Code for another version of the library fails in many ways. Missing files (OSError) and tensors of wrong shapes
    (RuntimeError) keep their exception.
    """
    try:
        yield
    except (ConfigurationError, OSError, RuntimeError):
        raise
    except Exception as error:
        if not code:
            raise
        raise ConfigurationError(
            f"{named}: its makers' code fails under transformers {version('transformers')}: {type(error).__name__}: "
            f"{error}; correct it in a copy of the network's folder, or install the version that it was written for "
            "(transformers_version in config.json)"
        ) from error


def _auto_map(named: str, path: Path) -> Mapping[str, Any]:
    """Return `auto_map` of a configuration; older tokenizers have a list in place of a mapping."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{named}: {path.name} is damaged ({error}); restore a good copy") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{named}: {path.name} holds no mapping of settings; restore a good copy")
    if "configuration_files" in settings:
        raise ConfigurationError(
            f"{named}: {path.name} takes its values from other files by configuration_files; copy the file for the "
            f"installed transformers {version('transformers')} over {path.name}, without configuration_files"
        )
    found = settings.get("auto_map") or {}
    if isinstance(found, list):
        found = {"AutoTokenizer": found}
    if not isinstance(found, dict):
        raise ConfigurationError(f"{named}: auto_map of {path.name} is no mapping of class names: {found!r}")
    return found


def _with_imports(named: str, folder: Path, module: str) -> dict[str, str]:
    """Return a module's text and those of the modules that it imports relatively, as the library finds them."""
    from transformers.dynamic_module_utils import get_relative_import_files  # type: ignore[import-not-found]

    path = folder / module
    if not path.is_file():
        raise ConfigurationError(
            f"{named}: auto_map of {CONFIG} names a class of {module}, which is not there; restore the file"
        )
    try:
        files = [module, *(os.path.relpath(file, folder) for file in get_relative_import_files(path))]
        for file in files:
            _require_module(f"{named}: {module} imports {file}", file)
        return {file: (folder / file).read_text(encoding="utf-8") for file in files}
    except FileNotFoundError as error:
        missing = os.path.relpath(error.filename, folder)
        raise ConfigurationError(
            f"{named}: {module} imports {missing}, directly or not, which is not there; restore the file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{named}: {module}, or what it imports, is not UTF-8 text: {error}") from error


def _require_module(problem: str, name: str) -> None:
    if not FILE.fullmatch(name):
        raise ConfigurationError(f"{problem}; code lies in files MODULE.py directly in the network's folder")
