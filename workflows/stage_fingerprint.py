"""Fingerprint of a stage: the digest of everything that determines its result (settings, inputs, code).

Two runs with one fingerprint have one result, so the later one reuses the output of the earlier; `workflows.dry_run`
says what differs where they have not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edlm.config import ConfigurationError
from edlm.redaction import redacted
from edlm.storage import committed
from workflows.source_digest import source_digest

FINGERPRINT_DIGITS = 12


@dataclass(frozen=True)
class StageInputs:
    """Everything that determines the result of a stage."""

    stage: str
    settings: Mapping[str, Any]
    """By their names in the YAML."""
    inputs: Mapping[str, str]
    """Digests of the inputs' content, by label."""
    code: str
    """Digest of the code that computes the result."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the inputs."""
        facts = {"stage": self.stage, "settings": self.settings, "inputs": self.inputs, "code": self.code}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def public(self) -> "StageInputs":
        """The same without secrets, to be recorded; names of sections and inputs, such as an energy's, hide nothing."""
        settings = {name: redacted(value, _key(name, value)) for name, value in self.settings.items()}
        return replace(self, settings=settings, inputs={label: redacted(uri) for label, uri in self.inputs.items()})

    @property
    def folder(self) -> str:
        """Name of the stage's folder."""
        return f"{self.stage}-{self.fingerprint[:FINGERPRINT_DIGITS]}"


def _key(name: str, value: Any) -> str:
    """Return the key by which a setting is redacted: none for a section, whose own keys count."""
    return "" if isinstance(value, Mapping) else name


def stage_inputs(
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    code: Sequence[str],
    versions: Mapping[str, str] | None = None,
) -> StageInputs:
    """Return what determines a stage's result: `inputs` are URIs, `code` names modules (`Session.run_stage`).

    Raise ConfigurationError unless all inputs are committed.
    """
    digests = dict(versions or {})
    for label, uri in inputs.items():
        marker = committed(uri)
        if marker is None:
            raise ConfigurationError(f"{stage} needs {label} in {uri}, which is not finished; run that stage first")
        digests[label] = marker.digest
    return StageInputs(stage, settings, digests, source_digest(*code))
