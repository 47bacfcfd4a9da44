"""Convert: the weights of a pickled checkpoint (.ckpt, .bin, .pt, .pth) as safetensors, without executing the pickle.

python -m workflows.convert SOURCE TARGET.safetensors [--raw]

The running averages (EMA) of a training checkpoint are taken where it has them; --raw takes the other weights. The
pickle is read with torch's `weights_only` in a process of its own. The result is for
`python -m workflows.import_published`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edlm.atomic_file import replacing
from edlm.config import ConfigurationError
from workflows.importing import pickled_weights

SUFFIX = ".safetensors"


def convert(source: Path, target: Path, raw: bool = False) -> dict[str, Any]:
    """Write the weights of `source` to `target`, whole or not at all, and return facts about them.

    Raise ConfigurationError, with the way out, for a source that is no such checkpoint and for a target that is there.
    """
    if target.suffix != SUFFIX:
        raise ConfigurationError(f"the target {target} does not end in {SUFFIX}, which is what is written")
    if target.exists():
        raise ConfigurationError(f"the target {target} is there already; remove it, or name another")
    if source.suffix == SUFFIX:
        raise ConfigurationError(f"{source} is safetensors already; give it to python -m workflows.import_published")
    if not source.is_file():
        raise ConfigurationError(f"{source} is no file; name the checkpoint's file, such as last.ckpt")
    with replacing(target) as new:
        return _read_elsewhere(source, new, raw)


def _read_elsewhere(source: Path, target: Path, raw: bool) -> dict[str, Any]:
    """Run the process that reads the pickle; -I keeps this process's import path and environment from it."""
    command = [sys.executable, "-I", pickled_weights.__file__, str(source), str(target), *(["--raw"] if raw else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        facts = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigurationError(
            f"{source}: the process that reads it ended with status {done.returncode}: {last}"
        ) from None
    if "error" in facts:
        raise ConfigurationError(f"{source}: {facts['error']}")
    return facts


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m workflows.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET")
    parser.add_argument("--raw", action="store_true", help="take the weights that are not averaged")
    given = parser.parse_args(arguments)
    try:
        facts = convert(given.source, given.target, given.raw)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    averaged = f"running averages, decay {facts['ema_decay']}" if facts["weights"] == "ema" else "not averaged"
    print(f"{given.target}: {facts['tensors']} tensors, {averaged}")


if __name__ == "__main__":
    main(sys.argv[1:])
