"""What runs a stage again: a change in the code that its result depends on, and no other change."""

import itertools
import shutil
from pathlib import Path

import pytest

from workflows import autoregress, evaluate, finetune, prepare, pretrain, register, report_page
from workflows.evaluation.measurements.calibration import Calibration
from workflows.evaluation.measurements.likelihood import Bound
from workflows.source_digest import PROJECT, source_digest, source_files

MODULES = (prepare, pretrain, autoregress, finetune, evaluate, register, report_page)
STAGES = {stage.__name__: stage.CODE for stage in MODULES}
TRAINED = {name for name in STAGES if name.endswith(("pretrain", "autoregress", "finetune"))}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A copy of the project's code."""
    copy = tmp_path_factory.mktemp("original")
    for package in ("edlm", "cluster", "workflows"):
        shutil.copytree(PROJECT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def changed(original, tmp_path) -> Path:
    """Another copy, to change."""
    return Path(shutil.copytree(original, tmp_path / "changed"))


def stages_run_again(original: Path, changed: Path) -> set[str]:
    return {
        name
        for name, code in STAGES.items()
        if source_digest(*code, project=original) != source_digest(*code, project=changed)
    }


def comment(path: Path) -> None:
    """Append a line to a file."""
    assert path.is_file()
    with path.open("a") as file:
        file.write("\n# Another comment\n")


def test_a_copy_that_was_not_changed_runs_nothing_again(original, changed):
    assert stages_run_again(original, changed) == set()


ELSEWHERE = """
edlm/client/client.py edlm/client/sse.py edlm/client/types.py cluster/http/middleware/access_log.py
cluster/http/playground/index.html cluster/runtime/ray_connection.py
workflows/serve.py workflows/stage.py workflows/experiment.py
"""
PAGE = {"workflows.report_page"}
EVERYTHING = set(STAGES)
RESULTS = EVERYTHING - PAGE


@pytest.mark.parametrize("where", ELSEWHERE.split())
def test_a_comment_where_nothing_is_computed_runs_nothing_again(original, changed, where):
    comment(changed / where)
    assert stages_run_again(original, changed) == set()


@pytest.mark.parametrize(
    ("where", "again"),
    [
        ("edlm/config.py", EVERYTHING),
        ("edlm/equations.py", RESULTS),
        ("edlm/training/objectives.py", TRAINED),
        ("edlm/models/transformer.py", RESULTS - {"workflows.prepare"}),
        ("edlm/data/splits.py", RESULTS),
        ("edlm/energies/step.py", {"workflows.finetune", "workflows.evaluate", "workflows.register"}),
        ("edlm/sampling/sampler.py", {"workflows.finetune", "workflows.evaluate", "workflows.register"}),
        ("edlm/likelihood/bounds.py", {"workflows.evaluate", "workflows.register"}),
        ("edlm/inference/engine.py", {"workflows.register"}),  # which opens what it has written, to see that it serves
        ("cluster/training/deepspeed_engine.py", TRAINED),
        ("cluster/training/sharded_muon.py", TRAINED),
        ("workflows/finetune.py", {"workflows.finetune"}),
        ("workflows/evaluation/measurements/quality.py", {"workflows.evaluate"}),
        ("workflows/reporting/figures/bounds.py", {"workflows.evaluate", *PAGE}),
        ("cluster/training/workers.py", TRAINED),
        ("workflows/report.py", PAGE),
        ("workflows/row_names.py", {"workflows.evaluate", *PAGE}),
        ("workflows/reporting/html_page.py", PAGE),
        ("workflows/reporting/templates/report.css", PAGE),
        ("cluster/tracking/training_curves.py", PAGE),
    ],
)
def test_a_change_runs_again_what_depends_on_it_and_nothing_else(original, changed, where, again):
    comment(changed / where)
    assert stages_run_again(original, changed) == again


def test_nothing_that_is_trained_or_measured_depends_on_the_client_or_the_engine_of_the_service():
    measured = {
        path.relative_to(PROJECT).parts[:2]
        for name in (*TRAINED, "workflows.evaluate")
        for path in source_files(*STAGES[name])
    }
    assert ("edlm", "models") in measured
    assert not measured & {("edlm", "client"), ("edlm", "inference"), ("cluster", "http"), ("cluster", "serving")}


def test_a_measurement_is_made_again_for_its_own_code_alone(original, changed):
    comment(changed / "workflows/evaluation/measurements/calibration.py")
    again = {
        cell
        for cell in (Calibration, Bound)
        if source_digest(cell.__module__, project=original) != source_digest(cell.__module__, project=changed)
    }
    assert again == {Calibration}


PROJECTS = itertools.count()


def write(folder: Path, files: dict[str, str]) -> Path:
    """A project of its own, since what was read once of a folder is not read again."""
    project = folder / str(next(PROJECTS))
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return project


SMALL = {
    "workflows/training/run.py": "def run():\n    from edlm.models import network\n",
    "edlm/models/network.py": "import edlm.rng\n",
    "edlm/models/deep/layer.py": "",
    "edlm/rng.py": "import numpy\n",
    "edlm/client/client.py": "import edlm.rng\n",
}


@pytest.mark.parametrize(
    "addition",
    [
        {"edlm/models/new.py": ""},
        {"edlm/models/deep/new.py": ""},
        {"edlm/models/deep/layer.py": "# a comment"},
        {"edlm/rng.py": "import numpy  # a comment"},
        {"workflows/training/run.py": "from edlm.models import network"},
    ],
)
def test_a_file_added_or_changed_in_a_room_that_is_imported_counts(tmp_path, addition):
    before, after = write(tmp_path, SMALL), write(tmp_path, SMALL | addition)
    assert source_digest("workflows.training.run", project=before) != source_digest(
        "workflows.training.run", project=after
    )


@pytest.mark.parametrize("addition", [{"edlm/client/new.py": ""}, {"edlm/new.py": ""}, {"workflows/new.py": ""}])
def test_a_file_that_nothing_leads_to_does_not_count(tmp_path, addition):
    before, after = write(tmp_path, SMALL), write(tmp_path, SMALL | addition)
    assert source_digest("workflows.training.run", project=before) == source_digest(
        "workflows.training.run", project=after
    )


def test_a_file_that_moved_is_another_code(tmp_path):
    moved = {name.replace("deep/", ""): text for name, text in SMALL.items()}
    before, after = write(tmp_path, SMALL), write(tmp_path, moved)
    assert source_digest("workflows.training.run", project=before) != source_digest(
        "workflows.training.run", project=after
    )


def test_a_relative_import_is_an_error_and_not_passed_over(tmp_path):
    project = write(tmp_path, SMALL | {"edlm/models/network.py": "from .deep import layer\n"})
    with pytest.raises(AssertionError, match="relative imports are not followed"):
        source_digest("workflows.training.run", project=project)


def test_a_module_that_is_not_there_is_an_error():
    with pytest.raises(ModuleNotFoundError, match=r"workflows\.pretraining is no module"):
        source_digest("workflows.pretraining")
