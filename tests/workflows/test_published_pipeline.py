"""Imported checkpoints in place of trained models, as a user runs it: a step energy is trained on them and served."""

import re
import socket

import pytest
import yaml
from safetensors.torch import save_file

import edlm
from edlm.data.tokenizer_kinds import Characters
from edlm.local_copies import local_copy
from tests.published.checkpoints import published
from tests.workflows.commands import run
from workflows.import_published import main as import_command

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.timeout(900)]

TOKENS, LENGTH = Characters().build([]).size, 16


def test_a_step_energy_is_trained_on_an_imported_denoiser_measured_and_served_beside_imported_energies(
    tmp_path, monkeypatch
):
    home, models = tmp_path / "home", {name: str(tmp_path / name) for name in ("denoiser", "autoregressive", "energy")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    experiment = {
        "name": "published",
        "data": {
            "corpus": {"kind": "embedded"},
            "tokenizer": {"kind": "characters"},
            "length": LENGTH,
            "shares": {"validation": 0.1},
        },
        "given": {
            "denoiser": models["denoiser"],
            "autoregressive": models["autoregressive"],
            "energies": {"nce": models["energy"]},
        },
        "finetune": [
            {
                "name": "step",
                "energy": {"kind": "step", "block": 8, "width": 16, "layers": 1, "heads": 2},
                "training": {"steps": 3, "batch": 8},
            },
            {"name": "nce", "energy": {"kind": "edlm_nce"}},
            {"name": "coar", "energy": {"kind": "coar"}},
        ],
        "evaluate": {
            "sequences": 4, "steps": [1, 2], "candidates": [1, 2], "nelbo_draws": 2, "paper_draws": 2,
            "log_partition_draws": [2], "timed_texts": 2, "timed_steps": [2],
        },
        "register": {"model": "published", "energy": "step", "sampler": {"steps": 4, "candidates": 2}},
        "serving": {"port": port, "max_replicas": 1},
    }  # fmt: skip
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(experiment))
    prepared = re.search(r"^\[prepare\] finished in \d+ s: (\S+)", run(home, "prepare", experiment=path), re.MULTILINE)
    assert prepared is not None
    tokenizer = str(local_copy(prepared[1]) / "tokenizer.json")
    for name, more in (
        ("denoiser", ["--length", f"{LENGTH}", "--no-time_conditioning"]),
        ("autoregressive", ["--length", f"{LENGTH}", "--bos", "0"]),
        ("energy", ["--denoiser", models["denoiser"], "--no-time_conditioning"]),
    ):
        save_file(published(name, layers=1, tokens=TOKENS), tmp_path / f"{name}.safetensors")
        import_command([str(tmp_path / f"{name}.safetensors"), models[name], "--tokenizer", tokenizer, *more])
    output = run(home, "pipeline", experiment=path)
    for stage in ("pretrain", "autoregress", "finetune-nce"):
        assert f"[{stage}] given: " in output
    assert set(re.findall(r"^\[([\w-]+)\] started", output, re.MULTILINE)) == {
        "finetune-step", "finetune-coar", "evaluate", "register",
    }  # fmt: skip
    assert re.search(r"the endpoint answered: 'the ", output), output
    monkeypatch.setenv("EDLM_HOME", str(home))
    model = edlm.load("published@champion")
    assert set(model.energies) == {"step", "nce", "coar"}
    for energy in model.energies:
        texts = model.generate("the ", n=2, max_tokens=LENGTH, energy=energy, candidates=2, seed=1)
        assert len({text.text for text in texts}) == 2
