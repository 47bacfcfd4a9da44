"""Repositories are whole, refuse what transformers cannot hold, and come back bit for bit."""

import filecmp
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import edlm
from edlm.checkpoints import weight_files
from edlm.config import ConfigurationError, replaced
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters, Symbols
from edlm.inference.generator import TextGenerator, save_bundle
from edlm.sampling.unmasking import MostCertain
from tests.bundles import make_bundle, make_plain_bundle
from tests.chats import CHATML, make_chat_bundle
from tests.exports import exported, make_full_bundle, opened, own_modules
from workflows.export import Export, export
from workflows.export import main as export_command
from workflows.exporting.model_card import model_card
from workflows.exporting.repository import whole, write_repository, write_tokenizer
from workflows.import_export import import_export
from workflows.import_export import main as import_command

SHARD = 20_000  # bytes; the models of these tests have more


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_full_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def repository(bundle, tmp_path_factory) -> Path:
    return exported(bundle, tmp_path_factory.mktemp("export") / "repository", shard_bytes=SHARD)


@pytest.fixture
def copy(repository, tmp_path) -> Path:
    return shutil.copytree(repository, tmp_path / "copy")


def same(first: Path, second: Path) -> bool:
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    return filecmp.cmpfiles(first, second, map(str, names), shallow=False)[1:] == ([], [])


def test_import_returns_the_bundle_bit_for_bit(bundle, repository, tmp_path):
    import_export(repository, tmp_path / "back")
    assert same(bundle, tmp_path / "back")
    assert edlm.load(tmp_path / "back").generate("the ", seed=1).text == edlm.load(bundle).generate("the ", seed=1).text


