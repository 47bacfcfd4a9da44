"""Versions of registered models, as plain data: replicas know them without MLflow, which takes seconds to import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelVersion:
    """Registered model: its version number in the registry, the URI of its folder and the folder's digest."""

    version: str
    uri: str
    digest: str

    @property
    def fingerprint(self) -> str:
        """Version and digest in one string, as given in responses."""
        return f"{self.version}/{self.digest}"
