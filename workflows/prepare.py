"""Prepare stage: token files from text, split by document, with the tokenizer that every later stage uses.

python -m workflows.prepare EXPERIMENT.yaml [--data.length 128 ...] [--dry-run]
"""

from typing import Any

from edlm.config import plain
from edlm.data import preparation
from edlm.data.token_file import CHAT
from workflows.command import command
from workflows.stage import Session, StageContext, once, say

STAGE = "prepare"
CODE = ("workflows.prepare",)


@once
def prepare(session: Session) -> str:
    """Prepare the data and return its URI."""
    data = session.experiment.data

    def work(work: StageContext) -> dict[str, Any]:
        summary = plain(preparation.prepare(data, work.folder, lambda line: say(STAGE, line)))
        # The chat template is a program, too long for a table of facts.
        return {name: fact for name, fact in summary.items() if name != CHAT}

    versions = {"data": " ".join(data.version())}
    settings = {"data": {name: value for name, value in plain(data).items() if name != "attention"}}
    return session.run_stage(STAGE, settings, {}, CODE, work, versions)


if __name__ == "__main__":
    command(__doc__, prepare)
