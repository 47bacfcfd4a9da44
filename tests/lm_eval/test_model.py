"""The harness runs its tasks with the model: on local files, without a network, with the numbers of `edlm.load`."""

import json
import logging
import re
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import edlm
from edlm.config import ConfigurationError
from edlm.lm_eval import EDLM
from edlm.lm_eval.__main__ import main
from tests.bundles import LENGTH, make_bundle
from tests.paths import PROJECT

GUIDE = (PROJECT / "docs" / "guides" / "lm-eval.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A model whose canvas the guide's texts fit."""
    return make_bundle(tmp_path_factory.mktemp("wide"), length=48)


def lm(bundle: Path, **arguments) -> EDLM:
    return EDLM(**{"uri": str(bundle), "candidates": 1, "draws": 4, **arguments})


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]  # pyright: ignore[reportArgumentType]


def test_importing_the_package_registers_the_model():
    assert get_model("edlm") is EDLM


@pytest.mark.parametrize("bound", ["sampler", "nelbo", "exact_order"])
def test_log_likelihoods_are_minus_the_scores_of_the_model(bundle, bound):
    pairs = [("ab", " cd"), ("", "hello"), ("abc ", "d")]
    answers = lm(bundle, bound=bound, seed=5).loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    model = edlm.load(bundle)
    for (log_p, greedy), (context, text) in zip(answers, [("ab", " cd"), ("", "hello"), ("abc", " d")], strict=True):
        score = model.score(text, prompt=context, candidates=1, draws=4, seed=5, exact_order=True)
        expected = {"sampler": score.bound.mean, "nelbo": score.nelbo.mean, "exact_order": score.exact_order}[bound]
        assert log_p == pytest.approx(-expected, rel=1e-6)
        assert greedy is False


def test_a_rolling_likelihood_is_that_of_the_whole_text(bundle):
    (short, long) = lm(bundle).loglikelihood_rolling(
        requests("loglikelihood_rolling", ("hello",), ("a text of more than one canvas",)), disable_tqdm=True
    )
    assert short == pytest.approx(-edlm.load(bundle).score("hello", candidates=1, draws=4, seed=0).bound.mean)
    assert long < short


def test_texts_are_those_of_the_model_request_i_with_seed_plus_i(bundle):
    whole = [text.text for text in edlm.load(bundle).generate("ab", n=3, max_tokens=20, candidates=1, seed=7)]
    stop = whole[1][3:5]
    asked = {"max_gen_toks": 20, "do_sample": True, "until": [stop]}
    for batch_size in (1, 2, 8):
        own = lm(bundle, seed=7, batch_size=batch_size)
        answers = own.generate_until(requests("generate_until", *[("ab", asked)] * 3), disable_tqdm=True)
        assert answers == [edlm.load(bundle).generate(
            "ab", max_tokens=20, candidates=1, seed=7 + i, stop=stop).text for i in range(3)]  # fmt: skip
    assert answers[1] == whole[1][: whole[1].index(stop)]


def test_a_task_that_does_not_sample_gets_the_likeliest_tokens_beside_one_that_does(bundle):
    greedy, sampled = {"max_gen_toks": 9, "do_sample": False}, {"max_gen_toks": 9, "do_sample": True}
    own = lm(bundle, seed=7, batch_size=4)
    answers = own.generate_until(requests("generate_until", ("ab", greedy), ("ab", sampled)), disable_tqdm=True)
    model = edlm.load(bundle)
    assert answers[0] == model.generate("ab", max_tokens=9, candidates=1, temperature=0, seed=7).text
    assert answers[1] == model.generate("ab", max_tokens=9, candidates=1, seed=8).text
    assert own.get_model_info()["edlm"]["generation"] == {"texts": 2, "temperatures": [0.0, 1.0], "contexts_cut": 0}


def test_the_results_name_the_bound_its_draws_and_errors_and_what_did_not_fit(bundle, caplog):
    own = lm(bundle, draws=6, seed=5)
    with caplog.at_level(logging.WARNING):
        own.loglikelihood(
            requests("loglikelihood", ("ab", " Cd!"), ("a" * LENGTH, "bc"), ("", "a" * 2 * LENGTH)), disable_tqdm=True
        )
    assert "1 of 3 contexts do not fit the canvas of 12 tokens: of these, only the end was read" in caplog.text
    facts = own.get_model_info()["edlm"]
    errors = [score.standard_error for score in own.scores]
    assert facts["likelihood"] == {
        "bound": "sampler",
        "meaning": "lower bound on log p: minus the T-step bound of the sampler, given the context",
        "draws": 6,
        "texts": 3,
        "mean_standard_error_nats": pytest.approx(sum(errors) / 3),
        "largest_standard_error_nats": max(errors),
        "contexts_cut": 1,
        "texts_of_several_canvases": 1,
        "texts_changed_by_tokenizer": 1,
    }
    assert (facts["model"], facts["seed"], facts["canvas_tokens"], facts["device"]) == ("tiny", 5, LENGTH, "cpu")
    assert facts["sampler"] == "steps=4, candidates=1, energy=None"
    exact = lm(bundle, bound="exact_order")
    exact.loglikelihood(requests("loglikelihood", ("ab", "cd")), disable_tqdm=True)
    facts = exact.get_model_info()["edlm"]["likelihood"]
    assert (facts["draws"], facts["mean_standard_error_nats"]) == (None, 0)
    assert facts["meaning"] == (
        "log p, exact, of another distribution: most certain first in fixed counts, given the context"
    )
    json.dumps(own.get_model_info())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_the_networks_run_on_the_cpu_and_the_log_and_the_results_say_so(bundle, caplog):
    own = lm(bundle, device="cuda:0")
    assert "there is no CUDA device here: the networks run on the CPU" in caplog.text
    assert own.get_model_info()["edlm"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"pretrained": "gpt2"}, "pretrained: unknown key"),
        ({"energy": "nce", "candidates": 2}, "energy 'nce' is not in this model; it has: conditional, step"),
        ({"bound": "exact_order", "candidates": 2}, "candidates is 2: the probability of the chosen one"),
    ],
)
def test_what_the_model_cannot_be_asked_is_refused(bundle, changes, message):
    with pytest.raises(ValueError, match=message):
        lm(bundle, **changes)


