"""MLflow model (`pyfunc`) of an exported repository: from code, without a pickle or a second copy of the weights."""

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

FOLDER = "mlflow"
REPOSITORY = "repository"
CODE = Path(__file__).with_name("pyfunc_code.py")
PACKAGES = ("mlflow", "transformers", "torch")
WEIGHTS = "*.safetensors"


def write_pyfunc(repository: Path) -> None:
    """Write the MLflow model of the repository to its subfolder `mlflow`, which `mlflow models serve` takes.

    It is whole: it may be copied or registered without the repository. Its weights are hard links to the repository's,
    or copies on a disk without hard links.
    """
    target = repository / FOLDER
    with tempfile.TemporaryDirectory(prefix="edlm-pyfunc-") as scratch:
        artifact = Path(scratch) / REPOSITORY
        shutil.copytree(repository, artifact, ignore=lambda _, names: [name for name in names if _omitted(name)])
        mlflow.pyfunc.save_model(
            path=target,
            python_model=str(CODE),
            artifacts={REPOSITORY: str(artifact)},
            pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
        )
    for weights in repository.glob(WEIGHTS):
        _link(weights, target / "artifacts" / REPOSITORY / weights.name)
    _complete(target, json.loads((repository / "config.json").read_text(encoding="utf-8")))


def _omitted(name: str) -> bool:
    """Return whether the service does not need a file of the repository, or gets it later, as it does the weights."""
    return Path(name).suffix not in (".json", ".py")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _complete(folder: Path, settings: dict[str, Any]) -> None:
    """Record the settings of requests and the size; take out this machine's folders, which MLflow never reads."""
    model = Model.load(folder)
    model.signature = _signature(settings["sampler"], settings["energy"])
    flavor = model.flavors[mlflow.pyfunc.FLAVOR_NAME]
    flavor["model_code_path"] = CODE.name
    flavor["artifacts"][REPOSITORY]["uri"] = flavor["artifacts"][REPOSITORY]["path"]
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.save(folder / MLMODEL_FILE_NAME)


def _signature(sampler: dict[str, Any], energy: str | None) -> ModelSignature:
    """Return the input, output and settings of a request; the registered sampler is the default."""
    settings = [
        ParamSpec("seed", "long", 0),
        ParamSpec("max_tokens", "long", 16),
        ParamSpec("steps", "long", sampler["steps"]),
        ParamSpec("candidates", "long", sampler["candidates"]),
        ParamSpec("energy_temperature", "double", sampler["energy_temperature"]),
        ParamSpec("energy", "string", energy or ""),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec("string")]), outputs=Schema([ColSpec("string")]), params=ParamSchema(settings)
    )
