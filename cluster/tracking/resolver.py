"""Resolver of registered models for `edlm.load`: from a name in the registry to a bundle."""

import os
import re
from pathlib import Path

from cluster.config import Tracking
from cluster.tracking.runs import open_registry
from edlm.config import ConfigurationError
from edlm.inference.loading import BundleLocation
from edlm.storage import absolute

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def resolve(uri: str) -> BundleLocation:
    """Return the bundle that "models:/NAME@ALIAS" or "models:/NAME/VERSION" refers to.

    The registry is that of MLFLOW_TRACKING_URI, else the database in EDLM_HOME, else the one in `runs/` of the
    checkout. Raise ConfigurationError, naming what is registered, if the registry holds no such model.
    """
    parts = REGISTERED.fullmatch(uri)
    if parts is None:
        raise ConfigurationError(f"{uri} is no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    root = absolute(os.environ.get("EDLM_HOME") or str(Path(__file__).resolve().parents[2] / "runs"))
    registry = open_registry(Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI")), root)
    name, number = parts["name"], parts["version"]
    version = registry.resolve(name, parts["alias"]) if number is None else registry.numbered(name, int(number))
    return BundleLocation(version.uri, version.digest, version.version)