def test_a_bundle_in_shards_is_exported_and_imported_as_one_in_whole_files(tmp_path, monkeypatch):
    whole_files = make_plain_bundle(tmp_path / "whole")
    monkeypatch.setattr(weight_files, "SHARD_BYTES", SHARD // 4)
    bundle = make_plain_bundle(tmp_path / "sharded")
    assert len([*bundle.glob("denoiser/weights-*.safetensors")]) > 2
    monkeypatch.undo()  # the index, not the limit of today, says in which file a weight was
    repository = exported(bundle, tmp_path / "repository")
    expected = load_file(exported(whole_files, tmp_path / "expected") / "model.safetensors")
    actual = load_file(repository / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())
    import_export(repository, tmp_path / "back")
    assert same(bundle, tmp_path / "back")
    assert edlm.load(tmp_path / "back").generate("a", seed=1).text == edlm.load(whole_files).generate("a", seed=1).text


def test_large_models_are_in_several_files_that_transformers_reads(bundle, repository, tmp_path):
    index = json.loads((repository / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    with own_modules(tmp_path):
        theirs, tokenizer = opened(repository)
    ours = edlm.load(bundle).generate("the ", seed=5, max_tokens=20).text
    assert theirs.generate("the ", tokenizer=tokenizer, seed=5, max_tokens=20) == [ours]


def test_a_model_without_energies_is_plain_diffusion_there_too(tmp_path):
    folder = make_plain_bundle(tmp_path)
    repository = exported(folder, tmp_path / "repository")
    with own_modules(tmp_path / "modules"):
        theirs, tokenizer = opened(repository)
    assert theirs.generate("a", tokenizer=tokenizer, seed=5) == [edlm.load(folder).generate("a", seed=5).text]
    with pytest.raises(ValueError, match="has no energy to choose with"):
        theirs.generate("a", tokenizer=tokenizer, seed=5, candidates=2)


def test_the_card_says_what_was_registered_and_measured(repository, tmp_path, bundle):
    card = (repository / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n")
    assert "steps=4, candidates=3, energy='blocks'" in card
    assert "No bounds were measured" in card
    assert "license: mit" in (exported(bundle, tmp_path / "mit", license="mit") / "README.md").read_text()


@pytest.mark.parametrize(
    ("separator", "start"),
    [("<|im_end|>", ""), ("<|endoftext|>", "\n{{ bos_token }}"), ("<|endoftext|>", "  ")],
)
def test_a_model_of_conversations_is_exported_with_its_chat_template(tmp_path, separator, start, capsys):
    folder = make_chat_bundle(tmp_path, separator, chat_template=start + CHATML, bos_token="<|endoftext|>")
    ours, repository = edlm.load(folder), tmp_path / "repository"
    generator = ours.generator
    assert generator.denoiser.chat is not None
    repository.mkdir()
    write_repository(repository, generator, SHARD)
    with own_modules(tmp_path / "modules"):
        model, tokenizer = opened(repository)
    for texts in (["hello é"], [" two\n", "four", "sure?"]):
        turns = list(zip(itertools.cycle(["user", "assistant"]), texts, strict=False))
        expected = generator.denoiser.chat.prompt(generator.tokenizer, turns).tolist()
        messages = [{"role": role, "content": text} for role, text in turns]
        theirs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, tokenizer_kwargs={"split_special_tokens": False}
        )
        assert theirs == expected
    example = model_card(generator, "mit", []).split("## Conversations")[1].split("```python\n")[1].split("```")[0]
    names = {"model": model, "tokenizer": tokenizer}
    exec(compile(example, "an example", "exec"), names)
    assert names["prompt"] == [*ours.conversation([{"role": "user", "content": "hello"}])]
    assert capsys.readouterr().out == ours.generate(names["prompt"], max_tokens=40, seed=1).text + "\n"


def test_a_model_of_no_conversations_is_exported_without_a_chat_template(repository):
    assert not (repository / "chat_template.jinja").exists()
    assert "## Conversations" not in (repository / "README.md").read_text()


@pytest.mark.parametrize("tokenizer", [Characters(), Bytes(), BPE(size=270), Symbols(size=7)], ids=lambda one: one.kind)
def test_the_tokenizer_is_read_alike_by_transformers(tokenizer, tmp_path):
    built = tokenizer.build(["the value of the thing and the theory of then"] * 9)
    write_tokenizer(tmp_path, built)
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "abcab" if tokenizer.kind == "symbols" else "the value <|endoftext|> of"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == built.encode(text).tolist()
    assert theirs.decode(ids) == built.decode(ids)
    if built.separator is not None:
        assert theirs.eos_token_id == built.separator


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(tmp_path):
    """It opens none that its own added token shifts: an id that is missing is given to the next special token."""
    built = Characters().build([])
    write_tokenizer(tmp_path, built)
    other = tmp_path / "other"
    other.mkdir()
    built.size += 1
    with pytest.raises(ConfigurationError, match="transformers cannot hold this tokenizer: it has 27 tokens there"):
        write_tokenizer(other, built)


def test_a_sampler_in_another_order_is_refused(bundle, tmp_path):
    generator: TextGenerator = edlm.load(bundle).generator
    sampler = replaced(generator.bundle.sampler, "test", unmasking=MostCertain())
    save_bundle(
        tmp_path / "other", replaced(generator.bundle, "test", sampler=sampler), bundle / "denoiser", energies(bundle)
    )
    with pytest.raises(ValueError, match="texts unmask at_random"):
        export(tmp_path / "other", tmp_path / "repository", Export())
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def energies(bundle: Path) -> dict[str, Path]:
    return {path.name: path for path in (bundle / "energies").iterdir()}


def test_an_unknown_model_is_an_error_and_leaves_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        export_command([str(tmp_path / "nowhere"), str(tmp_path / "repository")])
    assert status.value.code == 1
    assert "error: nothing was exported: there is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_target_with_files_is_refused_and_kept(bundle, repository, tmp_path):
    (tmp_path / "mine").write_text("kept")
    for write in (lambda: export(bundle, tmp_path, Export()), lambda: import_export(repository, tmp_path)):
        with pytest.raises(ConfigurationError, match="is not empty"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_target_is_filled(tmp_path):
    bundle, target = make_bundle(tmp_path), tmp_path / "empty"
    target.mkdir()
    assert (exported(bundle, target) / "config.json").is_file()


def test_a_target_is_whole_or_not_there(tmp_path):
    def half() -> None:
        with whole(tmp_path / "target") as folder:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


def test_changed_weights_are_no_import(copy, tmp_path):
    file = sorted(copy.glob("*.safetensors"))[0]
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, file)
    with pytest.raises(ConfigurationError, match="was changed since it was exported"):
        import_export(copy, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_changed_card_is_no_import(copy, tmp_path):
    card = copy / "edlm" / "denoiser" / "model.yaml"
    card.write_text(card.read_text().replace("length: 12", "length: 13"))
    with pytest.raises(ConfigurationError, match=r"was changed since it was exported: denoiser: file 'model.yaml'"):
        import_export(copy, tmp_path / "back")


def test_weights_of_no_network_are_no_import(copy, tmp_path):
    file = sorted(copy.glob("*.safetensors"))[0]
    save_file({**load_file(file), "other.weight": torch.zeros(1)}, file)
    with pytest.raises(ConfigurationError, match=r"weights of no network in it: other.weight"):
        import_export(copy, tmp_path / "back")


def test_missing_and_damaged_weights_are_no_import(copy, tmp_path):
    file = sorted(copy.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match="damaged weights"):
        import_export(copy, tmp_path / "back")
    file.unlink()
    with pytest.raises(ConfigurationError, match="lacks a file of weights"):
        import_export(copy, tmp_path / "back")


def test_weights_outside_of_the_folder_are_not_read(copy, tmp_path):
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"denoiser.embedding.weight": "../secret.safetensors"}}))
    with pytest.raises(ConfigurationError, match="is not in this folder"):
        import_export(copy, tmp_path / "back")


def test_another_folder_is_no_import(bundle, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        import_command([str(bundle), str(tmp_path / "back")])
    assert status.value.code == 1
    assert "is no repository of `workflows.export`" in capsys.readouterr().err
