"""Model registry: a name and an alias refer to one immutable model folder, identified by its digest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.exceptions import MlflowException

from cluster.tracking.connection import answered, answering
from cluster.tracking.model_version import ModelVersion
from cluster.tracking.parameters import parameters
from edlm.config import ConfigurationError
from edlm.redaction import redacted
from edlm.storage import committed

URI = "edlm.uri"
DIGEST = "edlm.digest"

T = TypeVar("T")


class Registry:
    """Registered models of one MLflow server or database.

    A server that does not answer is asked again for `patience_seconds`.
    """

    def __init__(self, client: MlflowClient, patience_seconds: float = 0.0) -> None:
        self.client = client
        self._patience_seconds = patience_seconds

    def register(
        self, name: str, uri: str, run_id: str, alias: str, digest: str, tags: Mapping[str, str] | None = None
    ) -> ModelVersion:
        """Register the committed folder `uri` as a version of the model `name`, and point `alias` to it.

        The same folder with the same digest is one version, however often it is registered. Raises ConfigurationError
        if nothing is committed at `uri`, or if `uri` contains a user or password.
        """
        # Not Path.as_uri, which encodes a space as %20: fsspec does not decode it.
        absolute = uri if "://" in uri else f"file://{Path(uri).resolve()}"
        if redacted(absolute) != absolute:
            raise ConfigurationError(f"{redacted(absolute)} contains a user or password; set them in the environment")
        if committed(absolute) is None:
            raise ConfigurationError(
                f"{uri} is not committed and cannot be registered; finish the stage that writes it"
            )

        def add() -> MlflowVersion:
            version = self._find_or_add(name, absolute, run_id, digest, tags or {})
            self.client.set_registered_model_alias(name, alias, version.version)
            return version

        return ModelVersion(version=str(self._answered(add).version), uri=absolute, digest=digest)

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """Return the version that `alias` of model `name` refers to; else raise ConfigurationError with what exists."""
        try:
            version = self._answered(lambda: self.client.get_model_version_by_alias(name, alias))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ConfigurationError(self._what_exists(name, alias)) from error
        return _model_version(name, version)

    def numbered(self, name: str, number: int) -> ModelVersion:
        """Return version `number` of model `name`; else raise ConfigurationError with the existing versions."""
        with answering(self.client.tracking_uri):
            versions = {int(entry.version): entry for entry in self.client.search_model_versions(f"name='{name}'")}
        if number not in versions:
            known = ", ".join(map(str, sorted(versions))) or "none"
            raise ConfigurationError(f"model {name!r} has no version {number} (versions: {known})")
        return _model_version(name, versions[number])

    def _answered(self, request: Callable[[], T]) -> T:
        return answered(self.client.tracking_uri, self._patience_seconds, request)

    def _find_or_add(self, name: str, uri: str, run_id: str, digest: str, tags: Mapping[str, str]) -> MlflowVersion:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        identity = {URI: uri, DIGEST: digest}
        for version in self.client.search_model_versions(f"name='{name}'"):
            if identity.items() <= version.tags.items():
                return version
        # A server rejects a local folder as a source, even on a shared disk; the run is then given instead.
        on_server = self.client.tracking_uri.startswith("http")
        source = f"runs:/{run_id}" if on_server and uri.startswith("file:") else uri
        return self.client.create_model_version(name, source, run_id=run_id, tags={**parameters(tags), **identity})

    def _what_exists(self, name: str, alias: str) -> str:
        models = [model.name for model in self.client.search_registered_models()]
        if name not in models:
            known = ", ".join(models) or "none"
            return f"no model {name!r} is registered (registered: {known}); run `make run` first, or the register stage"
        aliases = self.client.get_registered_model(name).aliases
        known = ", ".join(f"{alias} -> version {version}" for alias, version in aliases.items()) or "none"
        return f"model {name!r} has no alias {alias!r} (aliases: {known}); run the register stage"


def _model_version(name: str, version: MlflowVersion) -> ModelVersion:
    """Convert an MLflow version; raise ConfigurationError if it was not registered by this module."""
    missing = [key for key in (URI, DIGEST) if not version.tags.get(key)]
    if missing:
        raise ConfigurationError(
            f"model {name!r} version {version.version} has no tag {missing[0]}; register its folder again"
        )
    return ModelVersion(version=str(version.version), uri=version.tags[URI], digest=version.tags[DIGEST])
