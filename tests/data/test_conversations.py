"""Of a conversation the last message is learnt, in the form of the tokenizer's chat template."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from edlm.config import ConfigurationError, parse, plain
from edlm.data.corpus import Files, HuggingFace
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.token_file import TokenFile, read_summary
from edlm.data.tokenizer import open_tokenizer
from edlm.data.tokenizer_kinds import BPE, HuggingFaceTokenizer
from edlm.zero_shot.scoring import ZeroShot
from tests.chats import CHATML, write_chat_tokenizer

LENGTH = 96


def message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


ROWS = [
    {"messages": [message("user", f"{i} plus {i % 7} <|im_end|>"), message("assistant", f"{i + i % 7}")]}
    for i in range(60)
]


def silent(_: str) -> None:
    pass


def written(path, rows=ROWS, **settings) -> Files:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(paths=(str(path),), messages_field="messages", **settings)


def data(corpus, folder, **settings) -> Data:
    tokenizer = HuggingFaceTokenizer(uri=str(folder), separator="<|im_end|>")
    return Data(
        corpus=corpus, **{"tokenizer": tokenizer, "length": LENGTH, "shares": Shares(validation=0.2), **settings}
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_chat_tokenizer(tmp_path_factory.mktemp("chat"))


def test_exactly_the_answers_are_learnt(tokenizer, tmp_path):
    prepare(data(written(tmp_path / "rows.jsonl"), tokenizer), tmp_path / "data", silent)
    opened, seen = open_tokenizer(tmp_path / "data"), 0
    for split, held in read_summary(tmp_path / "data").splits.items():
        file = TokenFile.open(tmp_path / "data", split)
        assert held.pairs == held.documents
        learnt = file.loss_mask(np.arange(len(file.tokens))[None])
        assert learnt is not None
        for start, end in zip(file.documents, [*file.documents[1:], len(file.tokens)], strict=True):
            ids, kept = file.tokens[start:end].astype(int), learnt[0, start:end]
            prompt, answer = opened.decode(ids[: kept.argmax()]), opened.decode(ids[kept])
            asked = prompt.removeprefix("<|im_start|>user\n").removesuffix("<|im_end|>\n<|im_start|>assistant\n")
            number, _, more, spelt = asked.split()
            assert answer == f"{int(number) + int(more)}<|im_end|>"
            assert spelt == "<|im_end|>"
            assert (ids[: kept.argmax()] == file.separator).sum() == 1  # what the message spells is text
            seen += 1
    assert seen == len(ROWS)


def test_the_prepared_data_hold_the_template_for_the_models_card(tokenizer, tmp_path):
    summary = prepare(data(written(tmp_path / "rows.jsonl"), tokenizer), tmp_path / "data", silent)
    assert read_summary(tmp_path / "data") == summary
    assert summary.facts() == {"chat": {"template": CHATML, "special_tokens": {"eos_token": "<|im_end|>"}}}
    texts = written(tmp_path / "texts.jsonl", [{"text": f"text {i} " + "x" * 90} for i in range(20)])
    texts = Files(paths=texts.paths)
    assert prepare(data(texts, tokenizer), tmp_path / "texts", silent).facts() == {}


@pytest.mark.parametrize("kind", ["json", "parquet", "huggingface"])
def test_every_format_with_lists_holds_conversations(tmp_path, kind):
    table = pa.Table.from_pylist(ROWS)
    if kind == "huggingface":
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        corpus = HuggingFace(name=str(tmp_path / "saved"), messages_field="messages")
    else:
        path = tmp_path / f"rows.{kind}"
        if kind == "json":
            path.write_text(json.dumps(ROWS))
        else:
            pyarrow.parquet.write_table(table, path)
        corpus = Files(paths=(str(path),), messages_field="messages")
    read = [document.turns for document in corpus.documents()]
    assert read == [tuple((one["role"], one["content"]) for one in row["messages"]) for row in ROWS]


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
def test_a_changed_file_of_the_tokenizer_makes_another_version_of_the_data(tmp_path, name):
    folder = write_chat_tokenizer(tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(CHATML)
    for uri in (folder, folder / "tokenizer.json"):
        settings = data(written(tmp_path / "rows.jsonl"), uri)
        before = settings.version()
        assert settings.version() == before
        (folder / name).write_text((folder / name).read_text() + "\n")
        assert settings.version() != before


def test_the_version_of_a_tokenizer_covers_files_of_merges_and_is_a_commit_of_the_hub(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b\n")
    before = HuggingFaceTokenizer(uri=str(tmp_path)).version()
    (tmp_path / "merges.txt").write_text("b a\n")
    assert HuggingFaceTokenizer(uri=str(tmp_path)).version() != before
    for file in ("", "/tokenizer.json"):
        assert HuggingFaceTokenizer(uri=f"hf://a/b@{'0a' * 20}{file}").version() == "0a" * 20


def test_all_answers_to_a_conversation_are_in_one_split(tokenizer, tmp_path):
    several = [
        {"messages": [row["messages"][0], message("assistant", f"{again}")]} for again in range(4) for row in ROWS
    ]
    splits: dict = {}
    corpus = data(written(tmp_path / "several.jsonl", several), tokenizer)
    for document, split in corpus.splits(silent).documents():
        assert document.turns is not None
        splits.setdefault(document.turns[0], set()).add(split)
    assert len(splits) == len(ROWS)
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "no list of messages but 'hello'"),
        ([], r"no list of messages but \[\]"),
        (["hello"], "a message is 'hello', not an object"),
        ([{"content": "hello"}], "a message has the role None, not a text"),
        ([message("user", "a"), {"role": "assistant", "content": None}], "a message has the content None"),
        ([{"role": "user", "content": [{"text": "a"}]}], r"a message has the content \[\{'text': 'a'\}\]"),
        (
            [message("user", "a") | {"tool_calls": [1]}, message("assistant", "b")],
            "a message has 'tool_calls' besides .*; remove the field",
        ),
        ([message("user", "a")], "the roles are user; the last message"),
        ([message("assistant", "a")], "the roles are assistant; the last message"),
        ([message("user", "\ud800"), message("assistant", "b")], "the content of a message is not Unicode text"),
        ([message("user", "a" * 50), message("assistant", "b")], "a conversation of 52 characters"),
        (None, "the field 'messages' is null; set corpus.skip_nulls"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path, messages, problem):
    with pytest.raises(ConfigurationError, match=rf"rows\.jsonl:1: {problem}"):
        list(written(tmp_path / "rows.jsonl", [{"messages": messages}], longest=40).documents())


def test_a_row_without_the_field_and_blank_conversations(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no field 'messages'; set corpus\.messages_field to one of: text"):
        list(written(tmp_path / "rows.jsonl", [{"text": "a"}]).documents())
    blank = {"messages": [message("user", " "), message("assistant", "")]}
    empty = {"messages": [message("user", "a") | {"tool_calls": None}, message("assistant", "b") | {"name": ""}]}
    corpus = written(tmp_path / "rows.jsonl", [blank, empty, {"messages": None}], skip_nulls=True)
    assert [document.turns for document in corpus.documents()] == [(("user", "a"), ("assistant", "b"))]


def test_a_conversation_that_the_template_refuses_is_named(tmp_path):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    folder = write_chat_tokenizer(tmp_path / "chat", chat_template=template)
    rows = [*ROWS, {"messages": [message("system", "a"), message("assistant", "b")]}]
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl:61: the chat template refuses the conv.*: no system"):
        prepare(data(written(tmp_path / "rows.jsonl", rows), folder), tmp_path / "data", silent)


def test_settings_that_do_not_go_with_conversations_are_refused(tokenizer, tmp_path):
    corpus = written(tmp_path / "rows.jsonl")
    tree = plain(data(corpus, tokenizer))
    with pytest.raises(ConfigurationError, match=r"needs a chat template, and tokenizer\.kind bpe has none; take a"):
        parse(Data, tree | {"tokenizer": plain(BPE(size=300))})
    with pytest.raises(ConfigurationError, match="may hold separators, at the ends of its turns"):
        parse(Data, tree | {"attention": "within_documents"})
    with pytest.raises(ConfigurationError, match=r"corpus\.prompts is set, too"):
        parse(Data, tree | {"corpus": tree["corpus"] | {"prompts": {"field": "prompt"}}})
    with pytest.raises(ConfigurationError, match="corpus 'chats' has a messages_field, and texts are scored"):
        parse(ZeroShot, {"name": "chats", "corpus": plain(corpus)})
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigurationError, match=r"messages_field: .*a\.txt is a txt file, which has no fields"):
        list(Files(paths=(str(tmp_path / "a.txt"),), messages_field="messages").documents())
    bare = write_chat_tokenizer(tmp_path / "bare", chat_template=None)
    with pytest.raises(ConfigurationError, match="has no chat template"):
        prepare(data(corpus, bare), tmp_path / "data", silent)
