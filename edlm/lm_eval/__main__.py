"""The command line of lm-evaluation-harness with the model `edlm`: `python -m edlm.lm_eval --model edlm ...`."""

import sys

from lm_eval.__main__ import cli_evaluate

from edlm.config import ConfigurationError


def main() -> None:
    """Run the command line; end with status 1 and one line for a wrong setting of the model."""
    try:
        cli_evaluate()
    except ConfigurationError as error:
        sys.exit(f"edlm: {error}")


if __name__ == "__main__":
    main()
