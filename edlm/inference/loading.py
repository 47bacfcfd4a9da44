"""Loading of a registered model by its folder, its URI or its name in a registry."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from edlm.config import ConfigurationError
from edlm.file_systems import require_answer
from edlm.inference.generator import TextGenerator, VersionedGenerator, open_bundle
from edlm.inference.language_model import LanguageModel
from edlm.local_cache import LocalCache, default_cache
from edlm.models.execution import AS_TRAINED, Execution
from edlm.storage import StorageError, committed

RESOLVERS = "edlm.resolvers"
"""Group of entry points: a scheme, and a function from a URI of this scheme to the bundle that it means."""
REGISTRY = "models"  # scheme of registered models, as MLflow writes it
NAME_AND_ALIAS = re.compile(r"[\w.-]+@[\w.-]+")


@dataclass(frozen=True)
class BundleLocation:
    """Published bundle, the digest that it must have, and the name of its version."""

    uri: str
    digest: str | None = None
    version: str | None = None


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "cpu",
    execution: Execution = AS_TRAINED,
    cache: str | os.PathLike[str] | None = None,
) -> LanguageModel:
    """Return the model to generate with.

    `model` is a bundle's folder, its URI (any of fsspec's, such as s3://...), or a registered model:
    "models:/NAME@ALIAS", "models:/NAME/VERSION" or "NAME@ALIAS". Every file of a published bundle is verified. What is
    not a local folder is copied once to the folder `cache`, which only this user may access (None: EDLM_CACHE, else
    `cache` in a local EDLM_HOME, else ~/.cache/edlm). `execution` sets the precision, and whether layers are compiled.

    Raise ValueError if there is no such model, if its files are damaged, or if this machine cannot compile layers for
    `device`, and OSError if its store does not answer or refuses the credentials.
    """
    execution.require(device)
    location = locate(os.fspath(model))
    uri, version = location.uri, location.version or "unversioned"
    path = uri.removeprefix("file://")
    is_local = "://" not in path
    if is_local and not Path(path).is_dir():
        raise ConfigurationError(
            f"there is no folder {path}; give the folder or the URI of a bundle, or NAME@ALIAS of a registered model"
        )
    if not is_local:
        require_answer(uri)  # a wrong address, or wrong credentials, are said at once
    if is_local and location.digest is None and committed(uri) is None:  # not published: nothing to verify it by
        return LanguageModel(VersionedGenerator(open_bundle(Path(path), device, execution), version))
    copies = default_cache() if cache is None else LocalCache(Path(cache))
    try:
        generator = TextGenerator.load(uri, copies, location.digest, device, execution)
    except StorageError as error:
        if not uri.startswith(("http://", "https://")):
            raise
        raise ConfigurationError(f"{error}; if it is the URL of a service, ask that with edlm.Client") from error
    return LanguageModel(VersionedGenerator(generator, version))


def locate(model: str) -> BundleLocation:
    """Return where the bundle lies. Raise ConfigurationError if a registered model cannot be looked up."""
    if NAME_AND_ALIAS.fullmatch(model) and not Path(model).exists():
        model = f"{REGISTRY}:/{model}"
    scheme, colon, _ = model.partition(":")
    if not colon:
        return BundleLocation(model)
    resolvers = entry_points(group=RESOLVERS, name=scheme)
    if not resolvers and scheme != REGISTRY:
        return BundleLocation(model)
    for entry in resolvers:
        try:
            resolve: Callable[[str], BundleLocation] = entry.load()
        except ModuleNotFoundError as error:
            raise ConfigurationError(_unresolved(model, f"{error.name} is not installed")) from error
        return resolve(model)
    raise ConfigurationError(_unresolved(model, "no installed package looks it up"))


def _unresolved(model: str, cause: str) -> str:
    return (
        f"{model} is the name of a registered model, and {cause}: registries are read by the package `cluster` of a "
        "checkout of edlm, after `make install`; or give the folder or the URI of the bundle"
    )
