"""`import edlm` offers a few names, loads nothing until one is used, and says what is missing."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest
import torch

import edlm
from tests.paths import PROJECT

HEAVY = "{'torch', 'numpy', 'ray', 'httpx', 'pydantic'}"


def run(code: str) -> str:
    environment = {"PYTHONPATH": str(PROJECT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_edlm_loads_nothing():
    assert run(f"import sys, edlm; dir(edlm); print({HEAVY} & set(sys.modules))") == "set()"


def test_the_client_loads_no_torch():
    assert run("import sys, edlm; edlm.Client; print({'torch', 'numpy', 'ray'} & set(sys.modules))") == "set()"


def test_every_public_name_is_there_and_listed():
    for name in edlm.__all__:
        assert getattr(edlm, name).__name__ == name
    assert set(edlm.__all__) <= set(dir(edlm))


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PROJECT / "edlm" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == edlm._HOME
    assert sorted(seen) == edlm.__all__


def test_an_unknown_name_states_what_there_is():
    with pytest.raises(AttributeError, match=r"module 'edlm' has no attribute 'lod'; it offers .*load"):
        _ = edlm.lod


@pytest.mark.parametrize("name", ["load", "nelbo"])
def test_without_torch_the_extra_is_named(name):
    code = f"""
import sys
sys.modules["torch"] = None
import edlm
assert not hasattr(edlm, "{name}")
assert getattr(edlm, "{name}", 7) == 7
try:
    edlm.{name}
except AttributeError as error:
    print(error)
    assert isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == "torch"
try:
    from edlm import {name}
except ImportError as error:
    print(error.name)
"""
    remedy = 'in a checkout of the project, run pip install ".[models]"'
    assert run(code).splitlines() == [f"edlm.{name} needs torch, which is not installed: {remedy}", "edlm"]


def test_a_module_of_edlm_that_is_missing_is_an_error_of_its_own():
    code = """
import sys
sys.modules["edlm.schedule"] = None
import edlm
try:
    hasattr(edlm, "LogLinear")
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(code) == "edlm.schedule"


# What others import, and from where: these places stay.
PROMISED = {
    "edlm.sampler": {"Sampler": ["steps", "candidates", "window", "energy_temperature"]},
    "edlm.schedule": {"LogLinear": [], "Cosine": [], "Polynomial": None},
    "edlm.likelihood": {
        "Estimate": None,
        "nelbo": ["x0", "denoiser", "schedule", "seed", "draws"],
        "sampler_bound": ["x0", "denoiser", "energy", "schedule", "sampler", "seed", "draws", "repeats"],
        "exact_order_nll": ["x0", "denoiser", "energy", "schedule", "sampler", "known"],
        "paper_estimate": ["x0", "denoiser", "energy", "schedule", "seed", "draws", "log_partition_draws"],
    },
    "edlm.models.denoiser": {"Denoiser": None, "Denoiser.read": ["self", "xt", "t"]},
    "edlm.interfaces": {"AbstractEnergy": None, "Model": ["denoiser", "energy", "schedule"]},
    "edlm.sampling.sampler": {"Sampler.sample": ["self", "xt", "denoiser", "energy", "schedule", "seeds", "on_step"]},
    "edlm.energies.step": {"StepEnergy": None, "StepEnergyConfig": None},
    "edlm.energies.conditional": {"ConditionalEnergy": None, "ConditionalEnergyConfig": None},
    "edlm.energies.residual": {"ResidualEnergy": None, "ResidualEnergyConfig": None},
    "edlm.energies.whole_sequence": {
        "AutoregressiveEnergy": None,
        "BidirectionalEnergy": None,
        "CarryOverEnergy": None,
    },
    "edlm.inference.generator": {"TextGenerator": None, "TextGenerator.load": None},
    "edlm.training.local_engine": {"LocalEngine": None},
    "edlm.training.loop": {"fit": None},
    "edlm.config": {"load": None, "dump": None, "from_command_line": None},
    "edlm": {"load": None, "train": None, "Client": None, "TextGenerator": None, "Sampler": None},
}


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [(module, name, arguments) for module, names in PROMISED.items() for name, arguments in names.items()],
)
def test_what_others_import_is_where_it_was_promised_with_the_arguments_in_this_order(module, name, arguments):
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    if arguments is not None:
        assert list(inspect.signature(found).parameters)[: len(arguments)] == arguments


def test_an_estimate_has_its_mean_standard_error_and_draws():
    estimate = edlm.Estimate(torch.tensor([1.0, 3.0], dtype=torch.float64), 5)
    assert (estimate.mean, estimate.standard_error, estimate.draws) == (2.0, 1.0, 5)
