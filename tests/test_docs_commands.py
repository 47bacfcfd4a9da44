"""Every command, example and link of the README and of docs/ is one that works.

Dry runs run here, Python examples in `tests/test_docs_python.py`, curl commands and clients in
`tests/cluster/http/test_examples.py`. What a test cannot run, because it takes a cluster, a GPU or minutes, is parsed
by the parser that would read it.
"""

import importlib
import importlib.util
import itertools
import json
import pkgutil
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from lm_eval._cli import HarnessCLI
from mlflow.cli import cli as mlflow_command
from pydantic import TypeAdapter
from ray.scripts.scripts import cli as ray_command
from ray.serve.scripts import cli as serve_command

from cluster.http import local
from cluster.http.schemas import requests
from cluster.runtime.ray_connection import CALLBACK
from edlm.__main__ import Watch
from edlm.config import from_command_line, from_flags, parse
from edlm.lm_eval.arguments import model_arguments
from tests.paths import PROJECT
from tests.test_prose import QUAINT
from workflows import benchmark, serve
from workflows.benchmarking import english
from workflows.experiment import Experiment
from workflows.export import Export
from workflows.promote import Promote

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(page for page in (PROJECT / "docs").rglob("*.md") if page.name != "report.md"),
]

FENCE = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)

INLINE = re.compile(r"(?<!`)`((?:python -m|make|pip install) [^`\n]+|(?:ray|serve|mlflow) [^`\n]*[-/][^`\n]*)`")

STAGES = ["prepare", "pretrain", "autoregress", "finetune", "evaluate", "register", "report", "pipeline", "serve"]

SHELL = {".", "export", "umask", "echo", "chmod", "mkdir", "cd", "curl", "kubectl", "make", "python", "pip"}

SERVED = "http://127.0.0.1:8000"  # where the pages say that a model is served

VARIABLES = {
    "EDLM_HOME", "OMP_NUM_THREADS", "RAY_AUTH_MODE", CALLBACK, "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_REGION",
}  # fmt: skip

BY_CLICK = {"ray": ray_command, "serve": serve_command, "mlflow": mlflow_command}

BODIES = {
    "/v1/completions": requests.CompletionRequest,
    "/v1/infill": requests.InfillRequest,
    "/v1/score": requests.ScoreRequest,
}


@dataclass(frozen=True)
class Example:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(*languages: str) -> list[Example]:
    """The fenced blocks of these languages on all pages."""
    actual = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in FENCE.finditer(text):
            if block["language"] in languages:
                line = text.count("\n", 0, block.start()) + 1
                actual.append(Example(page.relative_to(PROJECT).as_posix(), line, block["language"], block["text"]))
    return actual


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell text as words, without comments, variables set before them, and parentheses."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();&|<>")
        lexer.whitespace_split = True
        for ends, words in itertools.groupby(lexer, lambda word: set(word) <= set("();&|<>")):
            command = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
            if command and not ends:
                yield command
                if "--" in command:  # what `ray job submit` runs
                    yield command[command.index("--") + 1 :]


class Read(Exception):
    """The command's own parser has accepted it."""


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    """The project's folder, and beside it the experiment that a page tells its reader to save."""
    monkeypatch.chdir(PROJECT)
    written = {}
    for example in examples("yaml"):
        if example.text.startswith("name:"):
            name = yaml.safe_load(example.text)["name"]
            written[f"{name}.yaml"] = tmp_path / f"{name}.yaml"
            written[f"{name}.yaml"].write_text(example.text)
    return written


@pytest.mark.parametrize("example", examples("bash"), ids=str)
def test_every_command_is_one_that_its_program_reads(example, experiments, monkeypatch):
    for command in commands(example.text):
        check(command, experiments, monkeypatch)


def test_every_command_within_a_sentence_is_one_that_its_program_reads(experiments, monkeypatch):
    for page in PAGES:
        for match in INLINE.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
            for command in commands(match[1]):
                check(command, experiments, monkeypatch)


