"""Check of the file of API keys, before anything is started or written."""

from pathlib import Path

from cluster.config import is_private
from cluster.http.middleware.api_keys import require_keys
from workflows.experiment import Experiment


def require_keyed(experiment: Experiment) -> None:
    """Raise BadKeyFile unless the file of API keys is good. A cluster's is on its own machines: not checked."""
    if experiment.serving.key_file is not None and is_private(experiment.cluster):
        require_keys(Path(experiment.serving.key_file))
