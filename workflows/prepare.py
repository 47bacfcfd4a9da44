"""Prepare stage: token files from text, split by document, with the tokenizer that every later stage uses.

python -m workflows.prepare EXPERIMENT.yaml [--data.length 128 ...]
"""

from typing import Any

from edlm.config import from_command_line, plain
from edlm.data import packing as tokens
from workflows.experiment import Experiment
from workflows.stage import Session, StageContext, say, session

STAGE = "prepare"
CODE = ("workflows.prepare",)


def prepare(session: Session) -> str:
    """Prepare the data and return its URI."""
    data = session.experiment.data

    def work(work: StageContext) -> dict[str, Any]:
        return plain(tokens.prepare(data, work.folder, lambda line: say(STAGE, line)))

    return session.run_stage(STAGE, {"data": plain(data), "version": data.version()}, {}, CODE, work)


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    with session(experiment) as opened:
        prepare(opened)


if __name__ == "__main__":
    main()
