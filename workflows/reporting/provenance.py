"""Provenance: stages, times, commit, machine and settings behind the reported numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from workflows.reporting.document import Bullet, Bullets, DocumentBlock, Heading, Paragraph, Table, Verbatim

if TYPE_CHECKING:
    from cluster.tracking.run_facts import RunFacts

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class StageRecord:
    """A stage, its output, and the facts of its run in the tracking store."""

    stage: str
    output: str
    facts: "RunFacts | None"


def origin_blocks(stages: Sequence[StageRecord], settings: str, written: datetime) -> list[DocumentBlock]:
    """Return the last chapters: stages, machine and packages, settings."""
    return [
        Heading("Stages"),
        _stages(stages),
        Paragraph(
            "Seconds are from a stage's start to its end; for a stage that was stopped and resumed they include the "
            "pause. "
            "<storage> is the storage root of the experiment's outputs."
        ),
        Heading("Code and machine"),
        Bullets(_facts(stages, written)),
        Heading("Settings"),
        Verbatim("Resolved configuration with all defaults", settings, folded=True),
    ]


def _stages(stages: Sequence[StageRecord]) -> Table:
    rows = []
    for record in stages:
        facts = record.facts
        if facts is None:
            rows.append((record.stage, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, record.output))
            continue
        seconds = f"{(facts.ended - facts.started).total_seconds():.0f}" if facts.ended else UNKNOWN
        rows.append((record.stage, _time(facts.started), seconds, facts.status, _commit(facts), record.output))
    return Table("Code, machine and packages", ("stage", "started", "seconds", "status", "commit", "output"), rows)


def _commit(facts: "RunFacts", digits: int = 12) -> str:
    if facts.commit is None:
        return UNKNOWN
    return facts.commit[:digits] + (", with uncommitted changes" if facts.uncommitted_changes else "")


def _facts(stages: Sequence[StageRecord], written: datetime) -> list[Bullet]:
    """List each fact once if all stages agree on it, else each value with its stages."""
    known = [(record.stage, record.facts) for record in stages if record.facts is not None]
    facts_by_name = {
        "Commit": [(stage, _commit(facts, digits=40)) for stage, facts in known],
        "Machine": [(stage, _listed(facts.machine)) for stage, facts in known],
        "Packages": [(stage, _listed(facts.packages)) for stage, facts in known],
    }
    bullets = [Bullet(name, _agreed(values)) for name, values in facts_by_name.items()]
    note = "The machine is the one that ran the command; workers of a cluster may be others (see the settings)."
    return [*bullets, Bullet("Workers", note), Bullet("Report written", _time(written))]


def _agreed(values: Sequence[tuple[str, str]]) -> str:
    by_value: dict[str, list[str]] = {}
    for stage, value in values:
        by_value.setdefault(value, []).append(stage)
    if len(by_value) < 2:
        return next(iter(by_value), UNKNOWN)
    return "; ".join(f"{value} ({', '.join(stages)})" for value, stages in by_value.items())


def _listed(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items()) or UNKNOWN


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
