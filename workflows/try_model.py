"""Try a model: the newest one that was registered in EDLM_HOME, in one process without Ray, ready in seconds.

python -m workflows.try_model [--port 8000] [--keys FILE]
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.http import local
from edlm.config import ConfigurationError
from edlm.inference.generator import CARD
from edlm.storage import MARKER

REGISTERED = f"*/register-*/{CARD}"  # EXPERIMENT/STAGE-FINGERPRINT


def newest(home: str) -> Path:
    """Return the newest bundle that a register stage has finished in `home`; raise ConfigurationError if none has."""
    if "://" in home:
        raise ConfigurationError(f"EDLM_HOME is {home}, no folder of this machine; use python -m workflows.serve")
    folders = [card.parent for card in Path(home).expanduser().glob(REGISTERED) if (card.parent / MARKER).is_file()]
    if not folders:
        raise ConfigurationError(
            f"no model is registered in {home}; run `make run` first, set EDLM_HOME, or give the folder of a bundle: "
            "python -m cluster.http.local FOLDER"
        )
    return max(folders, key=lambda folder: (folder / MARKER).stat().st_mtime)


def main(arguments: Sequence[str]) -> None:
    """Serve the newest model, its playground too, until Ctrl-C; end with status 1 and one line if there is none."""
    if {"-h", "--help"} & {*arguments}:  # also where no model is registered
        print(__doc__)
        return
    home = os.environ.get("EDLM_HOME") or str(Path(__file__).resolve().parents[1] / "runs")
    try:
        folder = newest(home)
    except ConfigurationError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"loading {folder}", flush=True)
    local.main([str(folder), *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
