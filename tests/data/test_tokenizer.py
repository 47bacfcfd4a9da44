import json
import os
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from edlm.config import ConfigurationError
from edlm.data import tokenizer_kinds
from edlm.data.tokenizer import DocumentTokenizer, Tokenizer, open_tokenizer
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters, HuggingFaceTokenizer, separated
from tests.paths import DATA, PROJECT

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog, and a mat"] * 3
characters = Characters().build([])
byte_level = Bytes().build([])
learnt = BPE(size=270).build(TEXTS)
# Scripts in which Unicode has named no new mark for long: Python and the library know different versions of it.
OLD = st.characters(max_codepoint=0x5FF) | st.characters(min_codepoint=0x1E00, max_codepoint=0x24FF)
anything = st.text(st.characters(exclude_categories=("Cs",)))


def normalised(text: str) -> str:
    """text8's alphabet, written down a second time and in another way."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.category(c).startswith("M"))
    spelt = (f" {DIGITS[int(c)]} " if c in "0123456789" else c for c in "".join(letters).lower())
    return re.sub("[^a-z]+", " ", "".join(spelt))


@pytest.fixture
def rewritten(tmp_path):
    """A tokenizer.json whose decoder may change any part of a text."""
    tokenizer = json.loads(byte_level.text)
    replace = {"type": "Replace", "pattern": {"Regex": "a(b*)c"}, "content": "-"}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], replace]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path


def test_a_tokenizer_whose_texts_cannot_be_streamed_is_refused_by_its_setting_and_when_a_model_is_loaded(rewritten):
    with pytest.raises(ConfigurationError, match=rf"tokenizer\.uri {rewritten}: texts .* cannot be streamed"):
        HuggingFaceTokenizer(uri=str(rewritten)).build([])
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be used: texts .* cannot be streamed: .* Replace"):
        open_tokenizer(rewritten)  # with which every model is opened


@pytest.fixture
def foreign(tmp_path):
    """A folder with vocab.json and merges.txt, as GPT-2's."""
    pieces = ["<|endoftext|>", "a", "b", "c", "Ġ", "ab", "Ġab"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    return tmp_path


@settings(max_examples=200, deadline=None)
@given(st.text(OLD))
def test_characters_give_back_the_text_in_the_alphabet_of_text8(text):
    assert characters.decode(characters.encode(text)) == normalised(text)


def test_characters_spell_digits_drop_accents_and_fold_the_rest():
    assert characters.decode(characters.encode("The Curé's 12  cheese-dairies")) == (
        "the cure s one two cheese dairies"
    )
    assert characters.size == 27
    assert characters.encode("a z").tolist() == [1, 0, 26]


def test_characters_agree_with_the_prepared_corpus():
    if not DATA.is_dir():
        pytest.skip(f"the reference corpus is not at {DATA}")
    lines = (DATA / "english/test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    prepared = (DATA / "english/test.27.txt").read_text(encoding="utf-8").strip()

    def joined(texts):
        return characters.decode(np.concatenate(characters.encode_documents(texts))).strip()

    # The prepared corpus drops what is not ASCII where text8, and so `Characters`, leaves a space.
    ascii_only = [unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() for text in texts]
    assert joined(ascii_only) == prepared
    assert joined(texts).replace(" ", "") == prepared.replace(" ", "")


def test_documents_without_a_separator_are_parted_by_one_space():
    documents = characters.encode_documents(['"Who?" ', "I, 4", "!"])
    assert [characters.decode(ids) for ids in documents] == ["who ", "i four ", ""]
    assert characters.separator is None


@settings(max_examples=200, deadline=None)
@given(anything)
def test_bytes_give_back_every_text(text):
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert ids.tolist() == list(text.encode("utf-8"))


@settings(max_examples=200, deadline=None)
@given(anything)
def test_learnt_pairs_give_back_every_text(text):
    assert learnt.decode(learnt.encode(text)) == text


@pytest.mark.parametrize("tokenizer", [characters, byte_level, learnt])
def test_ids_are_int32_and_below_the_size(tokenizer):
    for text in ("", *TEXTS):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert all(0 <= index < tokenizer.size for index in ids)


@pytest.mark.parametrize("tokenizer", [byte_level, learnt])
def test_a_document_ends_with_the_separator_which_no_text_can_spell(tokenizer):
    (document,) = tokenizer.encode_documents(["a<|endoftext|>b"])
    assert document[-1] == tokenizer.separator
    assert tokenizer.separator not in document[:-1]
    assert tokenizer.decode(document) == "a<|endoftext|>b<|endoftext|>"


def test_learning_pairs_has_one_outcome_of_the_size_asked_for():
    assert learnt.size == 270
    assert learnt.digest == BPE(size=270).build(TEXTS).digest
    assert len(learnt.encode("the cat")) < len("the cat")


TIES = """
from edlm.data.tokenizer_kinds import BPE

words = [chr(97 + a) + chr(97 + b) + chr(97 + c) for a in range(26) for b in range(26) for c in range(26)]
print(BPE(size=600).build(" ".join(words[start::40]) for start in range(40)).digest)
"""


def test_learning_pairs_depends_on_neither_the_seed_of_hashes_nor_the_number_of_threads():
    """Every pair of letters occurs as often as any other, so that nothing but a rule for ties decides."""
    digests = set()
    for seed, threads in (("1", "1"), ("2", "8")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(
            [sys.executable, "-c", TIES], capture_output=True, text=True, check=True,
            env={**environment, "TOKENIZERS_PARALLELISM": "true"},
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1


def test_only_the_sample_is_learnt_from():
    assert BPE(size=258, sample=8).build(["ababab", "abcdcdcdcdcdcd", "efefef"]).digest == (
        BPE(size=258).build(["ababab", "ab"]).digest
    )


def test_training_ends_where_the_distinct_words_reach_their_bound_and_says_so(monkeypatch):
    monkeypatch.setattr(tokenizer_kinds, "WORD_BYTES", 60)
    texts = ["the cat sat " * 50, "naïve 猫 dogs run, don't they? " * 50, "zq" * 40, "never read"]
    reported = []
    built = BPE(size=262).build(texts, reported.append)
    assert built.digest == BPE(size=262).build(texts[:3]).digest
    size = len("".join({"the", " the", " cat", " sat", " "}).encode())
    size += len("".join({"naïve", " naïve", " 猫", " dogs", " run", ",", " don", "'", "t", " they", "?"}).encode()) + 80
    read = sum(map(len, texts[:3]))
    assert reported == [
        f"the tokenizer is trained on the first {read:,} characters: their distinct words have {size} bytes, of which "
        "at most 60 are held in memory",
        "learning 5 merges",
    ]


TRAIN = """
import hashlib
from edlm.data import tokenizer_kinds
from tests.memory import growth_mib

tokenizer_kinds.WORD_BYTES //= 10
letters = str.maketrans("0123456789", "ghijklmnop")
words = [hashlib.sha256(b"%d" % number).hexdigest().translate(letters) for number in range(24_000)]
print(growth_mib(lambda: tokenizer_kinds.BPE(size=260).build(words)))
"""


def test_a_text_without_repeats_is_trained_on_in_bounded_memory():
    """1.5 MB of distinct words, which need 120 MB where all are trained on; a tenth of the usual bound."""
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert 1 < float(done.stdout) < 50


def test_too_little_text_for_the_size_is_refused():
    with pytest.raises(ConfigurationError, match=r"tokenizer\.size is 5000, .* pairs for \d+ tokens only"):
        BPE(size=5000).build(TEXTS)
    with pytest.raises(ValueError, match="size 256 is below 257"):
        BPE(size=256)


def test_a_corpus_error_while_learning_arrives_as_it_was_raised():
    def broken():
        yield "some text"
        raise ConfigurationError("line 2 is broken")

    with pytest.raises(ConfigurationError, match="line 2 is broken"):
        BPE(size=300).build(broken())


def test_a_foreign_vocabulary_is_read_from_its_two_files_or_its_one(foreign, tmp_path):
    tokenizer = HuggingFaceTokenizer(uri=str(foreign)).build([])
    assert tokenizer.encode("ab ab").tolist() == [5, 6]
    assert (tokenizer.size, tokenizer.separator) == (7, 0)
    tokenizer.save(tmp_path / "one")
    for uri in (tmp_path / "one", tmp_path / "one" / "tokenizer.json"):
        assert HuggingFaceTokenizer(uri=str(uri)).build([]).digest == tokenizer.digest


def test_gpt2_is_read_as_its_makers_meant_it():
    if not DATA.is_dir():
        pytest.skip(f"the vocabulary of GPT-2 is not at {DATA}")
    tokenizer = HuggingFaceTokenizer(uri=str(DATA / "gpt2")).build([])
    assert (tokenizer.size, tokenizer.separator) == (50257, 50256)
    assert tokenizer.encode("Hello world, this is GPT-2's").tolist() == [
        15496, 995, 11, 428, 318, 402, 11571, 12, 17, 338,
    ]  # fmt: skip


def test_a_foreign_tokenizer_that_is_missing_damaged_or_lacks_the_separator_is_refused(foreign, tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"'</s>' is not in the vocabulary of .*; its special tokens are: none"
    ):
        HuggingFaceTokenizer(uri=str(foreign), separator="</s>").build([])
    with pytest.raises(ConfigurationError, match=r"nowhere: found no tokenizer\.json and no vocab\.json"):
        HuggingFaceTokenizer(uri=str(tmp_path / "nowhere")).build([])
    (tmp_path / "merges.txt").write_text("a q\n")
    with pytest.raises(ConfigurationError, match=r"damaged vocab\.json or merges\.txt"):
        HuggingFaceTokenizer(uri=str(foreign)).build([])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"not a tokenizer\.json"):
        HuggingFaceTokenizer(uri=str(tmp_path)).build([])


@pytest.mark.parametrize("tokenizer", [characters, byte_level, learnt])
def test_a_saved_tokenizer_opens_as_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    opened = open_tokenizer(tmp_path)
    for name in ("size", "separator", "digest", "special_tokens"):
        assert getattr(opened, name) == getattr(tokenizer, name)
    for text in TEXTS:
        assert opened.encode(text).tolist() == tokenizer.encode(text).tolist()
    opened.save(tmp_path / "again")
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_a_tokenizer_of_documents_opens_its_file_only_for_what_its_encoder_cannot():
    assert learnt.bulk is not None
    unopened = DocumentTokenizer("no tokenizer.json", learnt.bulk)
    for ids, expected in zip(unopened.encode_documents(TEXTS), learnt.encode_documents(TEXTS), strict=True):
        assert ids.tolist() == expected.tolist()
    assert unopened.lost("naïve 猫") == []
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        unopened.encode("cat")
    opened = DocumentTokenizer(learnt.text, learnt.bulk)
    assert [opened.encode(text).tolist() for text in TEXTS] == [learnt.encode(text).tolist() for text in TEXTS]
    same = ("size", "separator", "digest", "special_tokens")
    assert [getattr(opened, name) for name in same] == [getattr(learnt, name) for name in same]
    with pytest.raises(AttributeError, match="DocumentTokenizer has no attribute 'siez'"):
        _ = opened.siez


def test_a_folder_without_a_sound_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        open_tokenizer(tmp_path)
    learnt.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[:100])
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be used: .* restore a good copy"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_that_appends_more_than_one_separator_is_refused(tmp_path):
    learnt.save(tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    tree["post_processor"]["single"].append(tree["post_processor"]["single"][-1])
    with pytest.raises(ValueError, match="end with 2 tokens, not with one separator"):
        Tokenizer(json.dumps(tree))


@pytest.mark.parametrize("index", [-1, 27])
def test_an_id_that_is_no_token_is_not_decoded(index):
    with pytest.raises(ValueError, match=f"id {index} is no token: the vocabulary has the ids 0 to 26"):
        characters.decode([0, index])


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        byte_level.encode("a\ud800")


def test_an_unknown_word_of_known_letters_is_an_error_that_asks_for_an_unknown_token():
    rust = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    rust.add_special_tokens(["</s>"])
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = separated(rust, "</s>")
    assert tokenizer.encode("a b").tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"cannot encode the text: .* an unknown token \(unk_token\)"):
        tokenizer.encode("a ab")


def test_a_separator_that_text_spells_after_all_never_gets_into_data():
    tokenizer = Bytes().build([])
    tokenizer._rust.encode_special_tokens = False  # as if the library changed its mind
    assert len(tokenizer.encode_documents(["a", ""])) == 2
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_documents(["a", text])):
        with pytest.raises(ValueError, match=r"the text 'b<\|endoftext\|>' spells the separator"):
            encode("b<|endoftext|>")


def test_a_long_text_is_learnt_from_in_pieces_with_the_same_words(monkeypatch):
    text = "the cat sat on the mat, and the hat;\n\n  it is there " * 40
    whole = BPE(size=275).build([text])
    monkeypatch.setattr(tokenizer_kinds, "PIECE", 50)
    assert BPE(size=275).build([text]).digest == whole.digest
    pieces = list(tokenizer_kinds._pieces(text + "x" * 120))
    assert max(map(len, pieces)) <= 50
    assert "".join(pieces) == text + "x" * 120