def test_requests_that_cannot_be_met_are_refused(bundle):
    own = lm(bundle)
    with pytest.raises(ConfigurationError, match=r"'' has no token of this model, .* reads 'ab' as 'ab'"):
        own.loglikelihood(requests("loglikelihood", ("ab", "")), disable_tqdm=True)
    with pytest.raises(ConfigurationError, match=r"top_p = 0.9 is not understood"):
        own.generate_until(requests("generate_until", ("ab", {"top_p": 0.9})), disable_tqdm=True)
    with pytest.raises(ConfigurationError, match=r"temperature is 5; give 0, or 0.01 to 2"):
        own.generate_until(requests("generate_until", ("ab", {"do_sample": True, "temperature": 5})), disable_tqdm=True)
    with pytest.raises(NotImplementedError, match="apply_chat_template"):
        own.apply_chat_template([])


def tasks_of_the_guide(folder: Path) -> None:
    """Write the guide's two tasks and their data, each behind the other, as a reader would."""
    (folder / "tasks").mkdir()
    tasks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    data = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    for task, rows in zip(tasks, data, strict=True):
        settings = yaml.safe_load(task)
        (folder / "tasks" / f"{settings['task']}.yaml").write_text(task)
        (folder / settings["dataset_kwargs"]["data_files"]["test"]).write_text(rows)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line in this process, without a network, in a folder with the guide's tasks.

    The index of tasks holds these alone: that of the harness's own 14,000 files takes half a minute.
    """
    tasks_of_the_guide(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which the harness sets for good
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(TaskManager.__init__, "__defaults__", (None, None, False, None))
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)  # runs pip and others for half a minute

    def run(line: str) -> None:
        monkeypatch.setattr(sys, "argv", line.split()[2:])
        main()

    return run


def test_two_tasks_of_local_files_run_from_the_command_line_to_the_results(wide, command, tmp_path):
    line = re.search(r"^python -m edlm\.lm_eval .*--tasks endings.*$", GUIDE, re.MULTILINE)
    assert line is not None
    command(line[0].replace("edlm-tiny@champion", str(wide)) + " --log_samples")
    (path,) = (tmp_path / "results").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert set(results["results"]) == {"endings", "continuations"}
    assert 0 <= results["results"]["endings"]["acc,none"] <= 1
    facts = results["config"]["edlm"]
    assert (facts["likelihood"]["bound"], facts["likelihood"]["texts"]) == ("exact_order", 4)
    assert (facts["generation"]["texts"], facts["generation"]["temperatures"]) == (2, [1.0])
    (path,) = (tmp_path / "results").rglob("samples_endings_*.jsonl")
    samples, model = [json.loads(row) for row in path.read_text().splitlines()], edlm.load(wide)
    assert len(samples) == 2
    for sample in samples:
        for text, ((log_p, _),) in zip(sample["doc"]["endings"], sample["resps"], strict=True):
            own = model.score(" " + text, prompt=sample["doc"]["context"], candidates=1, exact_order=True)
            assert float(log_p) == pytest.approx(-own.exact_order, rel=1e-5)
    (path,) = (tmp_path / "results").rglob("samples_continuations_*.jsonl")
    for i, row in enumerate(path.read_text().splitlines()):
        sample = json.loads(row)
        prompt = sample["arguments"]["gen_args_0"]["arg_0"]
        made = model.generate(prompt, max_tokens=12, candidates=1, stop=" ", seed=i)
        assert sample["resps"] == [[made.text]]


def test_a_wrong_argument_ends_the_command_with_one_line(bundle, command):
    line = f"python -m edlm.lm_eval --model edlm --model_args uri={bundle},bond=nelbo --tasks endings"
    with pytest.raises(SystemExit, match="edlm: --model_args: bond: unknown key; did you mean 'bound'"):
        command(f"{line} --include_path tasks")
