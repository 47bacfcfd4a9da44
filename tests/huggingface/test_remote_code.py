"""Code of a network's makers runs where it is allowed in so many words, and nowhere else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.config import ConfigurationError, parse, plain
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.huggingface.causal_reading import CausalReading
from edlm.huggingface.denoiser import HuggingFaceDenoiserSource
from edlm.huggingface.remote_code import CONSENT, code_digest, written
from edlm.schedule import LogLinear
from tests.huggingface.networks import ROLES, save_tokenizer, transformers
from tests.huggingface.their_code import MIXING, L, V, opened, weights
from tests.paths import PROJECT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(theirs) -> Path:
    return theirs


def ran(marks: Path) -> list[str]:
    return sorted(path.name for path in marks.iterdir())


def saved(folder, target):
    """The model folder of the network, made as the import stage makes it."""
    network = opened(folder)
    target.mkdir()
    HuggingFaceTokenizer(uri=str(folder), separator="[SEP]").build([]).save(target)
    save_denoiser(target, network.state_dict(), network.config, LogLinear(), L, target / "tokenizer.json", {})
    return network


def log_p(network):
    xt = torch.tensor([[5, V, 7, V, V, 9]])
    return network.log_p(network.read(xt, torch.ones(1)), xt == V)


def expected():
    """log p at the masked positions, written out."""
    own = weights()
    ids = torch.tensor([[2, 5, 4, 7, 4, 4, 9, 3]])
    x = own["embedding.weight"][ids]
    x = torch.tanh((x + x.mean(dim=1, keepdim=True)) @ own["mixing.weight"].T + own["mixing.bias"])
    logits = (x @ own["head.weight"].T + own["head.bias"])[0, [2, 4, 5]]
    logits[:, [0, 1, 2, 4]] = -torch.inf
    return logits.log_softmax(-1)


def test_without_the_setting_the_code_is_not_run_and_the_setting_is_named(folder, marks):
    with pytest.raises(ConfigurationError, match="with trust_remote_code: true, of its makers' code, which"):
        opened(folder, trust_remote_code=False)
    assert ran(marks) == []


def test_with_the_setting_the_network_has_the_values_of_its_makers_code(folder, marks):
    network = opened(folder)
    torch.testing.assert_close(log_p(network), expected())
    assert {*network.config.code} == {"modeling_theirs.py", "mixing.py"}
    assert "theirs" in ran(marks)


def test_a_saved_network_opens_without_the_original_by_consent_to_its_code_alone(folder, marks, tmp_path, monkeypatch):
    network = saved(folder, tmp_path / "ours")
    shutil.rmtree(folder)
    before, digest = log_p(network), code_digest(network.config.code)
    assert os.environ[CONSENT] == digest  # of the process that has opened the original by the setting
    for path in marks.iterdir():
        path.unlink()
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    for consented in ("", "true", "0" * 64):
        monkeypatch.setenv(CONSENT, consented)
        with pytest.raises(ConfigurationError, match=rf"mixing\.py, modeling_theirs\.py, SHA-256 {digest}.*{CONSENT}="):
            open_denoiser(tmp_path / "ours")
    assert ran(marks) == []
    monkeypatch.setenv(CONSENT, f"{'0' * 64},{digest}")
    assert torch.equal(log_p(open_denoiser(tmp_path / "ours").network), before)
    assert len(ran(marks)) == 1


def test_another_process_needs_consent_of_its_own(folder, tmp_path):
    network = saved(folder, tmp_path / "ours")
    ours = str(tmp_path / "ours")
    program = (
        "import os, pathlib, sys\n"
        "from edlm.checkpoints.networks import open_denoiser\n"
        "from edlm.config import ConfigurationError\n"
        f"ours = pathlib.Path({ours!r})\n"
        "try: open_denoiser(ours)\n"
        "except ConfigurationError as error: print(error)\n"
        "else: sys.exit('it was opened without consent')\n"
        f"os.environ[{CONSENT!r}] = {code_digest(network.config.code)!r}\n"
        "open_denoiser(ours)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(PROJECT), CONSENT: ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the network needs code of its makers" in done.stdout


def test_changed_code_is_other_code(folder, tmp_path):
    saved(folder, tmp_path / "ours")
    digest = code_digest({"a.py": "x = 1\n"})
    assert digest != code_digest({"a.py": "x = 2\n"})
    assert digest != code_digest({"b.py": "x = 1\n"})
    before = HuggingFaceDenoiserSource(folder=str(folder), trust_remote_code=True).version()
    (folder / "mixing.py").write_text(MIXING + "\n", encoding="utf-8")
    assert HuggingFaceDenoiserSource(folder=str(folder), trust_remote_code=True).version() != before


def test_the_card_of_a_model_shows_the_code_line_by_line(folder, tmp_path):
    saved(folder, tmp_path / "ours")
    card = (tmp_path / "ours" / "model.yaml").read_text(encoding="utf-8").splitlines()
    code = MIXING.splitlines()
    start = [line.strip() for line in card].index(code[0])
    indent = len(card[start]) - len(code[0])
    assert [line[indent:] for line in card[start : start + len(code)]] == code


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_is_refused_before_anything_runs(folder, marks, file):
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = {**settings.get("auto_map", {}), "AutoTokenizer": ["else/where--code.Tokenizer", None]}
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ConfigurationError, match=rf"{file} takes AutoTokenizer from .* another repository, else/where"):
        opened(folder)
    assert ran(marks) == []


def test_classes_of_a_model_folder_come_from_its_own_code_alone(folder):
    network = opened(folder)
    changed = plain(network.config)
    changed["architecture"]["auto_map"]["AutoConfig"] = "else/where--code.Config"
    with pytest.raises(ConfigurationError, match="another repository, else/where"):
        parse(type(network.config), changed).build(V)


def test_code_that_does_not_name_its_embedding_is_refused_with_the_method_to_add(folder):
    source = (folder / "modeling_theirs.py").read_text()
    (folder / "modeling_theirs.py").write_text(source.replace("def get_input_embeddings", "def other"))
    with pytest.raises(ConfigurationError, match=r"TheirModel.* add the method get_input_embeddings"):
        opened(folder)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7], COMMIT.upper()])
def test_code_on_the_hub_needs_a_whole_commit(revision):
    with pytest.raises(ValueError, match=r"trust_remote_code: the code on the hub may change .*40 hexadecimal digits"):
        HuggingFaceDenoiserSource(name="a/b", revision=revision, trust_remote_code=True)
    assert HuggingFaceDenoiserSource(name="a/b", revision=COMMIT, trust_remote_code=True).trust_remote_code


def test_a_network_of_the_library_needs_no_consent(tmp_path, monkeypatch):
    monkeypatch.setenv(CONSENT, "")
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert opened(tmp_path).config.code == {}
    assert os.environ[CONSENT] == ""


def test_code_that_does_not_name_its_embedding_is_refused_before_it_is_given_a_new_mask(folder):
    source = (folder / "modeling_theirs.py").read_text()
    (folder / "modeling_theirs.py").write_text(source.replace("def get_input_embeddings", "def other"))
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"]["AutoModelForCausalLM"] = settings["auto_map"].pop("AutoModelForMaskedLM")
    (folder / "config.json").write_text(json.dumps(settings))
    save_tokenizer(folder, **{role: token for role, token in ROLES.items() if role != "mask_token"})
    with pytest.raises(ConfigurationError, match=r"TheirModel.* add the method get_input_embeddings"):
        opened(folder, causal=CausalReading(shift=0, new_mask=True))


@pytest.mark.parametrize("name", ["{above}/their.py", "../../their.py", "sub/their.py", "their.txt", ".py", "a.b.py"])
def test_code_is_written_into_files_of_modules_alone(tmp_path, name):
    name = name.format(above=tmp_path)
    with pytest.raises(ConfigurationError, match=r"code lies in files MODULE\.py"), written({name: "x = 1\n"}, {}):
        pytest.fail("it is written")
    assert not (tmp_path / "their.py").exists()


@pytest.mark.parametrize(
    ("own", "broken", "error"),
    [
        ("import os\n", "import os\nfrom transformers import Removed\n", "ImportError"),
        ("class TheirConfig(PretrainedConfig)", "class TheirConfig(Removed)", "NameError"),
        ("self.post_init()", "self.removed()", "AttributeError"),
        ("class TheirModel(PreTrainedModel):", "class TheirModel(PreTrainedModel:", "SyntaxError"),
        ("torch.tanh(", "torch.removed(", "AttributeError"),
    ],
    ids=["import", "configuration", "construction", "syntax", "forward pass"],
)
def test_code_that_fails_is_reported_with_the_version_of_the_library(folder, own, broken, error):
    modeling = (folder / "modeling_theirs.py").read_text()
    assert own in modeling
    (folder / "modeling_theirs.py").write_text(modeling.replace(own, broken))
    fails = rf"makers' code fails under transformers {re.escape(transformers.__version__)}: {error}: .*correct it"
    with pytest.raises(ConfigurationError, match=fails):
        opened(folder)
