"""Upload of a journal to MLflow: every entry is sent once, in order, despite any server outages."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cluster.config import Tracking
from cluster.tracking.availability import Availability, availability, first_line
from cluster.tracking.connection import UNANSWERED, answering, connect
from cluster.tracking.file_upload import FileUpload
from cluster.tracking.journal import ENTRIES, complete_bytes, is_open, record_of
from cluster.tracking.locations import tracking_uri
from cluster.tracking.record_upload import RecordUpload
from cluster.tracking.run_record import RunRecord
from cluster.tracking.settlement import (
    RunDeleted,
    database_of,
    experiment_named,
    mend_parent,
    settle_journal,
    settled_run,
)
from cluster.tracking.shipping_mark import FILES_MARK, RECORDS_MARK, ShippingMark
from edlm.config import ConfigurationError


@dataclass
class JournalUpload:
    """Upload of the journal in `folder`: of its records, and beside them of its files."""

    tracking: Tracking
    root: str
    folder: Path
    record: RunRecord
    _records: RecordUpload | None = None
    _files: FileUpload | None = None
    _settling: threading.Lock = field(default_factory=threading.Lock)

    def ship_records(self) -> None:
        """Send every complete record. Raises what `RecordUpload.ship` raises, and RunDeleted."""
        with self._settling:
            if self._records is None:
                client, run_id = self._settle()
                # A twin may have been made after the run was settled, by a request that was given up.
                self._records = RecordUpload(client, self.folder, run_id, lambda: self._end_twins(client, run_id))
        self._sent(self._records.ship)

    def ship_files(self) -> None:
        """Send every file. Raises what `FileUpload.ship` raises, and RunDeleted."""
        with self._settling:
            if self._files is None:
                client, run_id = self._settle()
                seconds, timeouts = self.tracking.request_timeout_seconds, self._server.upload_timeouts
                self._files = FileUpload(client, self.folder, run_id, seconds, timeouts)
        self._sent(self._files.ship)

    @property
    def _server(self) -> Availability:
        return availability(tracking_uri(self.tracking, self.root), self.tracking.request_timeout_seconds)

    def _settle(self) -> tuple[MlflowClient, str]:
        client = connect(self.tracking, self.root)
        self._server.set_timeout()
        return client, self._resettle(client)

    def _resettle(self, client: MlflowClient) -> str:
        return settle_journal(client, self.tracking, self.root, self.folder, self.record)

    def _end_twins(self, client: MlflowClient, run_id: str) -> None:
        if self._resettle(client) != run_id:
            raise RunDeleted(f"run {run_id} was deleted in MLflow, and is replaced")
        mend_parent(client, self.tracking, self.root, run_id, self.record)

    def _sent(self, ship: Callable[[], None]) -> None:
        try:
            ship()
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run, in a database that was replaced just now
                self._records = self._files = None
            raise
        except RunDeleted:  # perhaps as a twin (`cluster.tracking.settlement`); the next attempt finds the other
            self._records = self._files = None
            raise


def attempt(ship: Callable[[], None], folder: Path, server: Availability) -> bool:
    """Ship what a part of an upload has, and return whether all of it was received; say what went wrong."""
    try:
        ship()
    except RunDeleted as error:
        server.say(str(error), "%s; its journal is kept in %s", error, folder)
    except FileNotFoundError as error:
        server.say(str(error), "the journal in %s is gone (%s)", folder, first_line(error))
    except UNANSWERED as error:
        server.failed(error)
    except Exception as error:  # the journal is kept: training goes on, and a later attempt or `ship` sends it
        server.unexpected(error, "the journal in %s cannot be sent to MLflow; trying again", folder)
    else:
        server.answers = True
        return True
    return False


def ship(tracking: Tracking, root: str, folder: Path) -> int:
    """Send the journals in and below `folder` to MLflow, all records before any file; return the number sent.

    Those that living processes write are left to them. A run that was deleted in MLflow causes a warning. Raises
    ConfigurationError if no server answers; nothing is lost then, and the call can be repeated.
    """
    uri = tracking_uri(tracking, root)
    server = availability(uri, tracking.request_timeout_seconds)
    failure: ConfigurationError | None = None
    unsent: list[JournalUpload] = []
    try:
        with answering(uri):
            unsent = list(_unsent(tracking, root, folder, server))
    except ConfigurationError as error:
        failure = error
    for part in (JournalUpload.ship_records, JournalUpload.ship_files):
        for upload in list(unsent) if failure is None else ():
            try:
                with answering(uri):
                    part(upload)
            except ConfigurationError as error:
                failure = failure or error
                if part is JournalUpload.ship_records:
                    break
            except RunDeleted as error:
                server.say(str(error), "%s; its journal is kept in %s", error, upload.folder)
                unsent.remove(upload)
            except MlflowException as error:
                server.say(
                    str(upload.folder), "MLflow rejected the journal in %s: %s", upload.folder, first_line(error)
                )
                unsent.remove(upload)
    if failure is not None:
        server.failed(failure.__cause__ or failure)
        raise failure
    return len(unsent)


def _unsent(tracking: Tracking, root: str, folder: Path, server: Availability) -> Iterator[JournalUpload]:
    """Yield the uploads of the journals that MLflow does not have, as far as the marks beside them say."""
    databases: dict[str, str] = {}  # by the name of the experiment
    for path in sorted(folder.rglob(ENTRIES)):
        record = record_of(path.parent)
        if record is None:
            server.say(str(path), "%s has no intact record of its run, and cannot be sent", path)
            continue
        if is_open(path.parent):
            continue
        if record.experiment not in databases:
            client = connect(tracking, root)
            server.set_timeout()
            databases[record.experiment] = database_of(experiment_named(client, tracking, root, record.experiment))
        if not _is_sent(path.parent, databases[record.experiment]):
            yield JournalUpload(tracking, root, path.parent, record)


def _is_sent(folder: Path, database: str) -> bool:
    """Return whether this database has all of the journal, as far as the marks beside it say."""
    known, size = settled_run(folder), complete_bytes(folder)
    sent = known is not None and known["database"] == database
    return sent and all(ShippingMark(folder, name).position == size for name in (RECORDS_MARK, FILES_MARK))
