"""Of a pair only the answer is learnt, it lies in one row, and all answers to a prompt are in one split."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from edlm.config import ConfigurationError, parse, plain
from edlm.data.batches import Batches, whole_rows
from edlm.data.corpus import Files, HuggingFace, Mixture
from edlm.data.mixture import Part
from edlm.data.pairs import Prompts
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.token_file import TokenFile, read_summary
from edlm.data.tokenizer import open_tokenizer
from edlm.data.tokenizer_kinds import Bytes

LENGTH = 24
PAIRS = [{"prompt": f"{i} plus {i % 7}", "answer": f"{i + i % 7}" + "!" * (i % 11)} for i in range(80)]
PROMPTS = Prompts(field="prompt", template="{prompt}: ")


def written(path, rows, **settings) -> Files:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(paths=(str(path),), **{"text_field": "answer", "prompts": PROMPTS, **settings})


def data(corpus, **settings) -> Data:
    return Data(corpus=corpus, **{"tokenizer": Bytes(), "length": LENGTH, "shares": Shares(validation=0.2), **settings})


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    progress = []
    prepare(data(written(folder / "pairs.jsonl", PAIRS)), folder / "data", progress.append)
    return folder / "data", progress


def rows_of(folder, split):
    file = TokenFile.open(folder, split)
    return file, whole_rows(file, LENGTH, 1000, step=0)


def test_exactly_the_answers_and_their_ends_are_learnt(prepared):
    folder, _ = prepared
    tokenizer, seen = open_tokenizer(folder), []
    for split in ("train", "validation"):
        file, rows = rows_of(folder, split)
        assert rows.loss_mask is not None
        for tokens, learnt in zip(rows.tokens.tolist(), rows.loss_mask.tolist(), strict=True):
            text = [tokenizer.decode([token]) if token != file.separator else "\n" for token in tokens]
            stretch = "".join(letter if kept else "_" for letter, kept in zip(text, learnt, strict=True))
            whole = "".join(text)
            # No pair is divided: a row is whole pairs, then separators that are not learnt, or the next pair's place.
            for pair in filter(None, whole.split("\n")):
                before, answer = pair.split(": ")
                assert f"{'_' * len(before + ': ')}{answer}\n" in stretch
                seen.append((before, answer))
            assert stretch.count("\n") == len(list(filter(None, whole.split("\n"))))
    every = [(pair["prompt"], pair["answer"]) for pair in PAIRS]
    assert set(seen) <= set(every)
    assert len(seen) >= len(every) - 2 * 3  # after a split's last whole row there are at most a row's pairs


def test_a_batch_has_what_is_learnt_of_its_rows(prepared):
    file, rows = rows_of(prepared[0], "train")
    assert rows.loss_mask is not None
    of_row = {tuple(tokens): learnt for tokens, learnt in zip(rows.tokens.tolist(), rows.loss_mask, strict=True)}
    batch = Batches(file, LENGTH, batch=6, seed=0).rows(3, 1, 5)
    assert batch.loss_mask is not None
    for tokens, learnt in zip(batch.tokens.tolist(), batch.loss_mask, strict=True):
        assert torch.equal(of_row[tuple(tokens)], learnt)
    part = batch.slice(1, 3)
    assert part.loss_mask is not None
    assert torch.equal(part.loss_mask, batch.loss_mask[1:3])
    assert part.batch_index.tolist() == [2, 3]
    assert torch.equal(torch.as_tensor(part.loss_token_counts()), part.loss_mask.sum(dim=1).clamp(min=1))


def test_the_summary_counts_pairs_and_padding(prepared):
    folder, progress = prepared
    for split, held in read_summary(folder).splits.items():
        file, _ = rows_of(folder, split)
        assert held.pairs == held.documents
        assert held.cut == 0
        separators = int((np.asarray(file.tokens) == file.separator).sum())
        assert held.padding == separators - held.documents
        assert any(f"{split}: {held.pairs} of its documents are pairs, 0 of them longer" in line for line in progress)


def test_a_pair_longer_than_a_row_loses_its_end(tmp_path):
    long = [{"prompt": "why", "answer": f"{i} " + "because " * 9} for i in range(3)]
    summary = prepare(data(written(tmp_path / "long.jsonl", [*PAIRS, *long])), tmp_path / "data", silent)
    assert sum(held.cut for held in summary.splits.values()) == 3
    kept = ""
    for split in summary.splits:
        _, rows = rows_of(tmp_path / "data", split)
        kept += "".join(open_tokenizer(tmp_path / "data").decode(row) + "\n" for row in rows.tokens.tolist())
    for i in range(3):
        assert f"why: {i} " + ("because " * 9)[: LENGTH - 7] + "\n" in kept


def test_all_answers_to_a_prompt_are_in_one_split_and_leave_with_it(tmp_path):
    several = [pair | {"answer": f"{pair['answer']} {again}"} for again in range(4) for pair in PAIRS]
    corpus = written(tmp_path / "several.jsonl", several)
    of_prompt: dict[str, set] = {}
    for document, split in data(corpus).splits(lambda _: None).documents():
        of_prompt.setdefault(document.text.split(":")[0], set()).add(split)
    assert len(of_prompt) == len(PAIRS)
    assert all(len(splits) == 1 for splits in of_prompt.values())
    assert {split for splits in of_prompt.values() for split in splits} == {"train", "validation"}
    held = written(tmp_path / "held.jsonl", [PAIRS[5] | {"answer": "another"}])
    divided = data(corpus, validation=held, shares=Shares(validation=0)).splits(lambda _: None)
    left_out = {document.text.split(":")[0] for document, split in divided.documents() if split is None}
    assert left_out == {PAIRS[5]["prompt"]}


@pytest.mark.parametrize("kind", ["json", "csv", "parquet", "huggingface"])
def test_every_format_with_fields_holds_pairs(tmp_path, kind):
    table = pa.table({name: [pair[name] for pair in PAIRS] for name in ("answer", "prompt")})
    settings = {"text_field": "answer", "prompts": PROMPTS}
    if kind == "huggingface":
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        corpus = HuggingFace(name=str(tmp_path / "saved"), **settings)
    else:
        path = tmp_path / f"pairs.{kind}"
        if kind == "json":
            path.write_text(json.dumps(PAIRS))
        elif kind == "csv":
            path.write_text("answer,prompt\n" + "".join(f"{pair['answer']},{pair['prompt']}\n" for pair in PAIRS))
        else:
            pyarrow.parquet.write_table(table, path)
        corpus = Files(paths=(str(path),), **settings)
    read = [(document.text[: document.given], document.text[document.given :]) for document in corpus.documents()]
    assert read == [(f"{pair['prompt']}: ", pair["answer"]) for pair in PAIRS]


def test_pairs_and_texts_mix_and_of_texts_everything_is_learnt(tmp_path):
    texts = written(tmp_path / "texts.jsonl", [{"answer": f"text {i} " + "x" * 40} for i in range(40)], prompts=None)
    pairs = written(tmp_path / "pairs.jsonl", PAIRS)
    mixed = Mixture(parts=(Part(corpus=texts, weight=1), Part(corpus=pairs, weight=1)))
    summary = prepare(data(mixed), tmp_path / "data", silent)
    held, (file, rows) = summary.splits["train"], rows_of(tmp_path / "data", "train")
    assert 0 < held.pairs < held.documents
    loss_mask = file.loss_mask(np.arange(len(file.tokens))[None])
    assert loss_mask is not None
    assert file.given is not None
    prompts = sum(stop - start for start, stop in file.given.tolist()) - held.padding
    assert loss_mask.sum() == held.tokens - prompts - held.padding
    text = open_tokenizer(tmp_path / "data").decode([int(token) for token in np.asarray(file.tokens)[loss_mask[0]]])
    assert text.count("text ") == held.documents - held.pairs
    assert "plus" not in text
    assert rows.loss_mask is not None


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        ([{"answer": "a"}], {}, r":1: there is no field 'prompt'; set corpus.prompts.field to one of: answer"),
        ([{"prompt": None, "answer": "a"}], {}, r":1: the field 'prompt' is null; set corpus.skip_nulls: true"),
        ([{"prompt": "a", "answer": None}], {}, r":1: the field 'answer' is null; set corpus.skip_nulls: true"),
        ([{"prompt": "a", "answer": "b" * 20}], {"longest": 10}, r":1: a pair of 23 characters, and pairs are not cut"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path, rows, change, message):
    with pytest.raises(ConfigurationError, match=message):
        list(written(tmp_path / "pairs.jsonl", rows, **change).documents())


def test_pairs_without_text_are_left_out_if_so_set_and_blank_ones_always(tmp_path):
    rows = [{"prompt": None, "answer": "a"}, {"prompt": "p", "answer": ""}, {"prompt": " ", "answer": ""}]
    corpus = written(tmp_path / "pairs.jsonl", rows, skip_nulls=True, prompts=Prompts(field="prompt"))
    assert [(document.text, document.given) for document in corpus.documents()] == [("p", 1)]


def test_pairs_of_a_text_file_and_of_a_tokenizer_without_separator_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigurationError, match=r"corpus\.prompts: .*a\.txt is a txt file, which has no fields"):
        list(Files(paths=(str(tmp_path / "a.txt"),), prompts=PROMPTS).documents())
    tree = plain(data(written(tmp_path / "pairs.jsonl", PAIRS))) | {"tokenizer": {"kind": "characters"}}
    with pytest.raises(ConfigurationError, match=r"corpus\.prompts needs a separator .*kind characters has none"):
        parse(Data, tree)


@pytest.mark.parametrize("template", ["no place", "{prompt} and {prompt}"])
def test_a_template_holds_the_prompt_once(template):
    with pytest.raises(ConfigurationError, match=r"does not hold \{prompt\} exactly once"):
        parse(Prompts, {"field": "prompt", "template": template})
