"""A notebook's way to a model: what is asked by name, texts that print, and mistakes that are told."""

import functools
import math
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.checkpoints.networks import OpenDenoiser
from edlm.config import ConfigurationError
from edlm.constraints.specification import Regex
from edlm.data.tokenizer_kinds import Bytes, HuggingFaceTokenizer
from edlm.energies.compose import Reward, WeightedSum
from edlm.inference.components import Bundle
from edlm.inference.generator import TextGenerator, VersionedGenerator, open_bundle
from edlm.inference.language_model import LanguageModel
from edlm.inference.results import MASK
from edlm.inference.stop_strings import cut
from edlm.models.denoiser import Denoiser
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.bundles import LENGTH, make_bundle
from tests.chats import make_chat_bundle
from tests.networks import TRANSFORMER, stirred
from tests.vocabularies import GivenTokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    folder = make_bundle(tmp_path_factory.mktemp("model"))
    return LanguageModel(VersionedGenerator(open_bundle(folder), "1"))


def without_energy(tokenizer: Bytes | GivenTokenizer) -> LanguageModel:
    built = tokenizer.build([])
    denoiser = OpenDenoiser(stirred(Denoiser(TRANSFORMER, built.size), seed=1), LogLinear(), LENGTH, Path())
    generator = TextGenerator(Bundle(name="plain", sampler=Sampler(steps=3)), denoiser, {}, built)
    return LanguageModel(VersionedGenerator(generator, "1"))


def test_the_texts_are_the_generators_own_one_for_each_seed(model):
    made = model.generate("ab", n=3, max_tokens=20, steps=6, candidates=3, energy="conditional", seed=7)
    prompt = model.generator.read("ab")
    sampler = Sampler(steps=6, candidates=3)
    written = model.generator.write(prompt, 20, [7, 8, 9], sampler, "conditional")
    assert [(text.seed, text.text, text.tokens) for text in made] == [(t.seed, t.text, t.tokens) for t in written]
    assert (made.seed, made.prompt, made.settings.energy, made.settings.sampler) == (7, "ab", "conditional", sampler)


def test_what_is_not_said_is_as_registered(model):
    made = model.generate("ab", seed=1)
    assert (made.settings.sampler, made.settings.energy) == (Sampler(steps=4, candidates=2), "step")
    assert len(made[0].tokens) == 16


def test_a_drawn_seed_is_reported_and_makes_the_same_texts_again(model):
    first, second = model.generate("ab", n=2), model.generate("ab", n=2)
    assert first.seed != second.seed
    assert model.generate("ab", n=2, seed=first.seed).texts == first.texts


def test_a_result_prints_as_its_text(model):
    first, two = model.generate("ab", seed=3), model.generate("ab", n=2, seed=3)
    assert str(first) == first.text == str(first[0]) == first.texts[0].text
    assert str(two) == f"[0] {two[0].text}\n[1] {two[1].text}"
    assert repr(first).startswith("Generation(steps=4, candidates=2, energy='step', seed=3, ")
    assert repr(first).endswith(f"\n  [0] {first.text!r}")
    with pytest.raises(ValueError, match="holds 2 texts"):
        _ = two.text
    assert repr(model) == (
        "LanguageModel('tiny', 12 tokens, energies: conditional, step; default: steps=4, candidates=2, energy='step')"
    )


def test_continuing_puts_the_text_before_what_follows(model):
    new, whole = model.generate("ab", max_tokens=9, seed=2), model.continue_("ab", max_tokens=9, seed=2)
    assert whole.text == "ab" + new.text
    assert whole[0].tokens == (*model.generator.read("ab"), *new[0].tokens)


