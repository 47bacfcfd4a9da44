"""Where runs are tracked: the URI of the server or database, and the folder of the artifacts."""

from pathlib import Path
from urllib.parse import urlsplit

from cluster.config import Tracking
from edlm.config import ConfigurationError
from edlm.redaction import redacted
from edlm.storage import join

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
NO_ARTIFACTS = ("az", "abfs", "abfss", "gcs", "s3a")  # schemes of stores that MLflow does not know without a server


def tracking_uri(tracking: Tracking, root: str) -> str:
    """Return the absolute URI of the server or database: as configured, or an SQLite file in the storage root."""
    if tracking.uri is None:
        return f"sqlite:///{_local(root)}/mlflow.db"
    scheme = tracking.uri.partition("://")[0].partition("+")[0]
    if scheme not in ("http", "https", *DATABASES):
        raise ConfigurationError(
            f"tracking.uri: {tracking.uri!r} is neither a server nor a database; give http(s)://HOST:PORT, "
            "sqlite:////ABSOLUTE/PATH or postgresql://..., or leave it out"
        )
    if scheme == "sqlite" and not tracking.uri.partition("://")[2].startswith("//"):
        raise ConfigurationError(
            f"tracking.uri: {tracking.uri!r} is relative, but workers run in other folders; give sqlite:////ABSOLUTE/PATH"
        )
    return tracking.uri


def database_file(tracking: Tracking, root: str) -> Path | None:
    """Return the path of the SQLite database, existing or not; None for a server or another kind of database."""
    scheme, _, path = tracking_uri(tracking, root).partition("://")
    return Path(path.removeprefix("/")) if scheme.partition("+")[0] == "sqlite" else None


def artifact_location(tracking: Tracking, root: str) -> str | None:
    """Return the artifact folder below the storage root; None for a server, which decides for itself."""
    if tracking.uri is not None and tracking.uri.startswith("http"):
        return None
    location = join(root if _is_remote(root) else _local(root), "artifacts")
    if urlsplit(location).scheme in NO_ARTIFACTS:
        raise ConfigurationError(
            f"tracking.uri: MLflow keeps no artifacts at {redacted(location)}; give the URI of a tracking server, "
            "which keeps them itself"
        )
    return location


def _is_remote(root: str) -> bool:
    return "://" in root and not root.startswith("file://")


def _local(root: str) -> str:
    if _is_remote(root):
        raise ConfigurationError(
            f"tracking.uri: missing; storage at {redacted(root)} cannot hold a database, so give a server's URI"
        )
    folder = Path(root.removeprefix("file://"))
    if not folder.is_absolute():
        raise ConfigurationError(
            f"storage root {root!r} is relative, but workers run in other folders; give an absolute path"
        )
    return str(folder)