def check(command: list[str], experiments: dict[str, Path], monkeypatch) -> None:
    program, arguments = command[0], command[1:]
    if program in BY_CLICK:
        check_click(BY_CLICK[program], arguments)
    if program.startswith((".ci/", "corpora/")) or program in (*BY_CLICK, "kubectl"):
        files = [program] if program.startswith(".ci/") else [word for word in arguments if word.endswith(".yaml")]
        assert [name for name in files if not (PROJECT / name).exists()] == []
        return
    if program == "sbatch":
        assert (PROJECT / arguments[0]).exists()
        check_stage(arguments[1:], experiments)
        return
    assert program in SHELL, command
    if program == "make":
        check_make(arguments, experiments)
    elif program == "python" and arguments[0] == "-m":
        check_module(arguments[1], arguments[2:], experiments, monkeypatch)
    elif program == "curl" and "-d" in arguments:
        check_body(arguments)
    elif program == "export":
        check_variables(arguments)
    elif program == "pip":
        check_extras(arguments)


def check_click(group: click.Group, words: list[str]) -> None:
    """Parse the words by click's parser of the command that the first of them name; nothing is run."""
    command: click.Command | None = group
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), name)
        assert command is not None, f"there is no command {name}"
    try:
        command.make_context(command.name, words)
    except click.ClickException as error:
        raise AssertionError(error.format_message()) from error


def check_make(arguments: list[str], experiments: dict[str, Path]) -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    for word in arguments:
        name, is_setting, value = word.partition("=")
        assert name in targets or is_setting, f"there is no target {word}"
        if name == "EXPERIMENT" and is_setting:
            assert value in experiments or (PROJECT / value).exists() or value == "..."


def check_module(module: str, arguments: list[str], experiments: dict[str, Path], monkeypatch) -> None:
    package, _, name = module.partition(".")
    if package in ("workflows", "cluster", "edlm", "tests"):
        assert importlib.util.find_spec(module), f"there is no module {module}"
    if module == "workflows.serve" and arguments[:1] == ["promote"]:
        from_flags(Promote, arguments[1:], "")
    elif module == "workflows.serve" and arguments[:1] == ["key"]:
        monkeypatch.setattr(serve, "add_key", lambda *_: "a key")
        serve.key(arguments[1:])
    elif module == "workflows.benchmark":
        from_flags(benchmark.COMMANDS[arguments[0]][0], arguments[1:], "")
    elif module == "workflows.benchmarking.english" and arguments:  # without them a sentence names the command
        monkeypatch.setattr(english, "assemble", accept)
        with pytest.raises(Read):
            english.main(arguments)
    elif module in ("workflows.convert", "workflows.import_published") and arguments:
        imported = importlib.import_module(module)
        monkeypatch.setattr(imported, module.rpartition(".")[2], accept)
        with pytest.raises(Read):
            imported.main(arguments)
    elif module == "edlm":
        from_flags(Watch, arguments, "")
    elif module == "edlm.lm_eval":
        check_harness(arguments)
    elif module == "workflows.export":
        from_flags(Export, arguments[2:], "")
    elif module == "tests.mutants":
        assert arguments == []
    elif package == "workflows" and name in STAGES:
        check_stage(arguments, experiments)
    elif module == "cluster.http.local":
        monkeypatch.setattr("sys.argv", [module, *arguments])
        monkeypatch.setattr(local.logging, "basicConfig", accept)
        with pytest.raises(Read):
            local.main()


def check_harness(arguments: list[str]) -> None:
    """Parse the words by the harness's own parser, and the model's arguments by the model's."""
    read = HarnessCLI()._parser.parse_args(["run", *arguments])
    assert read.model == "edlm"
    model_arguments(read.model_args)


def check_stage(arguments: list[str], experiments: dict[str, Path]) -> None:
    if arguments[:1] in ([], ["EXPERIMENT.yaml"]):  # the command's name alone, or a pattern
        return
    file = experiments.get(arguments[0], arguments[0])
    flags = [word for word in arguments[1:] if word != "--dry-run"]
    if flags == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            from_command_line(Experiment, [str(file), "--help"])
    else:
        from_command_line(Experiment, [str(file), *flags])


