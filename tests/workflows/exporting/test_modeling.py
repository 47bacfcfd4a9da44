"""The exported model, opened by transformers alone, has the numbers and the texts of ours."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edlm
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import draw_candidates
from tests.exports import ENERGIES, LENGTH, exported, make_full_bundle, make_timed_bundle, opened, own_modules
from tests.test_docs_python import ON_AN_EXPORTED_MODEL, marked
from workflows.exporting.repository import PACKAGES

SETTINGS = [
    {},
    {"candidates": 1, "steps": 7},
    {"steps": 3, "window": (0.0, 0.5), "energy_temperature": 0.7},
    *({"candidates": 3, "steps": 3, "energy": name} for name in ENERGIES),
    {"candidates": 0, "steps": 3, "energy": "conditional"},
    {"candidates": 0, "steps": 3, "energy": "coar"},
]


@pytest.fixture(scope="module", params=[make_full_bundle, make_timed_bundle], ids=["plain", "timed"])
def both(request, tmp_path_factory):
    """Our model, and what transformers opens."""
    folder = tmp_path_factory.mktemp("modeling")
    bundle = request.param(folder)
    with own_modules(folder / "modules"):
        yield (edlm.load(bundle), *opened(exported(bundle, folder / "repository")), folder / "repository")


def noisy(vocabulary: int, rows: int = 3) -> torch.Tensor:
    tokens = (uniforms(5, 0, 0, Purpose.ROWS, (rows, LENGTH)) * vocabulary).long()
    return torch.where(uniforms(5, 0, 0, Purpose.MASK, (rows, LENGTH)) < 0.5, vocabulary, tokens)


def test_logits_are_ours(both):
    ours, theirs, _, _ = both
    network = ours.generator.denoiser.network
    xt, t = noisy(network.vocabulary), torch.tensor([0.9, 0.5, 0.1])
    expected = network.log_p(network.read(xt, t), torch.ones_like(xt, dtype=torch.bool)).view(*xt.shape, -1)
    actual = theirs(xt, attention_mask=torch.ones_like(xt), timesteps=t).logits.log_softmax(dim=-1)
    assert expected.std() > 0.1
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("name", ENERGIES)
def test_energies_are_ours(both, name):
    ours, theirs, _, _ = both
    generator, energy = ours.generator, ours.generator.energies[name]
    network = generator.denoiser.network
    xt, t = noisy(network.vocabulary), torch.tensor([0.9, 0.5, 0.1])
    masked = xt == network.mask
    where = masked if energy.whole_sequence else masked & (torch.arange(LENGTH) % 3 != 0)
    context, u = network.read(xt, t), uniforms(1, 0, 0, Purpose.CANDIDATE, (3, 4, LENGTH))
    x, log_p = draw_candidates(network, energy, context, xt, where, u)
    expected = energy(x, xt, t, log_p, context)
    assert expected.std() > 0.01
    assert torch.allclose(theirs.energy(name, x, xt, t).float(), expected.float(), atol=1e-4)


def test_an_energy_with_time_conditioning_asks_for_the_times(both):
    _, theirs, _, _ = both
    xt = noisy(theirs.config.vocab_size)
    x = xt.clamp(max=theirs.config.vocab_size - 1)[:, None]
    with pytest.raises(ValueError, match="energy 'edlm_nce' is conditioned on the diffusion time: give `timesteps`"):
        theirs.energy("edlm_nce", x, xt)
    if not theirs.config.denoiser["time_conditioning"]:
        assert theirs.energy("nce", x, xt).isfinite().all()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_texts_are_ours(both, settings):
    """Over several canvases, which each text continues, or ends, on its own."""
    ours, theirs, tokenizer, _ = both
    expected = [text.text for text in ours.generate("the ", n=5, max_tokens=40, seed=3, **settings)]
    assert theirs.generate("the ", tokenizer=tokenizer, n=5, max_tokens=40, seed=3, **settings) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("prompt", ["", "a prompt that is longer than one canvas of the model"])
def test_prompts_of_any_length_are_continued_alike(both, prompt):
    ours, theirs, tokenizer, _ = both
    expected = [text.text for text in ours.generate(prompt, n=2, max_tokens=9, seed=-1)]
    assert theirs.generate(prompt, tokenizer=tokenizer, n=2, max_tokens=9, seed=-1) == expected


def test_stop_strings_end_texts_alike(both):
    ours, theirs, tokenizer, _ = both
    whole = ours.generate("the ", n=3, max_tokens=20, seed=3)
    stop = [text.text[4:5] for text in whole if len(text.text) > 4]
    expected = [text.text for text in ours.generate("the ", n=3, max_tokens=20, seed=3, stop=stop)]
    assert expected != [text.text for text in whole]
    assert theirs.generate("the ", tokenizer=tokenizer, n=3, max_tokens=20, seed=3, stop=stop) == expected


def test_gaps_are_filled_alike(both):
    ours, theirs, _, _ = both
    known = [5, None, None, 6, None, 7, None]
    expected = [list(text.tokens) for text in ours.infill(tokens=known, n=2, seed=3)]
    assert theirs.generate_tokens(known, None, [3, 4]) == expected


def test_more_texts_than_fit_one_pass_are_the_same(both):
    ours, theirs, tokenizer, _ = both
    expected = [text.text for text in ours.generate("the ", n=18, max_tokens=5, seed=3)]
    assert theirs.generate("the ", tokenizer=tokenizer, n=18, max_tokens=5, seed=3) == expected


def test_what_the_model_cannot_take_is_refused(both):
    _, theirs, tokenizer, _ = both
    for settings, message in [
        ({"energy": "other"}, "it has: ar, blocks"),
        ({"candidates": 0, "energy": "step"}, "not normalised"),
        ({"candidates": -1}, "candidates at least 0"),
        ({"steps": 0}, "steps is at least 1"),
        ({"max_tokens": 0}, "at least 1 is written"),
    ]:
        with pytest.raises(ValueError, match=message):
            theirs.generate("a", tokenizer=tokenizer, seed=1, **settings)
    with pytest.raises(ValueError, match="no gaps"):
        theirs.generate_tokens([1, None], 3, [1])
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        theirs.generate_tokens([theirs.config.mask_id], 3, [1])
    with pytest.raises(ValueError, match="do not fit the canvas"):
        theirs.generate_tokens([None] * (LENGTH + 1), None, [1])
    xt = noisy(theirs.config.vocab_size)
    with pytest.raises(ValueError, match="no padding"):
        theirs(xt, attention_mask=torch.zeros_like(xt))
    if theirs.config.denoiser["time_conditioning"]:
        with pytest.raises(ValueError, match="give `timesteps`"):
            theirs(xt)


def test_logits_that_are_not_numbers_are_an_error_with_the_seed(both):
    _, theirs, tokenizer, _ = both
    bias = theirs.denoiser.readout.bias
    kept = bias.detach().clone()
    try:
        with torch.no_grad():
            bias[0] = torch.nan
        with pytest.raises(FloatingPointError, match=r"seeds \[7\]"):
            theirs.generate("a", tokenizer=tokenizer, seed=7)
    finally:
        with torch.no_grad():
            bias.copy_(kept)


def test_the_modelling_file_imports_nothing_but_torch_and_transformers(both):
    source = ast.parse((both[3] / "modeling_edlm.py").read_text())
    modules = [
        name.partition(".")[0]
        for node in ast.walk(source)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    ]
    assert set(modules) - sys.stdlib_module_names - {"__future__"} == PACKAGES


def card_example(repository: Path) -> str:
    return (repository / "README.md").read_text().split("```python\n")[1].split("```")[0]


def test_the_example_of_the_card_runs(both, monkeypatch, capsys):
    ours, _, _, repository = both
    monkeypatch.chdir(repository)
    exec(compile(card_example(repository), "the example", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0] == str([ours.generate("the ", max_tokens=40, seed=1).text])


@pytest.mark.parametrize("both", [make_full_bundle], indirect=True, ids=["plain"])
def test_the_example_of_the_card_runs_without_this_project(both, tmp_path):
    ours, _, _, repository = both
    blocked = "import sys\nfor name in ('edlm', 'workflows', 'jaxtyping', 'mlflow'): sys.modules[name] = None\n"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", blocked + card_example(repository)],
        cwd=repository, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str([ours.generate("the ", max_tokens=40, seed=1).text])


@pytest.mark.parametrize("text", marked(ON_AN_EXPORTED_MODEL))
def test_the_examples_of_the_pages_run_on_an_exported_model(both, text, tmp_path, monkeypatch, capsys):
    ours, _, _, repository = both
    (tmp_path / "build").mkdir()
    (tmp_path / "build/edlm-tiny").symlink_to(repository)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "an example", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0] == str([ours.generate("the ", max_tokens=40, seed=1).text])
