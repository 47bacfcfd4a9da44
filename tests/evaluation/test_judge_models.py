from typing import Annotated

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.checkpoints.model_folder import digest
from edlm.checkpoints.networks import save_autoregressive
from edlm.config import ConfigurationError, config, parse
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import BPE, Bytes
from edlm.evaluation.judge_models import (
    HuggingFaceJudge,
    Judge,
    JudgeConfig,
    Retokenizer,
    TrainedJudge,
    first_documents,
)
from edlm.storage import publish
from tests.judges import CHARACTERS, judged_by, random_bigram, written
from tests.networks import TRANSFORMER, autoregressive

LENGTH = 12
V = CHARACTERS.size
TEXTS = ["the cat sat ", "on a mat and", "looked aside"]
BYTES = Bytes().build([])


@pytest.fixture
def model(tmp_path):
    """A committed folder with an autoregressive model of characters."""
    CHARACTERS.save(tmp_path / "tokenizer")
    folder = tmp_path / "judge"
    save_autoregressive(
        folder, autoregressive(V).state_dict(), TRANSFORMER, LENGTH, tmp_path / "tokenizer" / FILE, {"note": "test"}
    )
    publish(folder, str(folder))
    return folder


def table_nats(log_p: torch.Tensor, ids: list[int]) -> float:
    return -sum(log_p[before, token].item() for before, token in zip([len(log_p) - 1, *ids], ids, strict=False))


def test_our_judge_scores_every_token_and_gives_the_features_of_the_whole_text(model):
    judge = TrainedJudge(uri=str(model)).open(CHARACTERS)
    network, texts = autoregressive(V), written(TEXTS)
    reading = judge.read(texts)
    torch.testing.assert_close(reading.nats, -network.log_p(texts).double().sum(dim=1))
    whole = torch.cat([torch.full((3, 1), network.bos), texts], dim=1)
    torch.testing.assert_close(reading.features, network.transformer(network.embedding(whole), torch.zeros(3))[:, -1])
    assert reading.characters.tolist() == reading.judge_tokens.tolist() == [LENGTH] * 3
    assert (judge.retokenised, judge.context, judge.name) == (False, LENGTH + 1, f"trained {digest(model)[:12]}")


def test_our_judge_reads_the_text_where_the_generator_has_other_tokens(model):
    pairs = BPE(size=260).build(TEXTS * 3)
    ids = [pairs.encode(text).tolist() for text in TEXTS]
    lengths = torch.tensor([len(row) for row in ids])
    texts = torch.tensor([row + [0] * (LENGTH - len(row)) for row in ids])
    judge = TrainedJudge(uri=str(model)).open(pairs)
    reading = judge.read(texts, lengths)
    assert judge.retokenised
    assert int(lengths.max()) < LENGTH
    torch.testing.assert_close(
        reading.nats, TrainedJudge(uri=str(model)).open(CHARACTERS).read(written(TEXTS)).nats, rtol=1e-6, atol=1e-5
    )
    assert reading.characters.tolist() == reading.judge_tokens.tolist() == [LENGTH] * 3


def test_documents_are_parted_by_the_judges_own_separator(model):
    text = [*b"a cat", BYTES.separator, *b"a dog"]
    reading = TrainedJudge(uri=str(model)).open(BYTES).read(torch.tensor([text]))
    # Our judge of characters knows no separator, only the space that stands between documents.
    spaced = TrainedJudge(uri=str(model)).open(CHARACTERS).read(written(["a cat a dog"]))
    torch.testing.assert_close(reading.nats, spaced.nats)
    assert reading.characters.tolist() == [11]


def test_a_text_that_spells_a_separator_does_not_end_a_document():
    spelling = Retokenizer(lambda text: BYTES.encode(text).tolist(), (256,))
    assert spelling.ids(["<|endoftext|>"]) == list(b"<|endoftext|>")
    assert spelling.ids(["a", "", "b"]) == [97, 256, 256, 98]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(2, 45), st.integers(0, 9))
def test_windows_score_every_token_once(context, length, seed):
    network = random_bigram(V)
    texts = torch.randint(V, (3, length), generator=torch.Generator().manual_seed(seed))
    reading = judged_by(network, context=context).read(texts)
    expected = [table_nats(network.log_p, ids) for ids in texts.tolist()]
    np.testing.assert_allclose(reading.nats, expected, rtol=1e-12)