def test_every_dry_run_of_a_page_states_which_stages_would_run(experiments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDLM_HOME", str(tmp_path / "home"))
    text, mine = tmp_path / "mine.jsonl", experiments["mine.yaml"]
    text.write_text('{"body": "The first document."}\n')
    mine.write_text(mine.read_text().replace("/data/mine.jsonl", str(text)))
    dry = [words for example in examples("bash") for words in commands(example.text) if "--dry-run" in words]
    assert {words[3] for words in dry} == {"mine.yaml", "workflows/experiments/tiny.yaml"}
    for _, _, module, file, *flags in dry:
        monkeypatch.setattr(sys, "argv", [module, str(experiments.get(file, file)), *flags])
        importlib.import_module(module).main()
        assert re.search(r"^\[prepare\] runs", capsys.readouterr().out, re.MULTILINE)


def accept(*_, **__) -> None:
    raise Read


def check_body(arguments: list[str]) -> None:
    route = next(word for word in arguments if word.startswith("http")).partition(":8000")[2]
    body = arguments[arguments.index("-d") + 1]
    TypeAdapter(BODIES[route]).validate_json(body)


def check_variables(arguments: list[str]) -> None:
    """Refuse a variable that nothing reads, and a path of Python that leads nowhere."""
    for name, _, value in (word.partition("=") for word in arguments):
        assert name in VARIABLES, f"nothing reads {name}"
        if name == CALLBACK:
            pkgutil.resolve_name(value)


def check_extras(arguments: list[str]) -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [extra for word in arguments for group in re.findall(r"\[(.*?)\]", word) for extra in group.split(",")]
    assert [extra for extra in named if extra not in extras] == []


@pytest.mark.parametrize("example", examples("yaml"), ids=str)
def test_every_experiment_of_a_page_is_valid(example):
    tree = yaml.safe_load(example.text)
    if "name" in tree:
        parse(Experiment, tree, str(example))


@pytest.mark.parametrize("example", examples("json"), ids=str)
def test_every_json_example_is_json(example):
    try:
        json.loads(example.text)
    except json.JSONDecodeError:
        assert all(json.loads(line) for line in example.text.splitlines())


def test_every_link_of_the_pages_at_the_root_leads_to_a_file():
    for page in PAGES[:3]:  # the site's own links are checked as it is built
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r"\]\(([^()\s:#]+)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\":]+)\"", text)
        assert [link or image for link, image in targets if not (PROJECT / (link or image)).exists()] == []


def test_the_checks_refuse_what_is_wrong(experiments, monkeypatch):
    wrong = (
        "make everything",
        "python -m workflows.pretrane x.yaml",
        "python -m workflows.pretrain workflows/experiments/tiny.yaml --pretrain.step 5",
        "serve deploy cluster/deploy/serv.yaml",
        "ray start --haed",
        "ray job submt -- python",
        "serve status --nothing",
        "python -m workflows.benchmarking.english SOURCES",
        "python -m workflows.convert last.ckpt",
        "python -m workflows.import_published model.safetensors model",
        "python -m tests.mutants --fast",
        "python -m edlm the --step 5",
        "frobnicate",
        "python -m edlm.lm_eval --model edlm --model_args uri=x --task wikitext --nothing",
        "python -m edlm.lm_eval --model edlm --model_args uri=x,bond=nelbo --tasks wikitext",
        """curl http://127.0.0.1:8000/v1/score -d '{"text": 5}'""",
        "pip install 'edlm[nothing]'",
        "export EDLM_HOUSE=/tmp",
        f"export {CALLBACK}=cluster.serving.proxy.middleware",
    )
    for text in wrong:
        with pytest.raises((AssertionError, AttributeError, SystemExit, ValueError)):
            check(next(commands(text)), experiments, monkeypatch)


def test_pages_are_written_as_the_field_writes():
    actual = {str(page): [match[0] for match in QUAINT.finditer(page.read_text(encoding="utf-8"))] for page in PAGES}
    assert {name: words for name, words in actual.items() if words} == {}


def test_every_file_and_name_that_a_page_mentions_exists():
    missing = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for path in re.findall(r"`((?:edlm|cluster|workflows|tests|docs)/[\w/.-]+)`", text):
            if not (PROJECT / path).exists():
                missing.append((page.name, path))
        for path, test in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text):
            if f"\ndef {test}(" not in (PROJECT / path).read_text(encoding="utf-8"):
                missing.append((page.name, f"{path}::{test}"))
        for name in re.findall(r"`(edlm\.\w+(?:\.\w+)+|cluster\.(?:http|serving)(?:\.\w+)+)`", text):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                missing.append((page.name, name))
    assert missing == []
