"""Texts become token files: each document once, in its order, with progress, and errors that name their cause."""

import hashlib
import json
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from edlm.config import ConfigurationError, parse, plain
from edlm.data import corpus_files, progress
from edlm.data.batches import Batches, whole
from edlm.data.corpus import Embedded, Files
from edlm.data.corpus_formats import json_lines
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.token_file import TokenFile, read_summary
from edlm.data.tokenizer import open_tokenizer
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters
from tests.data.preparation import memory_of_preparation

STORY = [f"document {number}, which says {'so ' * (number % 7)}much." for number in range(60)]


def data(path, texts, **settings):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    defaults = {"tokenizer": Bytes(), "length": 8, "shares": Shares(validation=0.1, judge=0.2)}
    return Data(corpus=Files(paths=(str(path),)), **{**defaults, **settings})


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(data(folder / "story.jsonl", STORY), folder / "data", silent)
    return folder / "data"


@pytest.mark.parametrize("tokenizer", [Characters(), Bytes(), BPE(size=300)])
def test_the_token_files_hold_every_document_once_in_its_order(tmp_path, tokenizer):
    settings = data(tmp_path / "story.jsonl", STORY, tokenizer=tokenizer)
    summary = prepare(settings, tmp_path / "data", silent)
    opened = open_tokenizer(tmp_path / "data")
    for split in ("train", "validation", "judge"):
        texts = [document.text for document, home in settings.splits(lambda _: None).documents() if home == split]
        file = TokenFile.open(tmp_path / "data", split)
        documents = np.split(np.asarray(file.tokens), file.documents[1:])
        assert [ids.tolist() for ids in documents] == [ids.tolist() for ids in opened.encode_documents(texts)]
        assert (file.vocabulary, file.separator) == (opened.size, opened.separator)
        held = summary.splits[split]
        assert held.documents == len(texts)
        assert held.tokens == len(file.tokens)
        assert held.bytes == sum(len(text.encode()) for text in texts)
        digests = (tmp_path / f"data/{split}.digests.bin").read_bytes()
        assert held.digests_sha256 == hashlib.sha256(digests).hexdigest()
    assert read_summary(tmp_path / "data") == summary


def test_preparing_twice_gives_the_same_files(tmp_path, prepared):
    prepare(data(tmp_path / "story.jsonl", STORY), tmp_path / "data", silent)
    assert {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()} == {
        p.name: p.read_bytes() for p in prepared.iterdir()
    }


def test_preparing_again_leaves_nothing_of_what_was_there(tmp_path):
    prepare(data(tmp_path / "a.jsonl", STORY), tmp_path / "data", silent)
    prepare(data(tmp_path / "a.jsonl", STORY, shares=Shares(validation=0.1, judge=0)), tmp_path / "data", silent)
    assert not list((tmp_path / "data").glob("judge*"))
    with pytest.raises(ValueError, match="has no split 'judge', only train, validation"):
        TokenFile.open(tmp_path / "data", "judge")


def test_a_preparation_that_is_interrupted_leaves_nothing_that_opens_even_where_an_older_one_was_whole(tmp_path):
    settings = data(tmp_path / "story.jsonl", STORY)
    prepare(settings, tmp_path / "data", silent)
    TokenFile.open(tmp_path / "data", "train")

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, tmp_path / "data", interrupt)
    with pytest.raises(ValueError, match="holds no prepared data"):
        TokenFile.open(tmp_path / "data", "train")
    prepare(settings, tmp_path / "data", silent)
    TokenFile.open(tmp_path / "data", "train")


def test_a_split_of_just_one_row_is_enough_and_one_token_less_is_not(tmp_path):
    splits = prepare(data(tmp_path / "a.jsonl", STORY), tmp_path / "data", silent).splits
    shortest = min(held.tokens for held in splits.values())
    assert prepare(data(tmp_path / "a.jsonl", STORY, length=shortest), tmp_path / "one", silent).length == shortest
    assert len(whole(TokenFile.open(tmp_path / "one", "train"), shortest, 1)) == 1
    with pytest.raises(ConfigurationError, match=f"too few for one row of length {shortest + 1}"):
        prepare(data(tmp_path / "a.jsonl", STORY, length=shortest + 1), tmp_path / "two", silent)


