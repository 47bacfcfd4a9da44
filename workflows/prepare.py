"""Prepare stage: token files from text, split by document, with the tokenizer that every later stage uses.

python -m workflows.prepare EXPERIMENT.yaml [--data.length 128 ...] [--dry-run]
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar

from cluster.config import is_private
from edlm.config import plain
from edlm.data import preparation
from edlm.data.shards import Shards
from edlm.data.token_file import CHAT
from edlm.storage import join
from workflows.command import command
from workflows.stage import INTERMEDIATE, Session, StageContext, once, say

STAGE = "prepare"
CODE = ("workflows.prepare",)
FEW_SHARDS = 4  # which this process encodes in less time than a task takes to start

Item = TypeVar("Item")
Result = TypeVar("Result")


@once
def prepare(session: Session) -> str:
    """Prepare the data, a large corpus by one Ray task per CPU, and return its URI."""
    data = session.experiment.data

    def work(work: StageContext) -> dict[str, Any]:
        alone = is_private(session.experiment.cluster)
        shards = Shards(join(work.workspace, INTERMEDIATE), run=_encode, one_machine=alone)
        summary = plain(preparation.prepare(data, work.folder, lambda line: say(STAGE, line), shards))
        # The chat template is a program, too long for a table of facts.
        return {name: fact for name, fact in summary.items() if name != CHAT}

    versions = {"data": " ".join(data.version())}
    settings = {"data": {name: value for name, value in plain(data).items() if name != "attention"}}
    return session.run_stage(STAGE, settings, {}, CODE, work, versions)


def _encode(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `work(item)` in the order of the items: of the first ones in this process, of the others by Ray tasks."""
    remaining = iter(items)
    yield from map(work, islice(remaining, FEW_SHARDS))
    if (item := next(remaining, None)) is not None:
        from cluster.runtime.tasks import in_order  # deferred: importing Ray takes seconds

        yield from in_order(work, chain([item], remaining), cpus=1)


if __name__ == "__main__":
    command(__doc__, prepare)
