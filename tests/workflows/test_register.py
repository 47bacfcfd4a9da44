"""What a bundle says of its data: the size of the training split, and excerpts of the validation split."""

from pathlib import Path

import pytest
import yaml

from edlm.config import parse
from edlm.data.preparation import prepare
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer import open_tokenizer
from tests.paths import SMALLEST
from workflows.experiment import Experiment
from workflows.register import data_card


def experiment(**register: object) -> Experiment:
    tree = yaml.safe_load(SMALLEST.read_text(encoding="utf-8"))
    tree["register"] |= register
    return parse(Experiment, tree, "the test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(experiment().data, folder, lambda _: None)
    return folder


def test_a_card_names_the_corpus_its_size_and_texts_that_were_not_trained_on(prepared):
    card = data_card(experiment(), prepared)
    assert (card.corpus, card.steps) == ("embedded", 6)
    assert card.tokens == len(TokenFile.open(prepared, "train").tokens)
    assert [len(text) for text in card.examples] == [16] * 4
    tokenizer = open_tokenizer(prepared)
    text_of_split = tokenizer.decode(TokenFile.open(prepared, "validation").tokens)
    assert all(text in text_of_split for text in card.examples)


def test_excerpts_can_be_left_out(prepared):
    assert data_card(experiment(examples=0), prepared).examples == ()
