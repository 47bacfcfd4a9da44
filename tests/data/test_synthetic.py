"""Sources reach the token files aligned: a row of every split is one sequence of the distribution."""

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models

from edlm.config import ConfigurationError, parse, plain
from edlm.data.batches import Batches, whole
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.synthetic import IN_DOCUMENT, AbstractSource, Agree, HiddenMarkov, Markov
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer import Tokenizer, open_tokenizer
from edlm.data.tokenizer_kinds import SYMBOLS, Symbols

SHARES = Shares(validation=0.2, judge=0.2)
SEQUENCES = 12 * IN_DOCUMENT + 5
SOURCES = [
    Markov(symbols=3, length=5, sequences=SEQUENCES, seed=1),
    Agree(symbols=2, length=3, sequences=SEQUENCES),
    HiddenMarkov(symbols=60, length=4, states=5, sequences=SEQUENCES, seed=1),
]
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.kind)


def data(source: AbstractSource, **changes) -> Data:
    settings = {"tokenizer": Symbols(size=source.symbols), "length": source.length, "shares": SHARES}
    return Data(corpus=source, **{**settings, **changes})


def tree(**changes) -> dict:
    """Sound settings of a source, with changes."""
    settings = {
        "corpus": {"kind": "markov", "symbols": 4, "length": 6, "sequences": 500},
        "tokenizer": {"kind": "symbols", "size": 4},
        "length": 6,
        "shares": {"validation": 0.1, "judge": 0.1},
    }
    return {**settings, **changes}


def silent(_: str) -> None:
    pass


@every_source
def test_rows_of_the_splits_are_the_sequences_each_of_them_once(tmp_path, source):
    summary = prepare(data(source), tmp_path, silent)
    drawn = source.distribution().draw(source.seed, torch.arange(source.sequences))
    actual = []
    for split in ("train", "validation", "judge"):
        file = TokenFile.open(tmp_path, split)
        assert file.separator is None
        assert len(file.tokens) % source.length == 0
        assert not np.any(file.documents % source.length)
        actual.append(whole(file, source.length, source.sequences))
    assert [len(rows) > 0 for rows in actual] == [True] * 3
    assert len(actual[0]) > len(actual[1])
    together = torch.cat(actual)
    assert summary.dropped == 0
    assert together.shape == drawn.shape
    for rows in (together, drawn):
        rows[:] = rows[torch.from_numpy(np.lexsort(rows.numpy().T))]
    assert torch.equal(together, drawn)


def test_every_batch_is_of_whole_sequences(tmp_path):
    source = SOURCES[1]
    prepare(data(source), tmp_path, silent)
    batches = Batches(TokenFile.open(tmp_path, "train"), source.length, batch=50, seed=0)
    rows = torch.cat([batches.rows(step, 0, 50).tokens for step in range(20)])
    assert bool((rows == rows[:, :1]).all())
    assert rows.unique().tolist() == [0, 1]


@every_source
def test_a_source_is_drawn_alike_every_time_and_its_splits_share_no_document(source):
    first, again = ([(d.text, split) for d, split in data(source).splits(lambda _: None).documents()] for _ in range(2))
    assert first == again
    assert len({text for text, _ in first}) == len(first)
    other = parse(type(source), {**plain(source), "seed": source.seed + 1})
    assert [d.text for d in other.documents()] != [text for text, _ in first]


def test_fewer_sequences_are_the_first_of_more():
    few, many = (Markov(length=3, sequences=count) for count in (IN_DOCUMENT, 100 * IN_DOCUMENT))
    assert [d.text for d in few.documents()] == [d.text for d in many.documents()][:1]
    assert few.distribution().entropy() == many.distribution().entropy()


@pytest.mark.parametrize("kind", ["markov", "agree", "hidden-markov"])
def test_a_source_is_named_in_the_configuration_and_written_out_whole(kind):
    settings = parse(Data, tree(corpus={"kind": kind, "symbols": 4, "length": 6}))
    assert settings.corpus.kind == kind
    assert parse(Data, plain(settings)) == settings
    assert settings.version() == parse(Data, plain(settings)).version()


