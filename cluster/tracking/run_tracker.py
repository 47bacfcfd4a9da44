"""Tracker of one run: what is logged goes to a journal, and from there to MLflow."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
import yaml

from cluster.config import Tracking
from cluster.tracking.availability import availability
from cluster.tracking.journal import Journal
from cluster.tracking.journal_copy import JournalCopy, restore
from cluster.tracking.locations import tracking_uri
from cluster.tracking.parameters import machine_settings, parameters
from cluster.tracking.run_record import RunRecord
from cluster.tracking.shipping import Shipping
from cluster.tracking.shipping_mark import unsent_bytes
from edlm.config import plain
from edlm.redaction import redacted, redacted_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
LAST_FAILURE = "edlm.last_failure"  # tag of a run, which stays when the run is resumed
SHORTEST_PATIENCE_SECONDS = 1.0  # for the last request to a server that did not answer the one before
_METRIC = re.compile(r"[\w.\- :/]{1,250}")


class RunTracker:
    """Tracker of one run for any process: it is built from plain data, and the server may be unavailable.

    Everything goes to a journal in `folder` first, and background threads send it on: one the records, and another one
    the files, for which no record waits. So no call waits for a server or fails because of one, and entries that could
    not be sent stay in the journal for `cluster.tracking.upload.ship`. A step that is repeated after a restart is not
    sent again. Only one process at a time may use a `folder`. With `copy`, a URI, the metrics that are there come into
    the journal, and `secure` adds to them.
    """

    def __init__(self, tracking: Tracking, root: str, record: RunRecord, folder: Path, copy: str | None = None) -> None:
        self._journal = Journal(folder, record)
        if copy is not None:
            restore(copy, self._journal)
        self._copy = None if copy is None else JournalCopy(folder, copy)
        self._patience_seconds = 2 * tracking.request_timeout_seconds + 1
        self._server = availability(tracking_uri(tracking, root), tracking.request_timeout_seconds)
        self._shipping = Shipping(tracking, root, folder, record)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; values may be NaN or infinite. Raises ValueError for an invalid name."""
        for name in metrics:
            if not _METRIC.fullmatch(name):
                raise ValueError(f"metric {name!r}: MLflow takes letters, digits, and `_-. :/`, at most 250 of them")
        self._journal.append("metrics", step=step, values={name: float(value) for name, value in metrics.items()})

    def secure(self) -> None:
        """Make all metrics so far outlive a power cut and, with a copy, this machine; from any thread.

        Raises OSError, or what the store's client raises, and can be repeated.
        """
        self._journal.sync()
        if self._copy is not None:
            self._copy.save()

    def settings(self, config: Any) -> None:
        """Record the configuration, without secrets: as `config.yaml`, and as parameters.

        Settings of the machines are tags, which may change when a run is resumed, as parameters in MLflow may not.
        """
        tree = plain(config)
        machines, rest = machine_settings(tree)
        self._journal.append("parameters", values=parameters(rest))
        self.tags({f"edlm.{name}": value for name, value in parameters(machines).items()})
        self.text("config.yaml", yaml.safe_dump(redacted(tree), sort_keys=False, allow_unicode=True))

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags of the run, without secrets."""
        self._journal.append("tags", values=parameters(values))

    def dataset(self, name: str, uri: str, digest: str, context: str, facts: Mapping[str, pydantic.JsonValue]) -> None:
        """Record data as an input of the run: its URI, its digest, and the context in which it was used."""
        self._journal.append(
            "dataset", name=name, uri=redacted(uri), digest=digest, context=context, facts=redacted(dict(facts))
        )

    def table(self, name: str, columns: Mapping[str, Sequence[pydantic.JsonValue]]) -> None:
        """Record a table, shown by MLflow as `name` (`*.json`). Raises ValueError if columns differ in length."""
        if not name.endswith(".json") or len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"table {name!r}: give it a name in .json and columns of one length")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self._file(name, json.dumps({"columns": list(columns), "data": rows}, ensure_ascii=False), table=True)

    def text(self, name: str, content: str) -> None:
        """Record a text file `name` with this content."""
        self._file(name, content, table=False)

    def figure(self, name: str, figure: "Figure") -> None:
        """Record a figure as the image `name` (`*.png`)."""
        figure.savefig(self._journal.place(name), dpi=DOTS_PER_INCH)
        self._journal.append("file", name=name, table=False)

    def picture(self, name: str, png: bytes) -> None:
        """Record an encoded image as `name` (`*.png`)."""
        self._journal.place(name).write_bytes(png)
        self._journal.append("file", name=name, table=False)

    def begin(self) -> None:
        """Record that the run is active, for the first time or again."""
        self._journal.append("status", value="RUNNING")

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Record the end of the run with its status, and close the tracker."""
        self._journal.append("status", value=status)
        self.close()

    def fail(self, error: BaseException) -> None:
        """Record that an error ended the run, with its first line as the tag `edlm.last_failure`; close the tracker.

        The run is FAILED, or KILLED if the error is no Exception but an exit or an interrupt.
        """
        cause = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")
        self.tags({LAST_FAILURE: redacted_text(cause)})
        self.finish("FAILED" if isinstance(error, Exception) else "KILLED")

    def close(self) -> None:
        """Write everything to disk, and to MLflow if it answers in time; else warn where the remainder is.

        Raises OSError if the disk does not take it; the tracker is closed all the same.
        """
        try:
            self._journal.close()
        finally:
            self._shipping.stop(self._patience_seconds if self._server.answers else SHORTEST_PATIENCE_SECONDS)
        if unsent := unsent_bytes(self._journal.folder):
            message = "MLflow has not received the last %d bytes of %s; a later command ships them"
            self._server.say("unsent", message, unsent, self._journal.folder)

    def _file(self, name: str, content: str, table: bool) -> None:
        self._journal.place(name).write_text(content, encoding="utf-8")
        self._journal.append("file", name=name, table=table)
