"""The whole chain as a user runs it: commands in their own processes, with real Ray, DeepSpeed, MLflow and Serve."""

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

import edlm
from edlm.checkpoints.networks import save_autoregressive
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Characters
from edlm.storage import publish
from tests.exports import opened, own_modules
from tests.networks import TRANSFORMER, autoregressive
from tests.paths import ONE_ENERGY, SMALLEST, TWO_ENERGIES
from tests.workflows.commands import run
from workflows import pipeline
from workflows.export import main as export_command
from workflows.import_export import import_export

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BEFORE = ["prepare", "pretrain", "autoregress", "finetune-step"]
STAGES = [*BEFORE, "finetune-coar", "evaluate", "register"]
TOO_MANY = ("--cluster.workers", "8", "--cluster.cpus_per_worker", "64")  # of which each stage's batch is a multiple


def states(output: str) -> dict[str, str]:
    """The first word of each stage: started, reused, or that it resumes."""
    words: dict[str, str] = {}
    for stage, word in re.findall(r"^\[([\w-]+)\] (started|reused|resumes)", output, re.MULTILINE):
        words[stage] = word
    return words


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def two_energies(home) -> Path:
    """The experiment of the default tests, with a judge that is given; the chaos tests train one."""
    tokenizer, tree = Characters().build([]), yaml.safe_load(TWO_ENERGIES.read_text())
    tokenizer.save(home)
    weights, length = autoregressive(tokenizer.size).state_dict(), tree["data"]["length"]
    save_autoregressive(home / "judge", weights, TRANSFORMER, length, home / FILE, {})
    publish(home / "judge", str(home / "judge"))
    path = home / "two_energies.yaml"
    path.write_text(yaml.safe_dump(tree | {"given": {"judge": str(home / "judge")}}))
    return path


@pytest.fixture(scope="module")
def first(home, port, two_energies) -> str:
    return run(home, "pipeline", "--serving.port", str(port), experiment=two_energies)