def test_only_the_train_split_teaches_the_tokenizer(tmp_path):
    train, other = [f"ab{number} ab ab" for number in range(20)], ["zqzqzqzqzqzqzqzq " * 5 + "."] * 3
    held_out = data(tmp_path / "held.jsonl", other).corpus
    settings = {"tokenizer": BPE(size=262), "shares": Shares(validation=0, judge=0)}
    prepare(data(tmp_path / "a.jsonl", train, validation=held_out, **settings), tmp_path / "one", silent)
    other_held_out = data(tmp_path / "held2.jsonl", ["something else"] * 3).corpus
    prepare(data(tmp_path / "a.jsonl", train, validation=other_held_out, **settings), tmp_path / "two", silent)
    assert open_tokenizer(tmp_path / "one").digest == open_tokenizer(tmp_path / "two").digest
    assert len(open_tokenizer(tmp_path / "one").encode("zqzq")) == 4


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path):
    pieces = {f"<{number}>": number for number in range(70_000)} | {"<|endoftext|>": 70_000}
    (tmp_path / "vocab.json").write_text(json.dumps(pieces | {letter: 70_001 + i for i, letter in enumerate("abc")}))
    (tmp_path / "merges.txt").write_text("")
    settings = parse(
        Data,
        {
            "corpus": {"kind": "files", "paths": [str(tmp_path / "a.txt")], "cut": "line"},
            "tokenizer": {"kind": "huggingface", "uri": str(tmp_path)},
            "length": 4,
            "shares": {"validation": 0.4, "judge": 0},
        },
    )
    (tmp_path / "a.txt").write_text("abcabc\ncbacba\n")
    assert prepare(settings, tmp_path / "data", silent).number == "<u4"
    assert TokenFile.open(tmp_path / "data", "train").tokens.tolist() == [70_001, 70_002, 70_003] * 2 + [70_000]


def test_the_embedded_corpus_is_prepared_with_progress(tmp_path):
    output = []
    settings = Data(corpus=Embedded(), tokenizer=Characters(), length=64, shares=Shares(validation=0.1, judge=0.3))
    summary = prepare(settings, tmp_path, output.append)
    size = sum(len(document.text) for document in Embedded().documents())
    assert output[:2] == [f"{size:,} characters read to share out the documents", "tokenizer: 27 tokens"]
    assert re.fullmatch(rf"{size:,} characters tokenised, [\d.]+ MB/s", output[2])
    assert [line.split(":")[0] for line in output[3:]] == ["train", "validation", "judge"]
    characters = {split: held.characters for split, held in summary.splits.items()}
    total = sum(characters.values())
    assert characters["validation"] / total == pytest.approx(0.1, abs=0.05)
    assert characters["judge"] / total == pytest.approx(0.3, abs=0.05)


def test_boilerplate_that_fills_a_split_is_named(tmp_path):
    texts = [f"{story}{number}" for number in range(20) for story in STORY] + ["[deleted]\n"] * 60 + ["[deleted]"] * 60
    output = []
    summary = prepare(data(tmp_path / "a.jsonl", texts), tmp_path / "data", output.append)
    (split,) = [split for split, held in summary.splits.items() if held.repeated]
    (actual,) = summary.splits[split].repeated
    assert (actual.beginning, actual.documents) == ("[deleted]\n", 120)
    assert actual.share == pytest.approx(120 / summary.splits[split].documents)
    (line,) = [line for line in output if "are one text" in line]
    assert line.startswith(f"{split}: 120 of its documents ({actual.share:.1%}) are one text")
    assert "'[deleted]\\n'" in line
    assert read_summary(tmp_path / "data") == summary


def test_a_tokenizer_that_loses_the_text_states_so(tmp_path):
    output = []
    texts = [f"мир {story}" for story in STORY]
    summary = prepare(data(tmp_path / "a.jsonl", texts, tokenizer=Characters()), tmp_path / "data", output.append)
    letters = sum(not letter.isspace() for text in texts for letter in text)
    assert summary.lost.share == pytest.approx(3 * len(texts) / letters)
    assert (set(summary.lost.examples), summary.lost.sample) == (set("мир"), letters)
    assert output[-1].startswith(
        f"the tokenizer loses {summary.lost.share:.1%} of the characters (of {letters:,} looked"
    )
    assert read_summary(tmp_path / "data") == summary
    assert prepare(data(tmp_path / "a.jsonl", texts), tmp_path / "bytes", silent).lost is None


def test_reading_for_the_tokenizer_is_reported_too(tmp_path):
    output = []
    prepare(data(tmp_path / "a.jsonl", STORY, tokenizer=BPE(size=300)), tmp_path / "data", output.append)
    size = sum(map(len, STORY))
    assert f"{size:,} characters read for the tokenizer" in output


