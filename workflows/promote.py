"""Promotion: the endpoint serves another registered version, or keeps the one before.

python -m workflows.serve promote [--alias champion | --version 3] [--address HOST:PORT] [--timeout_seconds 180]

The model's name and its registry are those of the deployment. If the endpoint requires API keys, EDLM_API_KEY holds one
for the request that tests the new version. If the version is not promoted, the exit status is 1 and the reason printed.
"""

import os
import sys
from collections.abc import Sequence

from cluster.config import Cluster
from cluster.runtime.ray_connection import connect, named_address
from cluster.serving.promotion import KEY, NotPromoted, Promotion
from edlm.config import ConfigurationError, Positive, PositiveFloat, config, from_flags
from edlm.redaction import redact_logs, redacted_text
from workflows.stage import say

CANARY = {"prompt": "", "max_tokens": 16, "seed": 1}


@config
class Promote:
    """The version to promote, and its cluster."""

    alias: str | None = None
    """None: the alias that the endpoint was deployed with."""
    version: Positive | None = None
    """Number of a version, instead of an alias; for example, to roll back."""
    address: str | None = None
    """Address of the Ray cluster. None: RAY_ADDRESS, else that of this user's `ray start` on this machine."""
    timeout_seconds: PositiveFloat = 180.0
    """Time within which the version must answer in every replica."""

    def __post_init__(self) -> None:
        if self.alias is not None and self.version is not None:
            raise ConfigurationError(f"alias {self.alias!r} and version {self.version}: give one of them")


def promote(settings: Promote) -> None:
    """Promote the version in every replica. Raise NotPromoted if that fails; the previous version then goes on."""
    address = named_address(settings.address)
    say("promote", f"on the Ray cluster at {address}")
    with connect(Cluster(address=address)):
        promotion = Promotion(settings.timeout_seconds, os.environ.get(KEY))
        version = promotion.resolve(settings.alias, settings.version, os.environ.get("EDLM_HOME"))
        name = f"{promotion.arguments.model} version {version.version}, digest {version.digest[:12]}"
        say("promote", f"trying {name}")
        promotion.run(version, CANARY)
        say("promote", f"every replica serves {name}")


def main(arguments: Sequence[str]) -> None:
    redact_logs()
    settings = from_flags(Promote, arguments, __doc__ or "")
    try:
        promote(settings)
    except KeyboardInterrupt:
        print("error: not promoted: interrupted; the previous version stays deployed, or is restored", file=sys.stderr)
        raise SystemExit(130) from None
    except (NotPromoted, ValueError, ConnectionError) as error:
        print(redacted_text(f"error: not promoted: {error}"), file=sys.stderr, flush=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1:])