class ContextCounter:
    """Its `log p` of a token is minus the tokens before it in the window; a feature is the last token read."""

    def __init__(self) -> None:
        self.log_p = torch.zeros(V + 1, V)

    def __call__(self, tokens):
        before = torch.arange(1, tokens.shape[1], dtype=torch.float64)
        return -before.expand(len(tokens), -1), tokens[..., None].double()


def test_a_text_longer_than_the_context_is_read_in_windows_that_overlap_by_half():
    # The start token and nine more, six at once: 0-5, then 3-8 of which 6-8 are new, then 6-9 of which 9 is.
    reading = judged_by(ContextCounter(), context=6).read(torch.arange(9)[None])
    assert reading.nats.item() == (1 + 2 + 3 + 4 + 5) + (3 + 4 + 5) + 3
    assert reading.features.tolist() == [[8.0]]


def test_what_stands_behind_a_text_or_beside_it_does_not_change_its_reading(model):
    judge = TrainedJudge(uri=str(model)).open(CHARACTERS)
    lengths = torch.tensor([12, 5, 9])
    together = judge.read(written(TEXTS), lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = judge.read(written([TEXTS[row][:length]]))
        torch.testing.assert_close(together.nats[row], alone.nats[0])
        torch.testing.assert_close(together.features[row], alone.features[0])
        assert together.characters[row] == together.judge_tokens[row] == length


def test_without_a_start_token_the_first_token_counts_as_the_mean_of_the_others():
    network, ids = random_bigram(V), written(["the cat"])
    reading = judged_by(network, start=False).read(ids)
    others = table_nats(network.log_p, ids[0].tolist()) + network.log_p[V, ids[0, 0]].item()
    assert reading.nats.item() == pytest.approx(others * 7 / 6)
    with pytest.raises(ValueError, match="text 0 comes to 1 tokens for the judge exact"):
        judged_by(network, start=False).read(ids[:, :1])


@pytest.mark.parametrize(("token", "shown"), [(V, "token 27"), (-1, "token -1")])
def test_masks_left_over_are_refused(token, shown):
    with pytest.raises(ValueError, match=f"{shown} is not in the texts' vocabulary of 27; masks must be filled"):
        judged_by(random_bigram(V)).read(torch.full((2, 4), token))


def test_no_text_at_all_is_refused():
    with pytest.raises(ValueError, match=r"have shape \(0, 4\); give at least one text"):
        judged_by(random_bigram(V)).read(torch.zeros(0, 4, dtype=torch.long))


def test_a_judge_without_end_of_text_does_not_guess_one():
    judge = judged_by(random_bigram(256), BYTES, spelling=Retokenizer(lambda text: [*text.encode()], None))
    with pytest.raises(ValueError, match="no end-of-text token to part them"):
        judge.read(torch.tensor([[97, 256, 98]]))


def test_a_first_document_ends_with_its_separator():
    texts = torch.tensor([[5, 6, 9, 7], [9, 9, 1, 2], [1, 2, 3, 4], [1, 2, 3, 9]])
    assert first_documents(texts, separator=9).tolist() == [3, 1, 4, 4]
    assert first_documents(texts, separator=None).tolist() == [4, 4, 4, 4]


def test_nothing_behind_the_first_document_counts():
    network = random_bigram(257)
    texts = torch.tensor([[97, 98, 256, 99, 99], [97, 98, 256, 100, 101]])
    reading = judged_by(network, BYTES).read(texts, first_documents(texts, BYTES.separator))
    expected = table_nats(network.log_p, [97, 98, 256])
    assert reading.nats.tolist() == pytest.approx([expected, expected])
    assert reading.characters.tolist() == [3, 3]


@config
class Holder:
    judge: Annotated[JudgeConfig, pydantic.Field(discriminator="kind")] = TrainedJudge()


def test_a_judge_is_chosen_by_its_kind_and_named_completely():
    assert parse(Holder, {"judge": {"kind": "trained", "uri": "here"}}).judge == TrainedJudge(uri="here")
    gpt2 = {"kind": "huggingface", "name": "gpt2", "context": 512}
    assert parse(Holder, {"judge": gpt2}).judge == HuggingFaceJudge(name="gpt2", context=512)
    with pytest.raises(ConfigurationError, match=r"judge\.uri is not set"):
        TrainedJudge().open(CHARACTERS)
    with pytest.raises(ConfigurationError, match=r"judge\.context is 1"):
        Judge("short", random_bigram(V), CHARACTERS, context=1, start=V)
