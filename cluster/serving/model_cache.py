"""Model cache: verified copies of registered models on this machine, usable without the storage.

They lie in the cache of all copies (`edlm.local_cache`): verified when they are made, and again after any change.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.model_sources import require_source
from cluster.tracking.model_version import ModelVersion
from edlm.local_cache import LocalCache, default_cache
from edlm.local_copies import PublishedFolder
from edlm.storage import committed, verify


def model_cache(folder: str | None) -> LocalCache:
    """Return the cache in the configured folder, or this user's."""
    cache = default_cache()
    return cache if folder is None else LocalCache(Path(folder), cache.limit_bytes)


@contextmanager
def cached_model(version: ModelVersion, cache: LocalCache, sources: Sequence[str]) -> Iterator[Path]:
    """Yield the local folder of this version; read the version's URI only if there is no valid copy.

    Raises ConfigurationError if the URI is not in one of the `sources` (`require_source`), or if other users of this
    machine may access the cache, and ValueError if the URI holds nothing, or something else than was registered.
    """
    require_source(version.uri, sources)
    with cache.entry(version.digest, _RegisteredModel(version)) as copy:
        yield copy


@dataclass(frozen=True)
class _RegisteredModel:
    version: ModelVersion

    @cached_property
    def published(self) -> PublishedFolder:
        marker = committed(self.version.uri)
        if marker is None or marker.digest != self.version.digest:
            held = "no committed output" if marker is None else f"digest {marker.digest}"
            raise ValueError(
                f"version {self.version.version} was registered with digest {self.version.digest}, and "
                f"{self.version.uri} holds {held}; register it again"
            )
        return PublishedFolder(self.version.uri, marker)

    @property
    def bytes(self) -> int:
        return self.published.bytes

    def copy_to(self, folder: Path) -> None:
        self.published.copy_to(folder)

    def check(self, folder: Path) -> None:
        marker = committed(str(folder))
        if marker is None or marker.digest != self.version.digest:
            raise ValueError(f"{folder} does not have the digest {self.version.digest}")
        verify(folder, marker.files)