def test_there_is_progress_while_only_blank_and_null_rows_are_read(tmp_path, monkeypatch):
    """The reader waits within its blank rows until there was a line."""
    reported = threading.Event()

    def rows(*arguments):
        for row in json_lines(*arguments):
            if not (row.fields["text"] or "").strip():
                assert reported.wait(60)
            yield row

    monkeypatch.setattr(progress, "SECONDS", 0.001)
    monkeypatch.setattr(corpus_files, "json_lines", rows)
    settings = data(tmp_path / "a.jsonl", [None, " ", "\n", None, *STORY])
    settings = replace(settings, corpus=replace(settings.corpus, skip_nulls=True))
    output = []

    def say(line: str) -> None:
        output.append(line)
        reported.set()

    prepare(settings, tmp_path / "data", say)
    assert output[0] == "0 characters read to share out the documents; no text since the last line"


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_corpus_of_one_text_is_refused_with_the_setting_that_cuts_it(tmp_path, name):
    """A row of any length, and a file that is not longer than a document may be."""
    settings = data(tmp_path / "a.jsonl", ["A story. " * 1000])
    (tmp_path / "a.txt").write_text("A story. " * 1000)
    longest = 500 if name == "a.jsonl" else 10_000
    settings = replace(settings, corpus=Files(paths=(str(tmp_path / name),), longest=longest))
    message = r"the corpus holds 1 text, too few for the splits train, validation, judge: .*corpus\.cut"
    with pytest.raises(ConfigurationError, match=message):
        prepare(settings, tmp_path / "data", silent)


def test_a_corpus_too_short_for_a_row_of_each_split_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"the validation split has \d+ documents with \d+ tokens, too few"):
        prepare(data(tmp_path / "a.jsonl", STORY, length=500), tmp_path / "data", silent)
    with pytest.raises(ValueError, match="holds no prepared data"):
        TokenFile.open(tmp_path / "data", "train")
    with pytest.raises(ConfigurationError, match="holds no text"):
        prepare(data(tmp_path / "b.jsonl", []), tmp_path / "data", silent)


def test_a_large_file_is_prepared_in_bounded_memory(tmp_path):
    """2.5 MB of text in one file, which need 360 MB where they are tokenised at once; see tests/chaos for 200 MB."""
    source = tmp_path / "large.txt"
    source.write_text("".join(f"line {number} of a text, about as long as lines are\n" for number in range(50_000)))
    growth, _ = memory_of_preparation(source, tmp_path / "data", "bytes", "file")
    assert 10 < growth < 150


def test_contradictory_shares_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shares\.validation is 0; give validation a share"):
        data(tmp_path / "a.jsonl", STORY, shares=Shares(validation=0, judge=0.1))
    with pytest.raises(ValueError, match=r"shares\.validation is 0\.1, but validation has a corpus of its own"):
        data(tmp_path / "a.jsonl", STORY, validation=Embedded())


@pytest.fixture
def copied(tmp_path, prepared):
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["train.bin", "train.documents.bin"])
def test_a_missing_or_truncated_file_is_named(copied, name):
    whole_file = (copied / name).read_bytes()
    (copied / name).write_bytes(whole_file[:-2])
    with pytest.raises(ValueError, match=f"{name} has {len(whole_file) - 2} bytes, its index says {len(whole_file)}"):
        TokenFile.open(copied, "train")
    (copied / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        TokenFile.open(copied, "train")


def test_a_foreign_tokenizer_or_a_damaged_index_is_refused(copied):
    Characters().build([]).save(copied)
    with pytest.raises(ValueError, match="the tokens were made with tokenizer"):
        TokenFile.open(copied, "train")
    (copied / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        TokenFile.open(copied, "train")
    (copied / "index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json"):
        TokenFile.open(copied, "train")


def test_rows_are_int64_and_read_from_the_file(prepared):
    file = TokenFile.open(prepared, "train")
    rows = Batches(file, length=8, batch=4, seed=0).rows(3, 1, 3)
    assert rows.tokens.dtype == torch.int64
    assert rows.tokens.shape == (2, 8)
    assert rows.batch_index.tolist() == [1, 2]
    assert not file.tokens.flags.writeable


def test_attention_within_documents_is_bounded_by_the_separator_and_needs_one(tmp_path, prepared):
    across = data(tmp_path / "story.jsonl", STORY)
    within = data(tmp_path / "story.jsonl", STORY, attention="within_documents")
    assert across.attention_separator(prepared) is None
    assert within.attention_separator(prepared) == open_tokenizer(prepared).separator
    tree = plain(within) | {"tokenizer": {"kind": "characters"}}
    with pytest.raises(
        ConfigurationError, match=r"attention is within_documents, but tokenizer\.kind characters has no"
    ):
        parse(Data, tree)