@pytest.fixture
def dry_run(home, two_energies, monkeypatch, capsys) -> Callable[..., dict[str, str]]:
    """Return what a dry run of the pipeline says of each stage, given overrides of the experiment's settings."""
    monkeypatch.setenv("EDLM_HOME", str(home))

    def lines(*overrides: str) -> dict[str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", str(two_energies), *overrides, "--dry-run"])
        pipeline.main()
        return dict(re.findall(r"^\[([\w-]+)\] (.*)$", capsys.readouterr().out, re.MULTILINE))

    return lines


def test_the_chain_ends_with_a_report_and_an_answer_of_the_endpoint(first, home, port):
    assert states(first) == {**dict.fromkeys(STAGES, "started")}
    assert "[judge] given: " in first
    for expected in (
        "denoiser, NELBO",
        "autoregressive model",
        "T-step bounds",
        "NOT a bound",
        "gen. ppl",
        "entropy",
        "step-and-coar",
    ):
        assert expected in first
    assert f"curl -s http://127.0.0.1:{port}/v1/completions" in first
    assert re.search(r"the endpoint answered: 'the ", first)
    page = re.search(r"the report, with every figure: (\S+)", first)
    assert page is not None
    html = Path(page[1]).read_text(encoding="utf-8")
    for expected in (
        "step-and-coar",
        "Against plain diffusion at the same T",
        "T-step bounds, nats per token",
        "Not measured",
        "register",
    ):
        assert expected in html
    assert "&lt;storage&gt;/smallest/pretrain-" in html
    assert str(home) not in html  # the page may be published
    assert html.count('src="data:image/png;base64,') == len(list(Path(page[1]).parent.glob("*.png"))) > 4


@pytest.mark.usefixtures("first")
def test_mlflow_shows_one_run_with_a_child_for_each_stage(home):
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "edlm"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs["smallest"]
    assert {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "smallest"} == {
        parent.info.run_id
    }
    assert all(run.info.status == "FINISHED" for run in runs.values())
    pretrain = runs["pretrain"]
    for metric in ("loss_nats_per_token", "learning_rate", "gradient_norm", "tokens_per_second", "memory_mib"):
        assert len(client.get_metric_history(pretrain.info.run_id, metric)) == 6
    assert any(name.startswith("gain_nats/t_") for name in runs["finetune-step"].data.metrics)
    assert pretrain.data.params["pretrain.steps"] == "6"
    assert pretrain.data.tags["mlflow.source.git.commit"]
    assert pretrain.inputs.dataset_inputs[0].dataset.name == "data"
    files = {file.path for file in client.list_artifacts(pretrain.info.run_id)}
    assert {"config.yaml", "curves.png"} <= files
    tables = {file.path for file in client.list_artifacts(runs["evaluate"].info.run_id)}
    assert {"bounds.json", "quality.json", "samples.json", "zero_shot.json", "bounds.png", "report.txt"} <= tables
    pages = {file.path for file in client.list_artifacts(runs["evaluate"].info.run_id, "report")}
    assert {"report/report.html", "report/report.md", "report/bound-steps.png"} <= pages
    assert runs["evaluate"].data.tags["edlm.machine.processor"]
    assert client.get_model_version_by_alias("smallest", "champion").version == 1


@pytest.mark.chaos
def test_a_second_run_reuses_every_stage(first, home, port, two_energies):
    again = run(home, "pipeline", "--serving.port", str(port), experiment=two_energies)
    assert states(again) == dict.fromkeys([*STAGES, "report"], "reused")
    assert re.search(r"the endpoint answered: .*", again)[0] == re.search(r"the endpoint answered: .*", first)[0]


@pytest.mark.usefixtures("first")
def test_of_a_second_run_a_dry_run_states_that_it_reuses_every_stage(dry_run, port):
    lines = dry_run("--serving.port", str(port))
    assert {lines[stage] for stage in [*STAGES, "report"]} == {"reused"}


@pytest.mark.chaos
@pytest.mark.usefixtures("first")
def test_every_kind_of_energy_is_trained_by_two_workers_measured_served_and_exported(home, port, tmp_path, monkeypatch):
    output = run(home, "pipeline", "--serving.port", str(port), experiment=SMALLEST)
    begun = ["judge", "finetune-conditional", "finetune-residual", "evaluate", "register"]
    assert states(output) == {**dict.fromkeys([*BEFORE, "finetune-coar"], "reused"), **dict.fromkeys(begun, "started")}
    _exported(output, home, tmp_path, monkeypatch, "| residual | k = 2 |")


def test_the_registered_model_is_exported_with_its_measured_bounds_and_gives_the_same_texts(
    first, home, tmp_path, monkeypatch
):
    _exported(first, home, tmp_path, monkeypatch, "| step | k = 2 |")


def _exported(output: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    """What `output` says was measured and registered is a repository whose texts are those of the registered model."""
    monkeypatch.setenv("EDLM_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    evaluation = re.search(r"^\[evaluate\] finished in \d+ s: (\S+)", output, re.MULTILINE)
    assert evaluation is not None
    repository = tmp_path / "repository"
    export_command(["smallest@champion", str(repository), "--measured", evaluation[1]])
    card = (repository / "README.md").read_text(encoding="utf-8")
    for expected in ("# smallest\n", "energy='step'", "| plain diffusion |", "| coar | k = 2 |", "| T = 2 |", row):
        assert expected in card
    ours = edlm.load("smallest@champion")
    with own_modules(tmp_path / "modules"):
        theirs, tokenizer = opened(repository)
    for energy in ours.energies:
        settings = {"n": 2, "max_tokens": 20, "energy": energy, "seed": 3}
        expected = [text.text for text in ours.generate("the ", **settings)]
        assert theirs.generate("the ", tokenizer=tokenizer, **settings) == expected
    import_export(repository, tmp_path / "back")
    assert edlm.load(tmp_path / "back").generate("the ", seed=3).text == ours.generate("the ", seed=3).text


@pytest.mark.chaos
@pytest.mark.usefixtures("first")
def test_an_experiment_of_one_energy_asks_for_one_denoiser_and_one_energy_and_is_served(home, port):
    output = run(home, "pipeline", "--serving.port", str(port), experiment=ONE_ENERGY)
    assert states(output) == {
        **dict.fromkeys(["prepare", "pretrain", "finetune-step"], "reused"),
        "register": "started",
    }
    assert re.search(r"the endpoint answered: 'the ", output)
    assert "the report" not in output


EVALUATE_PLAIN = """
sequences: 4
steps: [1, 2]
candidates: [1, 2]
fitted_steps: [2]
fitted_points: 2
effort_steps: [2]
nelbo_draws: 2
timed_texts: 2
timed_steps: [2]
zero_shot: [{name: readme, corpus: {kind: files, paths: [README.md], format: txt}, limit: 4}]
"""


@pytest.mark.chaos
@pytest.mark.usefixtures("first")
def test_plain_diffusion_is_measured_and_served_without_energy_judge_or_autoregressive_model(home, port, tmp_path):
    tree = yaml.safe_load(ONE_ENERGY.read_text())
    del tree["finetune"]
    tree |= {"evaluate": yaml.safe_load(EVALUATE_PLAIN), "register": {"model": "plain", "sampler": {"steps": 4}}}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(tree))
    output = run(home, "pipeline", "--serving.port", str(port), experiment=tmp_path / "plain.yaml")
    reused = dict.fromkeys(["prepare", "pretrain"], "reused")
    assert states(output) == {**reused, **dict.fromkeys(["evaluate", "register"], "started")}
    assert re.search(r"the endpoint answered: 'the ", output)
    assert "No judge: texts were not judged" in output
    assert "autoregressive" not in output
    assert "adaptive effort" not in output  # there is nothing to choose from
    page = re.search(r"the report, with every figure: (\S+)", output)
    assert page is not None
    assert "No judge: texts were not judged." in Path(page[1]).read_text(encoding="utf-8")


@pytest.mark.usefixtures("first")
def test_a_dry_run_states_what_a_changed_setting_would_run_again_and_why(dry_run):
    lines = dry_run("--finetune.0.training.steps", "2")
    assert lines["finetune-step"] == "runs: finetune.step.training.steps changed 3 -> 2"
    assert lines["evaluate"] == lines["register"] == "runs: finetune-step runs"
    assert {lines[stage] for stage in STAGES if stage not in ("finetune-step", "evaluate", "register")} == {"reused"}


@pytest.mark.chaos
@pytest.mark.usefixtures("first")
def test_a_changed_setting_reruns_what_depends_on_it_and_nothing_else(home, two_energies):
    changed = run(home, "evaluate", "--finetune.0.training.steps", "2", experiment=two_energies)
    assert states(changed) == {
        **dict.fromkeys(["prepare", "pretrain", "autoregress", "finetune-coar"], "reused"),
        **dict.fromkeys(["finetune-step", "evaluate"], "started"),
    }


@pytest.mark.chaos
@pytest.mark.usefixtures("first")
def test_a_cell_that_fails_is_named_with_its_cause_and_loses_no_other(home, two_energies, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    short = ("--evaluate.zero_shot.0.corpus.paths", str(tmp_path / "short.txt"))
    output = run(home, "evaluate", *short, expect=1, experiment=two_energies)
    assert "3 of" in output
    assert re.search(
        r"denoiser \(bound\) on readme: ValueError: readme: 10 tokens in 1 documents do not fill one row", output
    )
    assert "Traceback" not in output
    kept, total = map(int, re.search(r"(\d+) of (\d+) measurements reused", output).groups())
    assert kept == total - 3
    (tmp_path / "short.txt").write_text("long enough to fill a row of sixteen tokens or two")
    assert "3 of 3 measurements done" in run(home, "evaluate", *short, experiment=two_energies)


@pytest.mark.chaos
@pytest.mark.usefixtures("first")
def test_more_workers_than_the_machine_has_is_an_error_that_names_the_resource(home):
    output = run(home, "pretrain", *TOO_MANY, "--pretrain.batch", "16", expect=1)
    assert "8 workers of pretrain: 512 CPU needed, the cluster has" in output
    assert "Traceback" not in output


def test_a_wrong_setting_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDLM_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["pipeline", str(TWO_ENERGIES), "--pretrain.stepz", "3"])
    with pytest.raises(SystemExit) as refused:
        pipeline.main()
    assert refused.value.code == 2
    assert "pretrain.steps" in "".join(capsys.readouterr())
    assert not any(tmp_path.iterdir())


@pytest.mark.chaos
@pytest.mark.usefixtures("first")
def test_a_stage_that_failed_states_so_in_mlflow(home):
    run(home, "pretrain", *TOO_MANY, "--pretrain.batch", "24", expect=1)
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "edlm"]
    newest = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
    assert newest.info.status == "FAILED"
