"""What a dry run says of each stage, and that it starts nothing and writes nothing."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from edlm.checkpoints.training_state import save_snapshot
from edlm.config import ConfigurationError, load, parse, plain
from edlm.storage import publish, read_text, write_text
from tests.paths import ONE_ENERGY, PROJECT, SMALLEST
from tests.tracking_database import open_copied_tracking
from workflows.autoregress import baseline_and_judge
from workflows.dry_run import DryRun, differences
from workflows.evaluate import evaluate
from workflows.experiment import Experiment
from workflows.pipeline import stages
from workflows.register import bundle
from workflows.report_page import page_facts, page_folder, page_inputs
from workflows.stage import RUN_FILE, Session, StageContext
from workflows.stage_fingerprint import StageInputs
from workflows.stage_runner import RunningSession

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

SCHEDULE, RNG = ("edlm.schedule",), ("edlm.rng",)


def chain(session: Session, *, seed=0, steps=750, rate=0.1, corpus="1", code=SCHEDULE, work=None) -> None:
    """Two stages, the second of which is made of the first."""

    def write(context: StageContext) -> None:
        (context.folder / "file").write_text(f"{context.stage} {seed} {steps} {rate} {corpus} {code}")

    settings = {"pretrain": {"steps": steps, "rate": rate, "betas": [0.9, 0.95]}, "seed": seed}
    denoiser = session.run_stage("pretrain", settings, {}, code, work or write, {"data": corpus})
    session.run_stage("finetune-step", {"finetune.step": {"negatives": 7}}, {"denoiser": denoiser}, code, write)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> RunningSession:
    """A session in which the chain was run twice."""
    root = str(tmp_path_factory.mktemp("home"))
    session = RunningSession(load(Experiment, SMALLEST), root, open_copied_tracking(Path(root)))
    chain(session)
    chain(session, steps=500, seed=1)
    return session


def decisions(session: RunningSession, capsys, **changed) -> dict[str, str]:
    """What a dry run of the chain says of each stage; it leaves the storage as it is."""
    before = {path: path.stat().st_mtime_ns for path in Path(session.root).rglob("*")}
    capsys.readouterr()
    chain(DryRun(session.experiment, session.root), **changed)
    assert {path: path.stat().st_mtime_ns for path in Path(session.root).rglob("*")} == before
    return dict(re.findall(r"^\[([\w-]+)\] (.*)$", capsys.readouterr().out, re.MULTILINE))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"steps": 100}, "runs: pretrain.steps changed 750 -> 100"),
        ({"steps": 100, "seed": 1}, "runs: pretrain.steps changed 500 -> 100"),  # beside the most similar output
        ({"corpus": "2"}, "runs: data changed"),
        ({"code": RNG}, "runs: code changed"),
        ({"rate": 0.2, "corpus": "2"}, "runs: pretrain.rate changed 0.1 -> 0.2; data changed"),
    ],
)
def test_a_stage_that_would_run_states_what_has_changed_and_what_depends_on_it_states_so(
    running, capsys, changed, reason
):
    assert decisions(running, capsys, **changed) == {"pretrain": reason, "finetune-step": "runs: pretrain runs"}


def test_what_is_finished_is_reused(running, capsys):
    assert decisions(running, capsys) == {"pretrain": "reused", "finetune-step": "reused"}


def test_another_experiment_has_no_earlier_output(running, capsys):
    other = replace(running, experiment=replace(running.experiment, name="another"))
    assert decisions(other, capsys)["pretrain"] == "runs: there is no earlier output"


def test_an_unfinished_stage_resumes_at_its_checkpoint_if_it_has_one(running, capsys):
    def fails(_: StageContext) -> None:
        raise RuntimeError("no space")

    def fails_after_a_checkpoint(context: StageContext) -> None:
        save_snapshot(context.workspace, {"weight": torch.zeros(1)}, step=500)
        raise RuntimeError("no space")

    for work, reason in (
        (fails, "runs: an earlier run of it did not finish"),
        (fails_after_a_checkpoint, "resumes at step 500"),
    ):
        with pytest.raises(RuntimeError, match="no space"):
            chain(running, steps=1000, work=work)
        assert decisions(running, capsys, steps=1000) == {"pretrain": reason, "finetune-step": "runs: pretrain runs"}


def test_an_output_that_does_not_state_what_it_was_made_of_is_nothing_to_compare_with(running, tmp_path, capsys):
    other_home = replace(running, root=str(tmp_path))
    chain(other_home)
    for record in tmp_path.glob(f"*/work/*/{RUN_FILE}"):
        write_text(str(record), json.dumps({"run": json.loads(read_text(str(record)))["run"]}))
    reason = "runs: nothing to compare with; no earlier output says what it was made of"
    assert decisions(other_home, capsys, steps=100)["pretrain"] == reason


def test_settings_and_inputs_that_only_one_side_has_are_named():
    earlier = StageInputs("finetune", {"seed": 0, "old": {"a": 1}}, {"denoiser": "1", "proposal": "1"}, "code")
    now = StageInputs("finetune", {"seed": 0, "new": [{"b": None}]}, {"denoiser": "1", "data": "1"}, "code")
    assert list(differences(earlier, now)) == [
        "new.0.b is new (null)", "old.a is gone (1)", "data is new", "proposal is gone",
    ]  # fmt: skip


def page_line(session: RunningSession, capsys, **changed) -> str:
    """What a dry run says of the report on the chain."""
    dry = DryRun(session.experiment, session.root)
    chain(dry, **changed)
    capsys.readouterr()
    dry.report()
    return capsys.readouterr().out.strip()


def test_the_report_is_reused_or_its_reason_is_named(running, tmp_path, capsys):
    session = replace(running, root=str(tmp_path), stage_outputs={})
    chain(session)
    assert page_line(session, capsys) == "[report] runs: there is no earlier page"
    page = tmp_path / "page"
    page.mkdir()
    (page / "report.html").write_text("a page")
    facts = page_facts(page_inputs(session))
    publish(page, page_folder(session), facts)
    assert page_line(session, capsys) == "[report] reused"
    assert page_line(session, capsys, steps=100) == "[report] runs: pretrain, finetune-step run"
    question = replace(session.experiment.report, question="Why?")
    asked = replace(session, experiment=replace(session.experiment, report=question))
    before = json.dumps(session.experiment.report.question)
    changed = page_line(asked, capsys)
    assert changed.startswith("[report] runs: report.question changed ")
    assert changed.endswith(' -> "Why?"')
    assert before[:20] in changed
    chain(session, steps=100)
    assert page_line(session, capsys, steps=100) == "[report] runs: pretrain changed; finetune-step changed"
    del facts["ingredients"]  # as pages were written before they recorded them
    publish(page, page_folder(session), facts)
    reason = "runs: nothing to compare with; the earlier page does not say what it was made of"
    assert page_line(session, capsys, steps=100) == f"[report] {reason}"


def asked_for(experiment: Experiment, stage, root: Path, capsys) -> dict[str, str]:
    """The stages that a dry run asks for, and what it says of each."""
    capsys.readouterr()
    stage(DryRun(experiment, str(root)))
    return dict(re.findall(r"^\[([\w-]+)\] (.*)$", capsys.readouterr().out, re.MULTILINE))


ENERGIES = ["finetune-step", "finetune-conditional", "finetune-residual", "finetune-coar"]
ALL = ["prepare", "pretrain", "autoregress", "judge", *ENERGIES, "evaluate", "register"]
GPT2 = {"kind": "huggingface", "name": "gpt2"}


@pytest.mark.parametrize(
    ("change", "energies", "spared"),
    [
        ({}, 4, set()),
        ({"evaluate": None}, 4, {"judge", "evaluate"}),
        ({"evaluate": None}, 1, {"judge", "evaluate", "autoregress", *ENERGIES[1:]}),
        ({"evaluate": None, "autoregress": None, "judge": None}, 3, {"judge", "evaluate", "autoregress", ENERGIES[3]}),
        ({"evaluate": {"judge": GPT2}}, 4, {"judge"}),
        ({"judge": None}, 4, {"judge"}),
        ({"autoregress": None}, 3, {"autoregress", ENERGIES[3]}),
        ({"register": {"sampler": {"steps": 4}}, "evaluate": None}, 0, {"judge", "evaluate", "autoregress", *ENERGIES}),
    ],
)
def test_a_pipeline_asks_for_what_its_experiment_needs_and_for_nothing_else(change, energies, spared, tmp_path, capsys):
    tree = plain(load(Experiment, SMALLEST)) | change
    tree["finetune"] = tree["finetune"][:energies]
    asked = asked_for(parse(Experiment, tree), stages, tmp_path, capsys)
    assert set(asked) - {"report", "serve"} == set(ALL) - spared
    assert ("report" in asked) == ("evaluate" in asked)


def test_attention_within_documents_trains_anew_and_prepares_nothing_anew(tmp_path):
    class Recorded(DryRun):
        def run_stage(self, name, settings, *others, **more):
            recorded.setdefault(name, []).append(settings)
            return super().run_stage(name, settings, *others, **more)

    recorded: dict[str, list] = {}
    tree = plain(load(Experiment, SMALLEST))
    for attention in ("across_documents", "within_documents"):
        data = tree["data"] | {"tokenizer": {"kind": "bytes"}, "attention": attention}
        stages(Recorded(parse(Experiment, tree | {"data": data}), str(tmp_path)))
    same = {name for name, (across, within) in recorded.items() if across == within}
    assert "prepare" in same
    assert not same & {"pretrain", "autoregress", "judge", *ENERGIES[:3]}


@pytest.mark.parametrize(
    ("stage", "message"), [(evaluate, "evaluate: there is no such section"), (baseline_and_judge, "neither an `auto")]
)
def test_a_stage_without_its_section_states_so(stage, message, tmp_path, capsys):
    with pytest.raises(ConfigurationError, match=message):
        asked_for(load(Experiment, ONE_ENERGY), stage, tmp_path, capsys)


def test_a_given_model_takes_the_place_of_its_stage_and_of_what_that_would_need(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("weights")
    tree = plain(load(Experiment, ONE_ENERGY)) | {"given": {"denoiser": str(model), "energies": {"step": str(model)}}}
    experiment = parse(Experiment, tree)
    with pytest.raises(ConfigurationError, match=r"given: pretrain in .* is not there, or is not finished"):
        asked_for(experiment, bundle, tmp_path / "home", capsys)
    publish(model, str(model))
    assert asked_for(experiment, bundle, tmp_path / "home", capsys) == {
        "pretrain": f"given: {model}",
        "finetune-step": f"given: {model}",
        "register": "runs: there is no earlier output",
    }


@pytest.fixture
def without_machines(tmp_path) -> dict[str, str]:
    """An environment in which neither Ray nor MLflow nor DeepSpeed can be imported."""
    for name in ("ray", "mlflow", "deepspeed"):
        (tmp_path / "blocked").mkdir(exist_ok=True)
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    path = os.pathsep.join([str(tmp_path / "blocked"), str(PROJECT)])
    return {**os.environ, "PYTHONPATH": path, "EDLM_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


def dry(environment: dict[str, str], module: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"workflows.{module}", str(path), "--dry-run"]
    return subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=300)


def test_a_dry_run_prints_the_settings_and_the_stages_without_ray_or_mlflow_and_writes_nothing(
    without_machines, tmp_path
):
    done = dry(without_machines, "pipeline", SMALLEST)
    assert done.returncode == 0, done.stderr
    settings, _, stages = done.stdout.partition("\n\n")
    assert parse(Experiment, yaml.safe_load(settings)) == load(Experiment, SMALLEST)
    lines = dict(re.findall(r"^\[([\w-]+)\] (.*)$", stages, re.MULTILINE))
    assert lines["prepare"] == "runs: there is no earlier output"
    assert lines["finetune-residual"] == "runs: prepare, pretrain, finetune-conditional run"
    assert lines["evaluate"].startswith("runs: prepare, pretrain, autoregress, judge, finetune-step")
    assert list(lines)[-3:] == ["register", "report", "serve"]
    assert lines["report"] == f"runs: {', '.join(list(lines)[:-2])} run"
    assert not (tmp_path / "home").exists()


def test_a_dry_run_of_wrong_settings_is_one_line_that_names_them_and_status_1(without_machines, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(SMALLEST.read_text().replace("register: {model: smallest, energy: step", "register: {energy: stop"))
    done = dry(without_machines, "pipeline", path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "register.energy: 'stop' is not among the energies of `finetune`" in done.stderr
