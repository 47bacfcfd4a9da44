import json
import math
import re

import fsspec.core
import pytest
import torch
import yaml

from edlm.config import ConfigurationError, dump, load, parse
from edlm.data.corpus import Embedded, Files, HuggingFace
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters, HuggingFaceTokenizer
from edlm.likelihood.bounds import autoregressive_nll, nelbo, sampler_bound
from edlm.likelihood.estimate import Estimate
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from edlm.zero_shot.corpora import presets, wikitext_2
from edlm.zero_shot.detokenizers import WikiText
from edlm.zero_shot.row_conventions import Documents, Published, Wrapped
from edlm.zero_shot.scoring import ZeroShot, score
from tests.networks import autoregressive, denoiser
from tests.paths import DATA, PROJECT

COMMIT = re.compile("[0-9a-f]{40}")
CONVENTIONS = [Wrapped(), Published(), Documents()]
STORY = [f"exposé {number} , which says {'so ' * (number % 7)}much .\n" for number in range(40)]
conventions = pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda convention: convention.kind)
byte_level = Bytes().build([])


@pytest.fixture
def story(tmp_path):
    """Makes a zero-shot corpus of STORY, or of the texts given."""

    def make(texts=STORY, **settings) -> ZeroShot:
        path = tmp_path / "story.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return ZeroShot(name="story", corpus=Files(paths=(str(path),)), **settings)

    return make


def constant(nats_per_token):
    """A model that finds all tokens alike."""
    return lambda rows, _: Estimate(torch.full((len(rows),), rows.shape[1] * nats_per_token, dtype=torch.float64), 1)


@conventions
@pytest.mark.parametrize("limit", [None, 3])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(story, convention, limit):
    passages = story(convention=convention, limit=limit).passages(byte_level, 16)
    result = score(passages, constant(math.log(257)), seed=0, batch=4)
    assert result.perplexity == pytest.approx(257)
    assert result.standard_error == pytest.approx(0, abs=1e-12)
    assert result.tokens == sum(block.numel() for block in passages.cut.blocks)
    assert (result.share == 1) == (convention == Documents() and limit is None)


def test_a_corpus_is_counted_as_written_and_as_scored(story):
    counts = story(["a @-@ b\n\nc", "é d \n"], detokenizer=WikiText()).passages(byte_level, 4).counts
    assert (counts.documents, counts.words, counts.lines) == (2, 6, 4)
    assert (counts.characters, counts.bytes, counts.tokens) == (10, 11, 13)  # "a-b\n\nc" and "é d\n"


def test_a_corpus_of_many_batches_is_read_whole(story, monkeypatch):
    whole = story().passages(byte_level, 16)
    monkeypatch.setattr("edlm.data.text_batches.BYTES", 100)
    pieces = story().passages(byte_level, 16)
    assert torch.equal(whole.cut.blocks[0], pieces.cut.blocks[0])
    assert whole.counts == pieces.counts


def test_units_of_text_do_not_depend_on_the_tokenizer(story):
    """Models that give the whole corpus the same probability agree in bits per byte and word perplexity."""
    nats, results = 1000.0, []
    for tokenizer in (byte_level, BPE(size=280).build(STORY)):
        passages = story(convention=Documents(), detokenizer=WikiText()).passages(tokenizer, 16)
        results.append(score(passages, constant(nats / passages.counts.tokens), seed=0, batch=100))
    short, long = results
    assert short.tokens > long.tokens
    assert short.perplexity < long.perplexity
    restored = [WikiText().detokenize(text) for text in STORY]
    words = sum(len(text.split()) for text in STORY) + len(STORY)
    for result in results:
        assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len("".join(restored).encode()))
        assert result.word_perplexity == pytest.approx(math.exp(nats / words))


def test_rows_stand_for_the_share_of_the_text_that_they_hold(story):
    """The ends of a published row are scored, but hold no text."""
    passages = story(convention=Published()).passages(byte_level, 16)
    result = score(passages, constant(1.0), seed=0, batch=8)
    (rows,) = passages.cut.blocks
    assert result.tokens == 16 * len(rows)
    assert result.share == 14 * len(rows) / passages.counts.tokens
    assert result.bits_per_byte == pytest.approx(16 / 14 / math.log(2) * passages.counts.tokens / passages.counts.bytes)


