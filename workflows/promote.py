"""Promote: another registered version answers at the endpoint, or the one before goes on.

python -m workflows.serve promote [--alias champion | --version 3] [--address HOST:PORT] [--timeout_seconds 180]

The cluster knows the model's name and its registry from how it was deployed. Where the endpoint asks for API keys, one
in EDLM_API_KEY is for the request that tries the new version. Status 1, and the reason, where it is not promoted.
"""

import os
import sys
from collections.abc import Sequence

from cluster.config import Cluster
from cluster.runtime.session import connect, named_address
from cluster.serving.promotion import KEY, NotPromoted, Promotion
from edlm.config import ConfigurationError, Positive, PositiveFloat, config, from_flags
from workflows.stage import say

CANARY = {"prompt": "", "max_tokens": 16, "seed": 1}


@config
class Promote:
    """Which version, and where."""

    alias: str | None = None
    """None: the alias that the endpoint was deployed with."""
    version: Positive | None = None
    """A version by its number instead: the way back."""
    address: str | None = None
    """Of the Ray cluster. None: RAY_ADDRESS, else that of this user's `ray start` on this machine."""
    timeout_seconds: PositiveFloat = 180.0
    """How long the version has to answer in every replica."""

    def __post_init__(self) -> None:
        if self.alias is not None and self.version is not None:
            raise ConfigurationError(f"alias {self.alias!r} and version {self.version}: give one of them")


def promote(wanted: Promote) -> None:
    """Afterwards the version answers in every replica. NotPromoted where it does not, and the one before goes on."""
    address = named_address(wanted.address)
    say("promote", f"on the Ray cluster at {address}")
    with connect(Cluster(address=address)):
        promotion = Promotion(wanted.timeout_seconds, os.environ.get(KEY))
        version = promotion.resolve(wanted.alias, wanted.version, os.environ.get("EDLM_HOME"))
        name = f"{promotion.arguments.model} version {version.version}, digest {version.digest[:12]}"
        say("promote", f"trying {name}")
        promotion.run(version, CANARY)
        say("promote", f"every replica answers with {name}")


def main(arguments: Sequence[str]) -> None:
    wanted = from_flags(Promote, arguments, __doc__ or "")
    try:
        promote(wanted)
    except KeyboardInterrupt:
        print("error: not promoted: interrupted; what was deployed before stays, or is so again", file=sys.stderr)
        raise SystemExit(130) from None
    except (NotPromoted, ValueError, ConnectionError) as error:
        print(f"error: not promoted: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1:])
