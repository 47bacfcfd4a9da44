"""Log-probabilities are those of p_theta where a token was drawn, and of a prompt exact from left to right."""

import pytest
import torch

from edlm.cooperative_work import run_to_end
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.offline_generation import run_sequences
from edlm.inference.request import Request
from edlm.inference.sequence import RunningSequence
from edlm.inference.token_logprobs import left_to_right, token_logprobs
from edlm.inference.token_temperature import tempered
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle

COUNT = 3


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> TextGenerator:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("logprobs")))


def log_p(generator, xt, t, position):
    """Return log p_theta of every token at one position of one canvas."""
    where = torch.zeros_like(xt, dtype=torch.bool)
    where[0, position] = True
    network = generator.denoiser.network
    return network.log_p(network.read(xt, torch.tensor([t], dtype=torch.float64)), where)[0]


def written(generator, request) -> RunningSequence:
    sequence = RunningSequence(request, generator)
    for _ in run_sequences([sequence]):
        pass
    return sequence


@pytest.mark.parametrize(("candidates", "energy"), [(1, None), (3, "step"), (3, "conditional"), (0, "conditional")])
def test_each_generated_token_has_the_probability_of_its_step(generator, candidates, energy):
    steps, prompt = 4, (1, 2, 3)
    sequence = written(
        generator, Request(prompt, LENGTH - 3, 5, Sampler(steps=steps, candidates=candidates), energy, logprobs=COUNT)
    )
    now = sequence.progress
    assert now.logprobs is not None
    for position, (token, at, found) in enumerate(zip(now.tokens, now.unmasked_at, now.logprobs, strict=True)):
        xt = torch.full((1, LENGTH), generator.mask)
        xt[0, :3] = torch.tensor(prompt)
        for other, (known, step) in enumerate(zip(now.tokens, now.unmasked_at, strict=True)):
            if step < at:
                xt[0, 3 + other] = known
        expected = log_p(generator, xt, 1 - (at - 1) / steps, 3 + position)
        assert found is not None
        assert found.token == token
        assert found.log_p == pytest.approx(expected[token].item(), abs=1e-4)
        assert [value for _, value in found.likeliest] == pytest.approx(expected.topk(COUNT).values.tolist(), abs=1e-4)


def test_no_temperature_changes_them(generator):
    request = Request((1, 2), 1, 5, Sampler(steps=1), None, logprobs=COUNT)
    cold = written(tempered(generator, 0.0), request).progress
    (found,) = cold.logprobs or ()
    assert found is not None
    assert found.log_p == found.likeliest[0][1] < 0
    assert cold.tokens == (found.likeliest[0][0],)


def test_nothing_is_recorded_unless_it_is_asked_for(generator):
    assert written(generator, Request((1, 2), 4, 5, Sampler(steps=2), None)).progress.logprobs is None


def test_a_text_keeps_its_tokens_with_and_without_logprobs_beyond_one_canvas(generator):
    plain, recorded = (
        written(
            generator, Request((1, 2), 2 * LENGTH, 5, Sampler(steps=3, candidates=2), None, logprobs=count)
        ).progress
        for count in (None, COUNT)
    )
    assert plain.tokens == recorded.tokens
    assert [one.token for one in recorded.logprobs or () if one is not None] == list(plain.tokens)


def test_from_left_to_right_each_token_follows_those_before_it(generator):
    tokens = [5, 1, 2, 8, 9, 3, 1]
    found = run_to_end(left_to_right(tokens, generator, COUNT))
    for position, one in enumerate(found):
        xt = torch.full((1, LENGTH), generator.mask)
        xt[0, :position] = torch.tensor(tokens[:position])
        expected = log_p(generator, xt, 1 - position / LENGTH, position)
        assert one.log_p == pytest.approx(expected[tokens[position]].item(), abs=1e-4)
        assert one.likeliest[0][0] == expected.argmax()


@pytest.mark.parametrize("count", [LENGTH - 1, LENGTH, LENGTH + 1, 3 * LENGTH + 1])
def test_a_long_text_is_read_half_a_canvas_at_a_time(generator, count):
    tokens = [1 + i % 20 for i in range(count)]
    found = run_to_end(left_to_right(tokens, generator, 0))
    assert [one.token for one in found] == tokens
    if count > LENGTH:  # the first token beyond the canvas is read after the half of it
        again = run_to_end(left_to_right(tokens[LENGTH - LENGTH // 2 : LENGTH + 1], generator, 0))
        assert found[LENGTH].log_p == pytest.approx(again[LENGTH // 2].log_p, abs=1e-5)


def test_what_is_no_number_is_an_error():
    with pytest.raises(FloatingPointError, match="not a number"):
        token_logprobs(torch.full((1, 2), torch.nan), torch.tensor([0]), 1)
