"""Stages: functions from settings and input URIs to an output URI, run once and then reused.

The fingerprint of a stage covers everything that determines its result (settings, the content of its inputs, the code
that computes it), not where it runs. Its output is committed by a marker written last: a finished stage is reused, an
unfinished one resumes from its last checkpoint, if it has one, and a changed setting reruns only the stages that depend
on it.

A stage function takes a session and asks other stage functions for its inputs, so that a command runs what its own
stage needs and nothing else. `RunningSession` (`workflows.stage_runner`) runs stages; `DryRun` (`workflows.dry_run`)
only says which would run, and why. This module imports neither Ray nor MLflow, so that a dry run starts fast.
"""

import functools
import json
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.tracking.journal import record_of
from cluster.tracking.journal_folder import WORK, journal_folder
from cluster.training.outcomes import TrainingFailed, TrainingStopped
from edlm.checkpoints.lease import Lease
from edlm.config import ConfigurationError
from edlm.file_systems import file_system
from edlm.redaction import redact_logs, redacted, redacted_text
from edlm.storage import StorageError, absolute, committed, join, read_text
from edlm.storage_errors import StoreRefusal, StoreUnavailable, is_full
from edlm.training.interfaces import NonFiniteLoss
from workflows.experiment import Experiment
from workflows.stage_fingerprint import FINGERPRINT_DIGITS, StageInputs

if TYPE_CHECKING:
    from cluster.tracking.run_handle import RunHandle

RUN_FILE = "run.json"
"""In a stage's work folder: the record of its run, and what determines its result (as `ingredients`)."""
INTERMEDIATE = "shards"
"""In a stage's work folder: a folder of what is removed once its output is committed, by a later command if need be."""

T = TypeVar("T")
Work = Callable[["StageContext"], Mapping[str, Any] | None]
"""Function of a stage: write the output to the context's folder and return facts for the marker."""


class StageFailed(RuntimeError):
    """Failure of a stage, for a reason that the message explains to the user."""


@dataclass(frozen=True)
class StageContext:
    """The context of a stage's function: where it writes, where it keeps checkpoints, and its tracker."""

    stage: str
    folder: Path
    """Local and empty; its content at the end becomes the output."""
    workspace: str
    """URI that survives a crash, for checkpoints."""
    journal: Path
    run_id: str
    tracker: "RunHandle"
    determined: "StageInputs"
    lease: Lease | None = None
    """On the workspace, to be checked before anything there is overwritten; None: no other process knows it."""


@dataclass
class Session(ABC):
    """The state of one command: the experiment, its storage, and what its stages have returned so far."""

    experiment: Experiment
    root: str
    results: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """What each stage function returned, by its name (`once`)."""
    stage_outputs: dict[str, str] = field(default_factory=dict, kw_only=True)
    """URIs of the outputs of the stages asked for so far, by stage; in a dry run, of those that would be made, too."""

    @abstractmethod
    def run_stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        code: Sequence[str],
        work: Work,
        versions: Mapping[str, str] | None = None,
    ) -> str:
        """Return the URI of the stage's committed output; call `work` only if there is none.

        `settings` are plain values by their names in the YAML, `inputs` the URIs of other stages' outputs. `code` names
        the modules that compute the result: a change in them or in what they import from `FOLLOWED` (`source_digest`)
        reruns the stage, and no other code change does. `versions` are of content that no stage made, such as a corpus.
        """

    @abstractmethod
    def given(self, name: str, uri: str) -> str:
        """Return the URI of a model that another run has trained, in place of the stage's own output.

        Raise ConfigurationError unless a committed folder is there.
        """

    @property
    def outputs(self) -> str:
        """URI of the folder with the outputs of all stages."""
        return join(self.root, self.experiment.name)

    def output_of(self, folder: str) -> str:
        """Return the URI of the output in a stage's folder."""
        return join(self.outputs, folder)

    def workspace_of(self, folder: str) -> str:
        """Return the URI of the work folder that belongs to a stage's folder."""
        return join(self.outputs, WORK, folder)

    def journal_of(self, folder: str) -> Path:
        """Return this machine's folder for the journal of the run in a stage's folder."""
        return journal_folder(self.outputs, folder)

    def finished(self, stage: str) -> dict[str, StageInputs | None]:
        """Return the folders of a stage's finished outputs, and what each was made of: None if that is not on record.

        What is on record has no secrets (`StageInputs.public`).
        """
        system, root = file_system(self.outputs)
        paths = system.ls(root, detail=False) if system.exists(root) else []
        pattern = re.compile(rf"{re.escape(stage)}-[0-9a-f]{{{FINGERPRINT_DIGITS}}}")
        names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
        folders = [name for name in names if pattern.fullmatch(name) and committed(self.output_of(name)) is not None]
        return {folder: self._recorded(folder) for folder in folders}

    def _recorded(self, folder: str) -> StageInputs | None:
        record = self.run_record(folder) or {}
        return StageInputs(**record["ingredients"]) if "ingredients" in record else None

    def run_record(self, folder: str) -> dict[str, Any] | None:
        """Return what the run in a stage's folder recorded of itself; None if there was no run.

        A record that is lost or damaged is replaced by what the journal of the run knows.
        """
        uri = join(self.workspace_of(folder), RUN_FILE)
        try:
            record = json.loads(read_text(uri))
            if isinstance(record, dict) and isinstance(record.get("run"), dict):
                return record
            say(folder, f"{redacted(uri)} is not the record of a run, and is ignored")
        except FileNotFoundError:
            pass
        except ValueError as error:
            say(folder, f"{redacted(uri)} is damaged ({error}), and is replaced by what the journal knows")
        run = record_of(self.journal_of(folder))
        return None if run is None else {"run": asdict(run)}


