"""Copy of a journal's metrics in the object store of the checkpoints, for journals that lie on one machine's own disk.

Training may go on elsewhere, and that disk be gone. A checkpoint is committed only once the metrics of its steps are in
the copy, so that none is lost: a launch that resumes from it repeats the steps after it, and has those before it here.
"""

import logging
import secrets
import time
from pathlib import Path

from cluster.tracking.journal import Journal, complete_bytes, decode, encode, history, lines
from edlm.file_systems import file_system
from edlm.storage import join, read_bytes, write_text

log = logging.getLogger(__name__)


class JournalCopy:
    """Copy, below a URI, of the metrics that are written to the journal in `folder` from now on.

    Every `save` writes one object, named unlike those of all other processes.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self._launch, self._saved = f"{time.time_ns():020d}-{secrets.token_hex(4)}", 0
        self._position = complete_bytes(folder)

    def save(self) -> None:
        """Copy what was written since the last time. Raises what the store's client raises; it can be repeated."""
        metrics, position = [], self._position
        for entry, position in lines(self._folder, self._position, containing=b'"metrics"'):  # noqa: B007
            if entry and entry["kind"] == "metrics":
                metrics.append(encode(entry).decode())
        if metrics:
            write_text(join(self._uri, f"{self._launch}-{self._saved:06d}.jsonl"), "".join(metrics))
            self._saved += 1
        self._position = position


def restore(uri: str, journal: Journal) -> None:
    """Append to the journal the metrics that the copy at `uri` has and it lacks, each with its time.

    Damaged lines are counted in a warning; a last one without its end is of a machine that died as it wrote.
    """
    system, root = file_system(uri)
    system.invalidate_cache(root)
    names = sorted(path.rpartition("/")[2] for path in system.find(root))
    known = history(journal.folder) if names else {}
    damaged = 0
    for name in names:
        for line in read_bytes(join(uri, name)).splitlines(keepends=True):
            entry = decode(line)
            if entry is None:
                damaged += line.endswith(b"\n")
                continue
            step, values = entry["step"], entry["values"]
            new = {metric: value for metric, value in values.items() if step not in known.get(metric, {})}
            for metric, value in new.items():
                known.setdefault(metric, {})[step] = value
            if new:
                journal.append("metrics", step=step, values=new, time=entry["time"])
    if damaged:
        log.warning(
            "%d lines of the metrics in %s are damaged; what no other machine has of them is lost", damaged, uri
        )
