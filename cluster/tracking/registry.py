"""The model registry: a name and an alias stand for one immutable folder, known by its digest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.exceptions import MlflowException

from cluster.tracking.connection import answering
from cluster.tracking.parameters import parameters, redacted
from edlm.config import ConfigurationError
from edlm.storage import committed

URI = "edlm.uri"
DIGEST = "edlm.digest"


@dataclass(frozen=True)
class ModelVersion:
    """One registered model: its number in the registry, the URI of its folder and the folder's digest."""

    version: str
    uri: str
    digest: str

    @property
    def fingerprint(self) -> str:
        """Both in one word, as answers give it."""
        return f"{self.version}/{self.digest}"


class Registry:
    """The registered models of one MLflow server or database."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def register(
        self, name: str, uri: str, run_id: str, alias: str, digest: str, tags: Mapping[str, str] | None = None
    ) -> ModelVersion:
        """Afterwards `alias` of the model `name` stands for the committed folder `uri`.

        The same folder with the same digest is one version, however often it is registered. Raises ConfigurationError
        where nothing is committed at `uri`, or where `uri` holds a password.
        """
        # Not Path.as_uri: fsspec takes the %20 that it writes for a space as it is.
        absolute = uri if "://" in uri else f"file://{Path(uri).resolve()}"
        if redacted(absolute) != absolute:
            raise ConfigurationError(f"{redacted(absolute)} holds a user or password; put those into the environment")
        if committed(absolute) is None:
            raise ConfigurationError(
                f"{uri} is not committed, so not registered; run the stage that writes it to its end"
            )
        with answering(self.client.tracking_uri):
            version = self._find_or_add(name, absolute, run_id, digest, tags or {})
            self.client.set_registered_model_alias(name, alias, version.version)
        return ModelVersion(version=str(version.version), uri=absolute, digest=digest)

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """The version that `alias` of the model `name` stands for; else ConfigurationError says what there is."""
        try:
            with answering(self.client.tracking_uri):
                version = self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ConfigurationError(self._what_exists(name, alias)) from error
        return _told(name, version)

    def numbered(self, name: str, number: int) -> ModelVersion:
        """Version `number` of the model `name`; else ConfigurationError says which there are."""
        with answering(self.client.tracking_uri):
            versions = {int(one.version): one for one in self.client.search_model_versions(f"name='{name}'")}
        if number not in versions:
            known = ", ".join(map(str, sorted(versions))) or "none"
            raise ConfigurationError(f"model {name!r} has no version {number} (versions: {known})")
        return _told(name, versions[number])

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
        # A server refuses local folders as a source, even if it shares our disk; there the run stands for the folder.
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


def _told(name: str, version: MlflowVersion) -> ModelVersion:
    """What the registry says of a version; ConfigurationError where it was not registered by us."""
    missing = [key for key in (URI, DIGEST) if not version.tags.get(key)]
    if missing:
        raise ConfigurationError(
            f"model {name!r} version {version.version} has no tag {missing[0]}; register its folder again"
        )
    return ModelVersion(version=str(version.version), uri=version.tags[URI], digest=version.tags[DIGEST])