def once(stage: Callable[[Session], T]) -> Callable[[Session], T]:
    """Return the stage function with its result kept in the session: each stage is run, or reused, once a command."""

    @functools.wraps(stage)
    def asked(session: Session) -> T:
        if stage.__qualname__ not in session.results:
            session.results[stage.__qualname__] = stage(session)
        return session.results[stage.__qualname__]

    return asked


def given_uri(name: str, uri: str) -> str:
    """Return the absolute URI of a given model; raise ConfigurationError unless a committed folder is there."""
    uri = absolute(uri)
    if committed(uri) is None:
        raise ConfigurationError(f"given: {name} in {uri} is not there, or is not finished; check the path")
    return uri


@contextmanager
def user_errors() -> Iterator[None]:
    """End the process with status 1 and the message of an error that a user can fix, in the settings or the storage.

    So do a training with a non-finite loss or that failed too often, a stage that failed in parts, and a full disk.
    A training that was stopped by a signal ends it with the status of the signal. Any other exception keeps its
    traceback.
    """
    redact_logs()
    try:
        yield
    except TrainingStopped as stopped:
        print(f"stopped: {redacted_text(stopped.message)}", file=sys.stderr, flush=True)
        raise
    except (
        ConfigurationError, StorageError, StoreRefusal, StoreUnavailable, NonFiniteLoss, StageFailed, TrainingFailed
    ) as error:  # fmt: skip
        print(f"error: {redacted_text(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except OSError as error:
        if not is_full(error):
            raise
        print(f"error: {_full(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _full(error: OSError) -> str:
    where = "a disk" if error.filename is None else f"the disk of {redacted_text(str(error.filename))}"
    return f"{where} is full ({error.strerror}); make room and run the same command again, which goes on from here"


def storage_root(experiment: Experiment) -> str:
    """Return the absolute root of this experiment's outputs.

    Raise ConfigurationError in a Ray job without EDLM_HOME: the default would lie in the job's temporary copy.
    """
    root = experiment.storage or os.environ.get("EDLM_HOME")
    if root is None:
        project = Path(__file__).resolve().parent.parent
        if "working_dir_files" in project.parts:
            raise ConfigurationError(
                "a Ray job runs in a temporary copy of the project, where outputs would be lost: "
                "set EDLM_HOME before `ray start`, or give --storage"
            )
        root = str(project / "runs")
    return absolute(root)


def say(stage: str, message: str) -> None:
    """Print a progress line of a stage."""
    print(f"[{stage}] {redacted_text(message)}", flush=True)
