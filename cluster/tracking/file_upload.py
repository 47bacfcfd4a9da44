"""Upload of a journal's files to MLflow, beside its records: a file that is slow or refused holds up nothing else."""

import json
import logging
from pathlib import Path, PurePosixPath

from mlflow import MlflowClient
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.rest_utils import http_request

from cluster.tracking.availability import first_line, timed_out
from cluster.tracking.connection import UNANSWERED, refusal
from cluster.tracking.journal import FILES, Entry, lines
from cluster.tracking.shipping_mark import FILES_MARK, ShippingMark

REFUSED = "refused"  # folder beside `FILES`
BYTES_PER_SECOND = 2**20  # that the first timeout of an upload allows for
LONGEST_TIMEOUT_SECONDS = 1800.0
log = logging.getLogger(__name__)


class FileUpload:
    """Sender of the files in the journal in `folder` that MLflow does not have yet.

    A file that MLflow refuses is moved to the folder `refused` of the journal and passed over. A file whose upload
    exceeds its timeout has twice the time at the next attempt, and those after it are sent meanwhile.
    """

    def __init__(
        self, client: MlflowClient, folder: Path, run_id: str, timeout_seconds: float, timeouts: dict[str, float]
    ) -> None:
        """Upload with the timeouts that earlier attempts left in `timeouts`, by path, else `timeout_seconds`."""
        self.client = client
        self.folder = folder
        self.run_id = run_id
        self.mark = ShippingMark(folder, FILES_MARK)
        self._timeout_seconds = timeout_seconds
        self._timeouts = timeouts
        self._done: set[int] = set()  # entries behind the mark that were sent while one before them was not

    def ship(self) -> None:
        """Send every file of a complete entry; at the end, raise the first error of those that were not answered."""
        failure, reached = None, self.mark.position
        for entry, stop in lines(self.folder, self.mark.position, containing=b'"kind": "file"'):
            if entry and entry["kind"] == "file" and entry["number"] not in self._done:
                try:
                    self._send(entry)
                except UNANSWERED as error:
                    failure = failure or error
                else:
                    self._done.add(entry["number"])
            if failure is None:
                reached = stop
        self.mark.move(reached)
        if failure is not None:
            raise failure

    def _send(self, entry: Entry) -> None:
        name = entry["name"]
        path = next((path for path in self._places(name) if path.exists()), None)
        if path is None:
            log.warning("%s of run %s is gone from %s, and is passed over", name, self.run_id, self.folder)
            return
        try:
            self._put(name, path)
        except UNANSWERED as error:
            if timed_out(error):
                self._timeouts[str(path)] = min(2 * self._timeout(path), LONGEST_TIMEOUT_SECONDS)
            status = refusal(error)
            if status is None or status == 404:
                raise
            kept = self.folder / REFUSED / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.replace(kept)
            log.warning(
                "MLflow refuses the file %s of run %s, which is kept as %s, and is passed over (%s)",
                name,
                self.run_id,
                kept,
                first_line(error),
            )
            return
        if entry["table"]:
            # As MlflowClient.log_table does; that call itself would append the rows again at every replay.
            tables = json.loads(self.client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
            if {"path": name, "type": "table"} not in tables:
                tables.append({"path": name, "type": "table"})
                self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def _places(self, name: str) -> tuple[Path, Path]:
        return self.folder / FILES / name, self.folder / REFUSED / name

    def _put(self, name: str, path: Path) -> None:
        uri = self.client.get_run(self.run_id).info.artifact_uri
        if uri is None or not uri.startswith("mlflow-artifacts:"):
            parent = str(PurePosixPath(name).parent)
            self.client.log_artifact(self.run_id, str(path), None if parent == "." else parent)
            return
        # What MLflow's client does for a server that keeps the files; it would take the timeout of all requests.
        base = MlflowArtifactsRepository.resolve_uri(uri, self.client.tracking_uri)
        headers = {"Content-Type": _guess_mime_type(path.name)}
        with path.open("rb") as file:
            response = http_request(
                get_default_host_creds(base),
                f"/{name}",
                "PUT",
                data=file,
                extra_headers=headers,
                timeout=self._timeout(path),
            )
        assert response is not None  # as MLflow does not say
        response.raise_for_status()

    def _timeout(self, path: Path) -> float:
        return self._timeouts.get(str(path), self._timeout_seconds + path.stat().st_size / BYTES_PER_SECOND)