def test_perplexity_is_that_of_the_corpus_and_no_mean_of_perplexities(story):
    passages = story().passages(byte_level, 16)
    nats = torch.arange(len(passages.cut.blocks[0])).double()
    result = score(passages, lambda rows, _: Estimate(nats[: len(rows)], 1), seed=0, batch=10**6)
    assert result.perplexity == pytest.approx(math.exp(nats.mean().item() / 16))
    assert result.standard_error == pytest.approx(result.estimate.standard_error / 16)


def test_rows_of_several_lengths_count_by_their_lengths(story):
    """The standard error is that of a ratio of means: it vanishes where nats are in proportion to lengths."""
    passages = story(["a", "bcd", "efghi"], convention=Documents()).passages(byte_level, 4)
    given = iter([2.0, 4.0, 12.0, 8.0])  # the rows have 2, 2, 4 and 4 tokens
    result = score(passages, lambda rows, _: Estimate(torch.tensor([next(given) for _ in rows]).double(), 1), 0, 1)
    assert result.lengths.tolist() == [2, 2, 4, 4]
    mean = 26 / 12
    assert result.nats_per_token == pytest.approx(mean)
    off = [2 - 2 * mean, 4 - 2 * mean, 12 - 4 * mean, 8 - 4 * mean]
    assert result.standard_error == pytest.approx(math.sqrt(sum(x * x for x in off) * 4 / 3) / 12)


def test_a_single_row_has_no_standard_error(story):
    result = score(story(limit=1).passages(byte_level, 16), constant(1.0), seed=0, batch=8)
    assert math.isnan(result.standard_error)


@conventions
def test_the_models_of_the_project_are_scored(story, convention):
    passages = story(STORY[:8], convention=convention).passages(byte_level, 12)
    causal, reader, schedule = autoregressive(257), denoiser(257), LogLinear()
    exact = score(passages, lambda rows, _: autoregressive_nll(rows, causal), seed=0, batch=16)
    direct = torch.cat([-causal.log_p(block).double().sum(-1) for block in passages.cut.blocks])
    torch.testing.assert_close(exact.estimate.values, direct, atol=1e-3, rtol=0)
    assert exact.nats_per_token == pytest.approx(direct.sum().item() / exact.tokens, rel=1e-5)
    bounds = [
        lambda rows, seed: nelbo(rows, reader, schedule, seed, draws=2),
        lambda rows, seed: sampler_bound(rows, reader, None, schedule, Sampler(steps=2), seed, draws=1),
    ]
    for bound in bounds:
        result = score(passages, bound, seed=0, batch=16)
        assert 1 < result.nats_per_token < 20
        assert result.estimate.values.tolist() == score(passages, bound, seed=0, batch=16).estimate.values.tolist()


def test_no_two_batches_share_their_noise(story):
    passages, seen = story().passages(byte_level, 16), []

    def nll(rows, seed):
        seen.append(seed)
        return constant(1.0)(rows, seed)

    score(passages, nll, seed=0, batch=8)
    score(passages, nll, seed=1, batch=8)
    assert len(set(seen)) == len(seen) == 2 * math.ceil(len(passages.cut.blocks[0]) / 8)


def test_a_likelihood_that_is_not_a_number_ends_it(story):
    passages = story().passages(byte_level, 16)
    values = torch.ones(len(passages.cut.blocks[0])).double()
    values[9] = math.nan
    rows = iter(values.split(8))
    with pytest.raises(ValueError, match="story: the likelihood of row 8 or a later one is nan"):
        score(passages, lambda *_: Estimate(next(rows), 1), seed=0, batch=8)


@conventions
def test_a_result_states_how_it_was_made(story, convention):
    passages = story(convention=convention, limit=2, detokenizer=WikiText()).passages(byte_level, 16)
    output = score(passages, constant(math.log(257)), seed=0, batch=8).describe()
    assert "story: perplexity 257.00 (5.5491 +- 0.0000 nats per token)" in output
    assert "detokeniser wikitext; rows of 16 tokens, at most 2 of them" in output
    assert convention.describe() in output


def test_a_corpus_without_text_is_refused(story):
    with pytest.raises(ConfigurationError, match=r"story: the corpus holds no text; check its paths, split"):
        story([" ", "\n"]).passages(byte_level, 16)


@pytest.mark.parametrize("convention", [Wrapped(), Published()])
def test_a_text_shorter_than_the_context_is_refused(story, convention):
    expected = r"story: 4 tokens in 1 documents do not fill one row of length 7; .* or convention\.kind document"
    with pytest.raises(ValueError, match=expected):
        story(["abc"], convention=convention).passages(byte_level, 7)
    assert story(["abc"], convention=Documents()).passages(byte_level, 7).cut.blocks[0].shape == (1, 4)