def test_logprobs_of_an_infill_are_those_of_its_new_tokens_and_change_no_text(model):
    filled = model.infill(["ab", 3, "c"], logprobs=2, seed=5)
    assert [one is None for one in filled[0].logprobs] == [True, True, False, False, False, True]
    assert all(one.log_p <= one.likeliest[0][1] for one in filled[0].logprobs if one is not None)
    assert filled.text == model.infill(["ab", 3, "c"], seed=5).text
    *_, last = model.stream("ab", logprobs=0, seed=5)
    assert len(last.generation[0].logprobs) == len(last.generation[0].tokens)


def test_infilling_keeps_the_parts_and_fills_between_them(model):
    filled = model.infill(["ab", 3, "c"], n=2, seed=5)
    tokens = [*model.generator.read("ab"), None, None, None, *model.generator.read("c")]
    assert filled.texts == model.infill(tokens=tokens, n=2, seed=5).texts
    assert all((text.text[:2], len(text.tokens), text.text[5:]) == ("ab", 6, "c") for text in filled)


def test_a_score_is_the_generators_own_and_prints_its_numbers(model):
    score = model.score("abc", draws=4, steps=5, candidates=2, energy="step", seed=1)
    direct = model.generator.score(model.generator.read("abc"), 1, 4, Sampler(steps=5, candidates=2), "step")
    assert (score.bound.mean, score.nelbo.mean) == (direct.bound.mean, direct.nelbo.mean)
    assert set(score.energies) == {"step", "conditional"}
    assert f"nelbo {direct.nelbo.mean:.2f} ± {direct.nelbo.standard_error:.2f} nats" in str(score)
    assert f"({direct.bound.mean / 3:.3f} per token): steps=5, candidates=2, energy='step'" in repr(score)


def test_a_score_given_a_prompt_is_of_the_text_alone_and_says_what_is_exact(model):
    score = model.score("cd", prompt="ab", candidates=1, draws=4, seed=1, exact_order=True)
    assert (score.text, score.prompt, score.tokens) == ("cd", "ab", 2)
    per_token = score.exact_order / 2
    assert str(score).splitlines()[0] == "'cd' after 'ab', 2 tokens"
    assert (
        f"exact {score.exact_order:.2f} nats ({per_token:.3f} per token): most certain first in fixed counts (another "
        "distribution)"
    ) in str(score)
    assert model.score("cd", prompt="ab", candidates=1, exact_order=True, seed=99).exact_order == score.exact_order
    assert model.score("cd", draws=4, seed=1).exact_order is None


def test_one_token_after_a_prompt_has_one_likelihood_whatever_computes_it(model):
    score = model.score("c", prompt="ab", candidates=1, steps=1, draws=4, seed=1, exact_order=True)
    assert score.bound.mean == pytest.approx(score.exact_order, rel=1e-6)
    assert score.bound.standard_error < 1e-6
    exact = model.score("c", prompt="ab", candidates=0, energy="conditional", steps=1, draws=4, exact_order=True)
    assert exact.bound.mean == pytest.approx(exact.exact_order, rel=1e-6)
    assert exact.exact_order != score.exact_order


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**53), stop=st.sampled_from([(), ("e",), ("th", "a ")]), length=st.integers(1, 30))
def test_a_stream_joined_is_the_text_and_its_canvas_fills(model, seed, stop, length):
    states = list(model.stream("ab", max_tokens=length, steps=5, stop=stop, seed=seed))
    made = model.generate("ab", max_tokens=length, steps=5, stop=stop, seed=seed)
    assert "".join(map(str, states)) == made.text == states[-1].canvas
    assert states[-1].generation is not None
    assert states[-1].generation.texts == made.texts
    assert all(state.canvas.count(MASK) == state.masked and len(state.canvas) == length for state in states[:-1])
    masked = [state.masked for state in states]
    assert masked == sorted(masked, reverse=True)
    assert all(state.generation is None for state in states[:-1])


def test_a_stop_string_ends_the_text(model):
    whole = model.generate("ab", max_tokens=30, seed=11).text
    stopped = model.generate("ab", max_tokens=30, seed=11, stop=whole[3:5])
    assert stopped.text == whole[: cut(whole, [whole[3:5]])]
    assert stopped[0].finish_reason == "stop"


