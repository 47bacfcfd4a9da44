"""Networks are opened whole, from safetensors, without code of their makers, or refused at once with the way out."""

import json
import os
import sys

import httpx
import pytest
from huggingface_hub import errors

from edlm.config import ConfigurationError
from edlm.huggingface.remote_code import CONSENT, code_digest
from edlm.huggingface.source import HuggingFaceSource
from edlm.storage import StorageError
from tests.huggingface.networks import WORDS, save_network, transformers

AUTO_CLASS = "AutoModelForMaskedLM"


@pytest.fixture
def folder(tmp_path):
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**size, intermediate_size=16)
    return save_network(tmp_path / "bert", transformers.BertForMaskedLM(config))


def test_a_network_is_a_name_or_a_folder():
    for settings in ({}, {"name": "a/b", "folder": "/c"}):
        with pytest.raises(ValueError, match="either a `name` on the hub or a `folder`"):
            HuggingFaceSource(**settings)
    with pytest.raises(ValueError, match="revision 'main' is of a `name`"):
        HuggingFaceSource(folder="/c", revision="main")


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"but pytorch_model\.bin, which would run.*workflows\.convert"):
        HuggingFaceSource(folder=str(folder)).opened(AUTO_CLASS)


def test_code_of_the_makers_is_not_run(folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", AUTO_CLASS: "code.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigurationError, match="its makers' code, which is not run otherwise"):
        HuggingFaceSource(folder=str(folder)).opened(AUTO_CLASS)
    assert not (tmp_path / "ran").exists()


def test_adapters_beside_a_network_are_refused_before_they_are_read(folder):
    """The library would apply them, also pickled ones, and fetch the network that they name."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    (folder / "adapter_model.bin").write_bytes(b"pickled")
    with pytest.raises(ConfigurationError, match=r"holds adapters of peft \(adapter_config\.json\).*merge them first"):
        HuggingFaceSource(folder=str(folder)).opened(AUTO_CLASS)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere is no folder of a network: it has no config\.json"):
        HuggingFaceSource(folder=str(tmp_path / "nowhere")).opened(AUTO_CLASS)
    with pytest.raises(ConfigurationError, match="nowhere is no folder of a network"):
        HuggingFaceSource(folder=str(tmp_path / "nowhere")).version()


def test_without_the_library_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r'run pip install "\.\[hf\]"'):
        HuggingFaceSource(folder=str(folder)).opened(AUTO_CLASS)


def test_a_hub_that_does_not_answer_is_said_at_once(monkeypatch):
    """No port of this machine answers there; the library by itself would try again for minutes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    opened = []
    monkeypatch.setattr(transformers.AutoModelForMaskedLM, "from_pretrained", lambda *_, **__: opened.append(1))
    with pytest.raises(StorageError, match=r"'nothing/here'.*hub at http://127\.0\.0\.1:9 does not answer"):
        HuggingFaceSource(name="nothing/here").opened(AUTO_CLASS)
    assert not opened


def test_a_name_that_is_a_path_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ConfigurationError, match="name 'bert' is a path here; set `folder`"):
        HuggingFaceSource(name="bert").opened(AUTO_CLASS)


def test_the_version_changes_with_any_file_that_determines_the_network(folder):
    before = HuggingFaceSource(folder=str(folder)).version()
    (folder / "README.md").write_text("words")
    assert HuggingFaceSource(folder=str(folder)).version() == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert HuggingFaceSource(folder=str(folder)).version() != before
    assert HuggingFaceSource(name="a/b", revision="c0ffee").version() == "a/b@c0ffee"


CODE = ("modeling_theirs.py", "mixing.py")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_THE_HUB = HuggingFaceSource(name="a/b", revision=COMMIT, trust_remote_code=True)


def read(folder):
    return {name: (folder / name).read_text(encoding="utf-8") for name in CODE}


def test_only_the_setting_gives_consent_and_to_the_code_of_the_network_alone(theirs):
    HuggingFaceSource(folder=str(theirs)).allow_code()
    assert os.environ[CONSENT] == ""
    HuggingFaceSource(folder=str(theirs), trust_remote_code=True).allow_code()
    assert os.environ[CONSENT] == code_digest(read(theirs))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("modeling_theirs.py", None, r"names a class of modeling_theirs\.py, which is not there"),
        ("mixing.py", None, r"modeling_theirs\.py imports mixing\.py, directly or not, which is not there"),
        ("mixing.py", b"# \xff", r"modeling_theirs\.py, or what it imports, is not UTF-8"),
        ("mixing.py", b"from .sub.part import x", r"imports sub\.part\.py, directly or not, which is not there"),
        ("config.json", b'{"auto_map": ', r"config\.json is damaged .*; restore a good copy"),
        ("config.json", b"[]", r"config\.json holds no mapping of settings"),
        ("config.json", b'{"auto_map": "a.B"}', r"auto_map of config\.json is no mapping of class names: 'a\.B'"),
        ("config.json", b'{"auto_map": {"AutoConfig": 5}}', r"takes AutoConfig from '5'; it must be MODULE\.CLASS"),
        ("tokenizer_config.json", b'{"auto_map": ["../t.T", null]}', r"AutoTokenizer from '\.\./t\.T'; it must be"),
    ],
)
def test_code_that_is_incomplete_or_damaged_is_refused_with_the_file(theirs, name, content, problem):
    if content is None:
        (theirs / name).unlink()
    else:
        (theirs / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem):
        HuggingFaceSource(folder=str(theirs), trust_remote_code=True).allow_code()
    assert os.environ[CONSENT] == ""


def test_code_of_the_hub_has_consent_at_the_commit_that_was_read(theirs, monkeypatch):
    """The hub's library is replaced: the hub is not reachable in tests."""
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(theirs / "config.json"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(theirs))
    own = (theirs / "config.json").read_text()
    (theirs / "config.json").write_text(own.replace("modeling_theirs.TheirModel", "a/b--modeling_theirs.TheirModel"))
    ON_THE_HUB.allow_code()
    assert os.environ[CONSENT] == code_digest(read(theirs))
    patterns = ["*.py", "config.json", "tokenizer_config.json"]
    assert asked == [(("a/b",), {"revision": COMMIT, "allow_patterns": patterns})]


@pytest.mark.parametrize(
    ("error", "expected", "problem"),
    [
        (errors.RepositoryNotFoundError, ConfigurationError, "RepositoryNotFoundError: .*check name, revision and"),
        (errors.RevisionNotFoundError, ConfigurationError, "RevisionNotFoundError: .*check name, revision and"),
        (errors.LocalEntryNotFoundError, StorageError, "the network 'a/b': "),
    ],
)
def test_code_that_the_hub_does_not_give_is_reported_with_what_to_check(monkeypatch, error, expected, problem):
    def fails(*_, **__):
        answer = httpx.Response(404, request=httpx.Request("GET", "http://127.0.0.1:9"))
        raise error("no") if error is errors.LocalEntryNotFoundError else error("no", response=answer)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "config.json")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(expected, match=problem):
        ON_THE_HUB.allow_code()


def test_a_name_that_no_repository_can_have_is_refused():
    with pytest.raises(ConfigurationError, match="name 'a/b/c' is no repository's name on the hub"):
        HuggingFaceSource(name="a/b/c").opened(AUTO_CLASS)
