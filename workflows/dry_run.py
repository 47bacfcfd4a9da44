"""Dry run: the stages that a command would run, and why. It starts neither Ray nor MLflow, and writes nothing."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from edlm.checkpoints.training_state import newest_snapshot
from edlm.config import plain
from edlm.redaction import redacted
from edlm.storage import committed
from workflows.experiment import Experiment
from workflows.report_page import STAGE as REPORT
from workflows.report_page import page_folder, page_inputs, recorded_inputs, shows_the_same
from workflows.stage import Session, Work, given_uri, say, storage_root, user_errors
from workflows.stage_fingerprint import FINGERPRINT_DIGITS, StageInputs, stage_inputs
from workflows.training.init_from_precheck import require_batches, require_initial_models
from workflows.training.resume_from_shorter import training_to_continue

SHOWN = 6
"""Differences that are named; the others are counted."""
LONGEST = 60
"""Characters of a value."""


def dry_run(experiment: Experiment, stage: "Callable[[DryRun], object]") -> None:
    """Print the resolved configuration, without secrets, then a line per stage: whether it would run, and why."""
    print_settings(experiment)
    with user_errors():
        root = storage_root(experiment)
        require_batches(experiment)
        require_initial_models(experiment, root)
        stage(DryRun(experiment, root))


def print_settings(experiment: Experiment) -> None:
    """Print the resolved configuration as YAML, every default written out, without secrets."""
    print(yaml.safe_dump(redacted(plain(experiment)), sort_keys=False, allow_unicode=True))


@dataclass
class DryRun(Session):
    """Session that runs nothing: it says of each stage whether it would run. The output of such a stage is a name."""

    running: dict[str, str] = field(default_factory=dict)
    """Stages that would run, by the URI that stands for their output."""

    def run_stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        code: Sequence[str],
        work: Work,
        versions: Mapping[str, str] | None = None,
    ) -> str:
        if reason := self._pending(inputs.values()):
            return self._would_run(name, reason)
        determined = stage_inputs(name, settings, inputs, code, versions)
        output = self.output_of(determined.folder)
        if committed(output) is not None:
            say(name, "reused")
            self.stage_outputs[name] = output
            return output
        return self._would_run(name, self._reason(determined))

    def given(self, name: str, uri: str) -> str:
        uri = given_uri(name, uri)
        say(name, f"given: {redacted(uri)}")
        self.stage_outputs[name] = uri
        return uri

    def report(self) -> None:
        """Say whether the page of the report would be written, and why."""
        say(REPORT, self._pending(self.stage_outputs.values()) or self._page_reason())

    def _page_reason(self) -> str:
        folder, determined = page_folder(self), page_inputs(self)
        marker = committed(folder)
        if marker is None:
            return "runs: there is no earlier page"
        if shows_the_same(marker.facts, determined):
            return "reused"
        earlier = recorded_inputs(marker.facts)
        if earlier is None:
            return "runs: nothing to compare with; the earlier page does not say what it was made of"
        return f"runs: {_named(list(differences(earlier, determined)))}"

    def _pending(self, uris: Collection[str]) -> str | None:
        """Return why something made of these outputs would run: some of them would be made; None if all are there."""
        pending = [stage for uri, stage in self.running.items() if uri in uris]
        verb = "runs" if len(pending) == 1 else "run"
        return f"runs: {', '.join(pending)} {verb}" if pending else None

    def _would_run(self, name: str, reason: str) -> str:
        say(name, reason)
        uri = self.output_of(f"{name}-{'-' * FINGERPRINT_DIGITS}")  # of no output: a fingerprint has no hyphen
        self.running[uri], self.stage_outputs[name] = name, uri
        return uri

    def _reason(self, determined: StageInputs) -> str:
        """Return what an unfinished stage would do, and why: resume, or run because of what has changed."""
        workspace = self.workspace_of(determined.folder)
        if (newest := newest_snapshot(workspace)) is not None:
            return f"resumes at step {newest[1]}"
        start, reasons = training_to_continue(self, determined, verified=False)
        if start is not None:
            return f"continues at step {start.step}, where {start.folder} ended"
        if self.run_record(determined.folder) is not None:
            return "; ".join(["runs: an earlier run of it did not finish", *reasons])
        outputs = self.finished(determined.stage)
        if not outputs:
            return "runs: there is no earlier output"
        earlier = [known for known in outputs.values() if known is not None]
        if not earlier:
            return "runs: nothing to compare with; no earlier output says what it was made of"
        nearest = min((list(differences(known, determined)) for known in earlier), key=len)
        return "; ".join([f"runs: {_named(nearest)}", *reasons])


def _named(found: Sequence[str]) -> str:
    """Return the differences in one line; there are none where only a secret has changed, which is not on record."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more if found else "a secret among its settings changed"


def differences(earlier: StageInputs, now: StageInputs) -> Iterator[str]:
    """Yield in words what has changed: settings by their names in the YAML, inputs by their labels, and the code."""
    now = now.public
    before, after = dict(_leaves(earlier.settings)), dict(_leaves(now.settings))
    for name in dict.fromkeys([*after, *before]):
        if name not in before:
            yield f"{name} is new ({_short(after[name])})"
        elif name not in after:
            yield f"{name} is gone ({_short(before[name])})"
        elif before[name] != after[name]:
            yield f"{name} changed {_short(before[name])} -> {_short(after[name])}"
    for label in dict.fromkeys([*now.inputs, *earlier.inputs]):
        if label not in earlier.inputs:
            yield f"{label} is new"
        elif label not in now.inputs:
            yield f"{label} is gone"
        elif earlier.inputs[label] != now.inputs[label]:
            yield f"{label} changed"
    if earlier.code != now.code:
        yield "code changed"


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its dotted path; lists of plain values are values."""
    if isinstance(tree, Mapping) and (tree or not path):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(tree, list) and any(isinstance(value, Mapping) for value in tree):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{path}.{i}")
    else:
        yield path, tree


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