def test_text_that_is_not_utf8_is_refused_by_its_corpus(tmp_path):
    (tmp_path / "a.txt").write_bytes("schön".encode("latin1"))
    corpus = ZeroShot(name="a", corpus=Files(paths=(f"{tmp_path}/a.txt",)))
    with pytest.raises(ConfigurationError, match=r"a\.txt is not UTF-8"):
        corpus.passages(byte_level, 4)


def test_a_tokenizer_without_separator_scores_wrapped_rows_only(story):
    letters = Characters().build([])
    passages = story().passages(letters, 16)
    assert score(passages, constant(math.log(27)), seed=0, batch=8).perplexity == pytest.approx(27)
    with pytest.raises(ConfigurationError, match="this one has none; set convention"):
        story(convention=Published()).passages(letters, 16)


def test_the_seven_are_written_and_read_as_yaml(tmp_path):
    actual = presets(Published(), limit=100)
    assert [preset.name for preset in actual] == [
        "ptb",
        "wikitext-103",
        "lm1b",
        "lambada",
        "ag-news",
        "pubmed",
        "arxiv",
    ]
    for preset in actual:
        (tmp_path / "one.yaml").write_text(dump(preset), encoding="utf-8")
        assert load(ZeroShot, tmp_path / "one.yaml") == preset
        assert (preset.convention, preset.limit) == (Published(), 100)


def test_the_seven_are_those_of_the_experiment_on_openwebtext():
    evaluate = yaml.safe_load((PROJECT / "workflows" / "experiments" / "owt.yaml").read_text())["evaluate"]
    assert tuple(parse(ZeroShot, corpus) for corpus in evaluate["zero_shot"]) == presets(Published())


def test_the_seven_lie_on_the_hub_at_a_commit():
    pytest.importorskip("huggingface_hub")
    for preset in presets(Wrapped()):
        if isinstance(preset.corpus, HuggingFace):
            assert preset.corpus.name.count("/") == 1
            assert COMMIT.fullmatch(preset.corpus.revision or "")
            continue
        assert isinstance(preset.corpus, Files)
        (path,) = preset.corpus.paths
        system, remote = fsspec.core.url_to_fs(path)
        assert (system.protocol, remote) == ("hf", path.removeprefix("hf://"))
        revision = "refs" if preset.name == "pubmed" else COMMIT  # of PubMed no commit was known
        assert re.fullmatch(revision, re.split("[@/]", path)[5])


@pytest.mark.parametrize(("split", "words", "with_ends"), [("valid", 213_886, 217_646), ("test", 241_211, 245_569)])
def test_wikitext_2_has_the_words_that_everyone_counts(split, words, with_ends):
    path = DATA / "wikitext-2" / f"{split}.txt"
    if not path.is_file():
        pytest.skip("WikiText-2 is not beside this checkout (shared/data)")
    passages = wikitext_2(str(path), Published(), limit=8).passages(byte_level, 128)
    assert passages.counts.words == words
    assert passages.counts.words + passages.counts.lines == with_ends
    assert passages.counts.tokens == passages.counts.bytes + 1
    result = score(passages, constant(math.log(257)), seed=0, batch=8)
    expected = math.exp(math.log(257) * 128 / 126 * passages.counts.tokens / with_ends)
    assert result.word_perplexity == pytest.approx(expected)


def test_the_tokens_of_gpt2_decode_to_wikitext_2():
    if not (DATA / "gpt2").is_dir():
        pytest.skip("GPT-2's vocabulary is not beside this checkout (shared/data)")
    path = DATA / "wikitext-2" / "valid.txt"
    tokenizer = HuggingFaceTokenizer(uri=str(DATA / "gpt2")).build([])
    passages = wikitext_2(str(path), Published()).passages(tokenizer, 1024)
    (rows,) = passages.cut.blocks
    assert rows[:, 0].eq(50_256).all()
    assert rows[:, -1].eq(50_256).all()
    text = tokenizer.decode(rows[:, 1:-1].flatten().tolist())
    whole = WikiText().detokenize(path.read_text(encoding="utf-8"))
    assert whole.startswith(text)
    assert 0 <= passages.counts.tokens - passages.cut.held < 1022


def test_a_corpus_of_its_own_python_is_scored_without_files():
    passages = ZeroShot(name="python", corpus=Embedded(), limit=2).passages(byte_level, 64)
    assert score(passages, constant(math.log(257)), seed=0, batch=8).perplexity == pytest.approx(257)
