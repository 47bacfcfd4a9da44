"""What `--model_args` and a task's generation settings may hold, and how the rest is refused."""

import pytest

from edlm.config import ConfigurationError
from edlm.lm_eval.arguments import GenerationSettings, ModelArguments, generation_settings, model_arguments

GIVEN = ModelArguments(uri="folder")


def test_arguments_are_read_as_the_harness_parses_them():
    actual = model_arguments({"uri": "a@b", "bound": "nelbo", "draws": 32, "energy_temperature": 1, "batch_size": "8"})
    assert actual == ModelArguments(uri="a@b", bound="nelbo", draws=32, energy_temperature=1.0, batch_size=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bond": "nelbo"}, "--model_args: bond: unknown key; did you mean 'bound'"),
        ({"pretrained": "gpt2"}, "pretrained: unknown key"),
        ({"bound": "elbo"}, "bound: .*'sampler', 'nelbo' or 'exact_order'; got 'elbo'"),
        ({"draws": 1}, "draws: .*greater than or equal to 2; got 1"),
        ({"steps": "many"}, "steps: .*valid integer; got 'many'"),
        ({"batch_size": "auto"}, "batch_size is 'auto'; give a number"),
        ({"batch_size": "auto:4"}, "batch_size is 'auto:4'"),
        ({"batch_size": "0"}, "batch_size: .*greater than or equal to 1; got 0"),
        ({"uri": None}, "uri"),
    ],
)
def test_unknown_and_wrong_arguments_are_named(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        model_arguments({"uri": "folder", **changes})


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, GenerationSettings(256, 0.0, ())),
        ({"until": ["\n", "Q:"]}, GenerationSettings(256, 0.0, ("\n", "Q:"))),
        ({"until": "\n", "max_gen_toks": 7, "do_sample": True}, GenerationSettings(7, 1.0, ("\n",))),
        ({"do_sample": False, "temperature": 0.7, "max_tokens": 9}, GenerationSettings(9, 0.0, ())),
        ({"temperature": 0.7, "top_p": 1, "top_k": 0}, GenerationSettings(256, 0.7, ())),
        ({"do_sample": True, "temperature": 0.5, "max_gen_toks": 3, "max_tokens": 5}, GenerationSettings(3, 0.5, ())),
    ],
)
def test_a_tasks_settings_mean_what_they_mean_for_other_models(asked, expected):
    assert generation_settings(asked, GIVEN) == expected


def test_the_models_temperature_goes_before_the_tasks():
    given = ModelArguments(uri="folder", temperature=1.0, max_gen_toks=5)
    assert generation_settings({"do_sample": False}, given) == GenerationSettings(5, 1.0, ())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"top_p": 0.9}, r"generation_kwargs.top_p = 0.9 is not understood; only top_p = 1 is; this model takes until"),
        ({"logits_processor": "x"}, r"generation_kwargs.logits_processor = 'x' is not understood; this model takes"),
    ],
)
def test_settings_that_would_change_the_text_unseen_are_refused(asked, message):
    with pytest.raises(ConfigurationError, match=message):
        generation_settings(asked, GIVEN)