def test_a_temperature_of_0_takes_the_likeliest_tokens_and_needs_no_candidates(model):
    made = model.generate("ab", temperature=0, seed=1)
    assert (made.settings.energy, made.settings.sampler.candidates, made.distribution.temperature) == (None, 1, 0)
    assert model.generate("ab", temperature=0.5, seed=1).settings.energy == "step"


def test_tokens_are_read_where_a_text_is(model):
    assert model.generate(model.generator.read("ab"), seed=1).texts == model.generate("ab", seed=1).texts
    assert model.score(model.generator.read("ab"), seed=1).text == "ab"


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("generate", {"n": 0}, "n is 0; give an integer of at least 1"),
        ("generate", {"max_tokens": 0}, "max_tokens is 0; give an integer of at least 1"),
        ("generate", {"max_tokens": "8"}, "max_tokens is '8'; give an integer of at least 1"),
        ("generate", {"steps": 0}, "steps: .*greater than or equal to 1; got 0"),
        ("generate", {"steps": 2.5}, "steps: .*valid integer; got 2.5"),
        ("generate", {"candidates": -1}, "candidates: .*greater than or equal to 0; got -1"),
        ("generate", {"energy": "coar"}, "energy 'coar' is not in this model; it has: conditional, step"),
        ("generate", {"candidates": 0}, r"candidates is 0 \(exact\), and energy 'step' is not normalised"),
        ("generate", {"window": (0.5,)}, r"window is \(from, to\), two times from 0 to 1; got \(0.5,\)"),
        ("generate", {"stop": 5}, "stop is a text or a list of texts; got 5"),
        ("infill", {"parts": ["a", 2.5]}, "parts is a list of texts and of numbers"),
        ("generate", {"window": (0.5, 0.1)}, r"window is \[from, to\] with 0 <= from <= to <= 1"),
        ("generate", {"temperature": 3}, "temperature is 3; give 0, .* or 0.01 to 2"),
        ("generate", {"temperature": math.nan}, "temperature is nan"),
        ("generate", {"top_k": 0}, "top_k is 0; give an integer of at least 1"),
        ("infill", {"parts": ["a", 1], "top_p": 1.5}, "top_p is 1.5; give 0 to 1"),
        ("stream", {"logprobs": -1}, "logprobs is -1; give an integer of at least 0"),
        ("generate", {"constraint": "a+"}, "constraint is 'a.'; give edlm.Regex, edlm.OneOf or edlm.JsonSchema"),
        ("generate", {"top_k": 2, "constraint": Regex(pattern="a+")}, "top_k and top_p may leave no token that a"),
        ("generate", {"seed": 2**63}, f"seed is {2**63}; give an integer from {-(2**63)}"),
        ("generate", {"seed": "one"}, "seed is 'one'"),
        ("generate", {"stop": ["a", ""]}, "a stop string is empty"),
        ("generate", {"prompt": ["ab", "cd"]}, r"a prompt is one text, .* got \['ab', 'cd'\]"),
        ("generate", {"prompt": [3, 27]}, "token 27 is not in the vocabulary"),
        ("stream", {"max_tokens": 0}, "max_tokens is 0"),
        ("infill", {}, "give parts or tokens"),
        ("infill", {"parts": "ab"}, r"parts is a list of texts .* got 'ab'"),
        ("infill", {"parts": ["ab", 0]}, r"parts is a list of texts .* got \['ab', 0\]"),
        ("infill", {"parts": ["ab", LENGTH]}, f"{LENGTH + 2} positions do not fit the model's canvas of {LENGTH}"),
        ("score", {"text": "a" * (LENGTH + 1)}, f"the text has {LENGTH + 1} tokens; a score needs 1 to {LENGTH}"),
        ("score", {"text": ""}, "the text has 0 tokens"),
        ("score", {"text": "ab", "prompt": "a" * LENGTH}, f"2 tokens after a prompt of {LENGTH}; a score needs 1 to"),
        ("score", {"text": "ab", "exact_order": True}, "candidates is 2: the probability of the chosen one is a mean"),
        ("score", {"text": "ab", "draws": 1}, "draws is 1; give an integer of at least 2"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_take_is_reported(model, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(**arguments)


def test_an_unknown_argument_is_named(model):
    with pytest.raises(TypeError, match="max_length"):
        model.generate("ab", max_length=3)


def test_a_model_without_energies_writes_and_states_what_it_lacks():
    model = without_energy(Bytes())
    assert len(model.generate("é", max_tokens=20, seed=1)[0].tokens) <= 20
    with pytest.raises(ValueError, match="candidates is 2, and this model has no energy to choose with"):
        model.generate("é", candidates=2)
    with pytest.raises(ValueError, match="'step' is not in this model; it has: none"):
        model.generate("é", energy="step")


def test_a_conversation_is_a_prompt_in_the_form_of_the_denoisers_chat_template(model, tmp_path):
    tuned = LanguageModel(VersionedGenerator(open_bundle(make_chat_bundle(tmp_path)), "1"))
    config = HuggingFaceTokenizer(uri=str(tmp_path / "tokenizer"), separator="<|im_end|>")
    chat, tokenizer = config.chat_template(), config.build([])
    prompt = tuned.conversation([{"role": "user", "content": "hello <|im_end|>"}])
    assert prompt == tuple(chat.prompt(tokenizer, [("user", "hello <|im_end|>")]).tolist())
    assert prompt.count(tokenizer.separator) == 1
    made = tuned.generate(prompt, seed=1)
    assert made.prompt == "<|im_start|>user\nhello <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert made.texts == tuned.generate(prompt, seed=1).texts
    with pytest.raises(ValueError, match="a message has the role None"):
        tuned.conversation([{"content": "hello"}])
    with pytest.raises(ValueError, match="'tiny' was trained on no conversations, and has no chat template"):
        model.conversation([{"role": "user", "content": "hello"}])


# ---------------------------------------------------------------- composed energies


@pytest.fixture(scope="module")
def steered(model) -> LanguageModel:
    liked = Reward(lambda texts: [text.count("e") for text in texts], model.generator.tokenizer, model.generator.mask)
    both = WeightedSum([(1.0, model.generator.energies["step"]), (4.0, liked)])
    return model.with_energy("liked", liked).with_energy("both", both)


def test_a_composed_energy_generates_and_scores_by_its_name(model, steered):
    settings = {"max_tokens": 12, "n": 8, "steps": 2, "seed": 3}
    plain = steered.generate("", candidates=1, **settings)
    for energy in ("liked", "both"):
        liked = steered.generate("", candidates=24, energy=energy, **settings)
        assert str(liked).count("e") >= str(plain).count("e") + 8
        assert str(steered.generate("", candidates=24, energy=energy, **settings)) == str(liked)
    assert steered.score("he", energy="both", candidates=4, seed=1).energies["liked"].mean == -1.0
    with pytest.raises(ValueError, match="energy 'liked' is not normalised"):
        steered.generate("", candidates=0, energy="liked")
    with pytest.raises(ConfigurationError, match="the model has an energy 'liked' already"):
        steered.with_energy("liked", steered.generator.energies["step"])
    assert model.energies == ("conditional", "step")


def test_a_reward_is_not_copied_for_another_token_temperature(model):
    lock = threading.Lock()  # cannot be copied

    def even(texts: list[str], held: threading.Lock) -> list[float]:
        with held:
            return [float(len(text) % 2) for text in texts]

    reward = Reward(functools.partial(even, held=lock), model.generator.tokenizer, model.generator.mask)
    model.with_energy("even", reward).generate("ab", energy="even", candidates=3, temperature=0.5, seed=1)