def test_the_sources_without_settings_are_of_the_size_that_the_tables_are_made_with():
    markov = Markov().distribution()
    assert (markov.vocabulary, markov.length) == (8, 32)
    assert markov.entropy().mean / 32 == pytest.approx(1.36, abs=0.005)
    states = HiddenMarkov()
    assert len(states.distribution().first) == 8
    assert 1.5 < states.distribution().entropy(sequences=500).mean / 32 < 1.75


def test_the_concentrations_determine_how_sharp_a_distribution_is():
    def entropy(source: Markov | HiddenMarkov) -> float:
        return source.distribution().entropy(sequences=500).mean

    assert entropy(Markov(concentration=0.1)) < entropy(Markov(concentration=5.0))
    assert entropy(HiddenMarkov(emission_concentration=0.05)) < entropy(HiddenMarkov(emission_concentration=5.0))
    assert entropy(HiddenMarkov(move_concentration=0.01)) < entropy(HiddenMarkov(move_concentration=5.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 7}, "length is 7 and corpus.length is 6; a row is one sequence of the source"),
        ({"length": 5}, "length is 5 and corpus.length is 6; a row is one sequence of the source"),
        ({"tokenizer": {"kind": "characters"}}, r"a source of 4 symbols needs \{kind: symbols, size: 4\}"),
        ({"tokenizer": {"kind": "symbols", "size": 5}}, r"a source of 4 symbols needs \{kind: symbols, size: 4\}"),
        ({"corpus": {"kind": "embedded"}}, "tokenizer.kind symbols has no tokens for text; it is for a source"),
        (
            {"validation": {"kind": "embedded"}, "shares": {"validation": 0, "judge": 0.1}},
            "a source needs no validation corpus",
        ),
        (
            {"corpus": {"kind": "embedded"}, "validation": {"kind": "agree"}, "shares": {"validation": 0, "judge": 0}},
            "a source needs no validation corpus",
        ),
        ({"corpus": {"kind": "markov", "sequences": 0}}, r"corpus\.sequences: .*greater than or equal to 1; got 0"),
        ({"corpus": {"kind": "markov", "symbols": 4097}}, r"corpus\.symbols: .*less than or equal to 4096; got 4097"),
        ({"corpus": {"kind": "agree", "symbols": 1}}, r"corpus\.symbols: .*greater than or equal to 2; got 1"),
        ({"corpus": {"kind": "markov", "concentration": 0.0}}, r"corpus\.concentration: .*greater than 0; got 0"),
        ({"corpus": {"kind": "hidden-markov", "states": 0}}, r"corpus\.states: .*greater than or equal to 1; got 0"),
        ({"corpus": {"kind": "agree", "concentration": 1.0}}, r"corpus\.concentration: unknown key"),
        ({"tokenizer": {"kind": "symbols", "size": 4097}}, r"tokenizer\.size: .*less than or equal to 4096"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(Data, tree(**changes))


def test_too_few_sequences_for_every_split_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="the validation split has 0 documents with 0 tokens"):
        prepare(data(Markov(sequences=10)), tmp_path, silent)


@pytest.mark.parametrize("size", [2, 26, 52, 4096])
def test_symbols_are_single_letters_with_nothing_between_documents(tmp_path, size):
    tokenizer = Symbols(size=size).build([])
    ids = np.arange(size)
    text = tokenizer.decode(ids)
    assert text == SYMBOLS[:size]
    assert text.isalpha()
    assert (tokenizer.size, tokenizer.separator) == (size, None)
    assert tokenizer.encode(text).tolist() == ids.tolist()
    assert [document.tolist() for document in tokenizer.encode_documents(["ab", "", "b"])] == [[0, 1], [], [1]]
    tokenizer.save(tmp_path)
    opened = open_tokenizer(tmp_path)
    assert (opened.digest, opened.size, opened.separator) == (tokenizer.digest, size, None)
    assert opened.encode(text).tolist() == ids.tolist()


@pytest.mark.parametrize("letter", ["c", " ", "1", "ü", "\n", "\U0001f600"])
def test_a_letter_that_is_no_symbol_is_refused_and_not_passed_over(letter):
    with pytest.raises(ValueError, match="which is no symbol of this vocabulary"):
        Symbols(size=2).build([]).encode(f"ab{letter}a")


def test_other_vocabularies_still_need_something_between_documents():
    letters = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    with pytest.raises(ValueError, match="end with 0 tokens, not with one separator"):
        Tokenizer(letters.to_str())
