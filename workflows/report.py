"""Report: one page of an experiment's results (HTML, and the same in Markdown), from its outputs and its runs.

python -m workflows.report EXPERIMENT.yaml [--report.folder FOLDER ...] [--dry-run]
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from PIL import Image

from cluster.tracking.training_curves import Curves
from edlm.config import ConfigurationError, plain
from edlm.local_copies import local_copy
from edlm.redaction import redacted
from edlm.storage import committed, join, publish
from workflows.command import command
from workflows.dry_run import DryRun
from workflows.evaluate import evaluate
from workflows.experiment import Experiment
from workflows.report_page import page_facts, page_folder, page_inputs, shows_the_same
from workflows.reporting.chapters import (
    METHOD,
    finding_blocks,
    likelihood_blocks,
    missing_blocks,
    text_blocks,
    training_blocks,
    weight_blocks,
    zero_shot_blocks,
)
from workflows.reporting.document import Bullets, Heading, Paragraph, ReportDocument
from workflows.reporting.exact_chapter import exact_blocks
from workflows.reporting.html_page import html_page
from workflows.reporting.markdown_page import markdown_page
from workflows.reporting.provenance import StageRecord, origin_blocks
from workflows.reporting.results import Results, read_results
from workflows.stage import say

if TYPE_CHECKING:
    from cluster.tracking.run_tracker import RunTracker
    from workflows.stage_runner import RunningSession

HTML, MARKDOWN = "report.html", "report.md"
DOTS_PER_INCH = 150
PALETTE = 128  # colors of a figure
ENOUGH = 30  # sequences; from this many on, the error of a mean is nearly normal
ARTIFACTS = "report"  # folder among the artifacts of the run
STORAGE = "<storage>"  # stands on the page for the storage root, which differs between machines


def report(session: "RunningSession") -> str:
    """Write the page about the evaluation, add it to the artifacts of the evaluation's run, and return its URI.

    It covers the stages that the session was asked for. A page in the folder that shows the same stands.
    """
    experiment, measured = session.experiment, evaluate(session)
    folder, determined = page_folder(session), page_inputs(session)
    marker = committed(folder)
    if marker is not None and shows_the_same(marker.facts, determined):
        say("report", f"reused, nothing that it shows has changed: {join(folder, HTML)}")
        return folder
    stages = [_record(session, row["stage"], row["output"]) for row in session.reports]
    settings = yaml.safe_dump(redacted(plain(experiment)), sort_keys=False, allow_unicode=True)
    settings = settings.replace(session.root, STORAGE)
    written = datetime.now(UTC)
    results = read_results(local_copy(measured))
    document = compose(experiment, results, _curves(session), stages, settings, written)
    images = draw(document)
    with tempfile.TemporaryDirectory(prefix="edlm-report-") as scratch:
        page = Path(scratch) / "page"
        write(document, images, page)
        if (tracker := session.tracker_of(measured)) is not None:
            _tell(tracker, page, images)
        try:
            publish(page, folder, facts={"stage": "report", "measured": redacted(measured), **page_facts(determined)})
        except ValueError as error:
            raise ConfigurationError(f"report.folder: {error}") from error
    say("report", f"written: {join(folder, HTML)}")
    return folder


def compose(
    experiment: Experiment,
    results: Results,
    training: Mapping[str, Curves],
    stages: Sequence[StageRecord],
    settings: str,
    written: datetime,
) -> ReportDocument:
    """Compose the whole document: question, findings, method, tables, figures, missing parts and provenance."""
    summary = results.summary
    unknown = [record.stage for record in stages if record.facts is None]
    return ReportDocument(
        f"{experiment.name}: value of the energies",
        [
            Heading("Question"),
            Paragraph(experiment.report.question),
            Paragraph(_sample(summary["sequences"], summary["length"], selected(experiment))),
            *finding_blocks(results),
            Heading("Method"),
            Bullets(METHOD),
            *likelihood_blocks(results),
            *text_blocks(results),
            *weight_blocks(results),
            *exact_blocks(results),
            *zero_shot_blocks(results),
            *training_blocks(training),
            *missing_blocks(results, unknown),
            *origin_blocks(stages, settings, written),
        ],
    )


def _sample(sequences: int, length: int, selected: list[str]) -> str:
    """Describe the sample behind the likelihoods: whether it is large enough, and if weights were selected on it."""
    text = f"Measured on {sequences} validation sequences of {length} tokens."
    if sequences < ENOUGH:
        text += " With so few sequences, the standard errors are themselves uncertain."
    if selected:
        text += (
            f" The weights of {', '.join(selected)} were selected by their loss on sequences of the same split, "
            "possibly the same ones, so their losses may be biased downwards."
        )
    return text


def selected(experiment: Experiment) -> list[str]:
    """Return the trainings whose weights are chosen by the validation loss (`keep_best`, early stopping)."""
    trainings = {"pretrain": experiment.pretrain, "autoregress": experiment.autoregress}
    trainings |= {entry.name: entry.training for entry in experiment.finetune}
    return [
        name
        for name, training in trainings.items()
        if training is not None and (training.keep_best or training.early_stopping_patience is not None)
    ]


def draw(document: ReportDocument) -> dict[str, bytes]:
    """Render every picture as PNG, by name."""
    images = {}
    for picture in document.pictures:
        content = io.BytesIO()
        picture.figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
        images[picture.name] = _small(content)
    return images


def _small(png: io.BytesIO) -> bytes:
    """Reduce the picture to a palette of its own colors, which looks the same and takes a third."""
    content = io.BytesIO()
    Image.open(png).convert("RGB").quantize(PALETTE).save(content, format="png", optimize=True)
    return content.getvalue()


def write(document: ReportDocument, images: Mapping[str, bytes], folder: Path) -> None:
    """Write the HTML page, and the Markdown with its figures, to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HTML).write_text(html_page(document, images), encoding="utf-8")
    (folder / MARKDOWN).write_text(markdown_page(document), encoding="utf-8")
    for name, content in images.items():
        (folder / f"{name}.png").write_bytes(content)


def _tell(tracker: "RunTracker", page: Path, images: Mapping[str, bytes]) -> None:
    for name in (HTML, MARKDOWN):
        tracker.text(f"{ARTIFACTS}/{name}", (page / name).read_text(encoding="utf-8"))
    for name, content in images.items():
        tracker.picture(f"{ARTIFACTS}/{name}.png", content)
    tracker.close()


def _record(session: "RunningSession", stage: str, output: str) -> StageRecord:
    return StageRecord(stage, redacted(output).replace(session.root, STORAGE), session.facts_of(output))


def _curves(session: "RunningSession") -> dict[str, Curves]:
    """Return the training curves of all stages whose runs are known, by stage."""
    return {row["stage"]: curves for row in session.reports if (curves := session.history_of(row["output"]))}


def planned(session: DryRun) -> None:
    """Ask for the evaluation, and say whether the report on it would be written."""
    evaluate(session)
    session.report()


if __name__ == "__main__":
    command(__doc__, evaluate, report, planned)
