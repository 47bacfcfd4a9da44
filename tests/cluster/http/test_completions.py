"""Completions have OpenAI's form, say what made them, and are functions of their request and seed."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.http.schemas import requests as api
from edlm.inference.token_temperature import tempered
from tests.bundles import LENGTH
from tests.cluster.asking import COMPLETIONS, ask, error


def texts(url: str, **request) -> list[str]:
    response = ask(url, COMPLETIONS, request)
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def test_a_completion_has_openais_form_and_states_what_made_it(url):
    settings = {"steps": 16, "candidates": 8, "window": [0.25, 1.0], "energy_temperature": 2.0, "energy": "conditional"}
    response = ask(url, COMPLETIONS, {"prompt": "The 5", "max_tokens": 30, "n": 2, "seed": 1, "edlm": settings})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    assert answer["system_fingerprint"] == "7/" + "0" * 64
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(len(choice["text"]) == 30 and choice["finish_reason"] == "length" for choice in answer["choices"])
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 60, "total_tokens": 69}
    details = answer["edlm"]
    assert {**settings, "seed": 1, "model_version": "7"}.items() <= details.items()
    assert details["prompt"] == ["the five "]
    assert details["context_tokens"] == [LENGTH // 2]
    assert 1 <= details["ess"] <= 8
    assert details["energy_calls"] > details["denoiser_calls"] > 0


def test_an_empty_request_writes_with_the_models_own_settings(url):
    details = ask(url, COMPLETIONS, {}).json()["edlm"]
    assert (details["steps"], details["candidates"], details["energy"]) == (4, 2, "step")
    assert texts(url, seed=details["seed"]) == texts(url, seed=details["seed"])


def test_plain_diffusion_names_no_energy(url):
    details = ask(url, COMPLETIONS, {"edlm": {"candidates": 1}}).json()["edlm"]
    assert (details["energy"], details["ess"], details["energy_calls"]) == (None, None, 0)


def test_exact_draws_are_refused_another_temperature(url):
    refused = error(ask(url, COMPLETIONS, {"edlm": {"candidates": 0, "energy_temperature": 2.0}}), 400)
    assert refused["param"] == "edlm.energy_temperature"
    assert "at temperature 1" in refused["message"]


def test_choices_differ_repeat_on_resend_and_are_the_texts_of_their_own_seeds(url):
    first = texts(url, prompt="ab", n=3, seed=5)
    assert first == texts(url, prompt="ab", n=3, seed=5)
    assert len(set(first)) == 3
    assert [text for i in range(3) for text in texts(url, prompt="ab", seed=5 + i)] == first


def test_prompts_in_one_request_are_answered_as_if_alone(url):
    both = texts(url, prompt=["a", "bcd"], n=2, seed=5)
    assert both == [text for prompt in ("a", "bcd") for text in texts(url, prompt=prompt, n=2, seed=5)]
    assert both[:2] == texts(url, prompt=[1], n=2, seed=5)


def test_requests_at_once_give_the_texts_they_give_alone(url):
    requests = [
        {"prompt": "ab" * i, "seed": i, "max_tokens": 5 + 5 * i, "edlm": {"steps": 1 + i, "candidates": 1 + i}}
        for i in range(6)
    ]
    alone = [texts(url, **request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(lambda request: texts(url, **request), requests)) == alone


def test_the_generators_own_text_is_what_is_served(url, generator):
    sampler = generator.bundle.sampler
    (text,) = generator.write(generator.read("the "), 20, [3], sampler)
    assert texts(url, prompt="the ", max_tokens=20, seed=3) == [text.text]


def test_an_echo_begins_with_the_prompt_as_it_was_read(url):
    (text,) = texts(url, prompt="The 5", seed=1)
    assert texts(url, prompt="The 5", seed=1, echo=True) == ["the five " + text]


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_string_cuts_the_text_before_it_wherever_tokens_part(url, as_list):
    (whole,) = texts(url, prompt="ab", max_tokens=30, seed=2)
    stop = whole[11:14]
    answer = ask(
        url, COMPLETIONS,
        {"prompt": "ab" + stop, "max_tokens": 30, "seed": 2, "stop": [stop, "qqqq"] if as_list else stop},
    ).json()  # fmt: skip
    (uncut,) = texts(url, prompt="ab" + stop, max_tokens=30, seed=2)
    (choice,) = answer["choices"]
    actual = uncut.find(stop)
    assert choice["text"] == (uncut if actual < 0 else uncut[:actual])
    assert choice["finish_reason"] == ("length" if actual < 0 else "stop")
    (cut,) = texts(url, prompt="ab", max_tokens=30, seed=2, stop=stop)
    assert cut == whole[: whole.index(stop)]


def test_a_text_between_prompt_and_suffix_shares_their_canvas(url):
    (whole,) = ask(url, "/v1/infill", {"parts": ["ab", 4, "cd"], "seed": 3}).json()["choices"]
    answer = ask(url, COMPLETIONS, {"prompt": "ab", "max_tokens": 4, "suffix": "cd", "seed": 3}).json()
    (choice,) = answer["choices"]
    assert "ab" + choice["text"] + "cd" == whole["text"]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    between, stop = choice["text"], choice["text"][2]
    request = {"prompt": "ab", "max_tokens": 4, "suffix": "cd", "seed": 3, "stop": stop}
    (choice,) = ask(url, COMPLETIONS, request).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (between[: between.index(stop)], "stop")


@pytest.mark.parametrize("more", [{"n": 4}, {"best_of": 4}])
def test_a_stop_between_prompt_and_suffix_cuts_tokens_steps_and_usage_with_the_text(url, more):
    expected = {"return": ["token_ids", "trajectory"]}
    request = {
        "prompt": "ab",
        "max_tokens": 8,
        "suffix": "cd",
        "seed": 1,
        "stop": list("aeio"),
        "edlm": expected,
        **more,
    }
    answer = ask(url, COMPLETIONS, request).json()
    assert any(len(choice["text"]) < 8 for choice in answer["choices"])
    for choice in answer["choices"]:
        assert len(choice["token_ids"]) == len(choice["unmasked_at"]) == len(choice["text"])
        assert ask(url, "/v1/detokenize", {"tokens": choice["token_ids"]}).json()["text"] == choice["text"]
    if "best_of" not in more:
        written = sum(len(choice["text"]) for choice in answer["choices"])
        assert answer["usage"]["completion_tokens"] == written
        return
    # The energy is that of what is shown, without the hidden rest.
    tokens = [1, 2, *answer["choices"][0]["token_ids"], 3, 4]
    score = ask(url, "/v1/score", {"tokens": tokens, "seed": 1, "draws": 8}).json()
    shown = score["energies"]["step"]["nats"] / len(tokens)
    assert min(answer["edlm"]["best_of_energies"][0]) == pytest.approx(shown, rel=1e-5)


def test_what_does_not_fit_between_is_refused_with_the_sum(url):
    refused = error(ask(url, COMPLETIONS, {"prompt": "ab", "max_tokens": LENGTH - 3, "suffix": "cd"}), 400)
    assert refused["param"] == "suffix"
    assert f"2 + {LENGTH - 3} + 2" in refused["message"]


def test_best_of_keeps_the_texts_of_lowest_energy(url):
    request = {"prompt": ["ab", "c"], "max_tokens": 6, "seed": 1, "edlm": {"candidates": 4}}
    every = texts(url, **request, n=5)
    answer = ask(url, COMPLETIONS, {**request, "n": 2, "best_of": 5}).json()
    best = [choice["text"] for choice in answer["choices"]]
    for prompt, energies in enumerate(answer["edlm"]["best_of_energies"]):
        assert len(energies) == 5
        ranked = sorted(range(5), key=lambda i, of=energies: of[i])
        assert best[2 * prompt : 2 * prompt + 2] == [every[5 * prompt + i] for i in ranked[:2]]
    assert answer["usage"]["completion_tokens"] == 60, "all that were written count"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_best_of_ranks_by_what_score_measures(url):
    request = {"prompt": "ab", "max_tokens": 6, "seed": 1, "best_of": 2}
    answer = ask(url, COMPLETIONS, {**request, "edlm": {"return": ["token_ids"]}}).json()
    tokens = [1, 2, *answer["choices"][0]["token_ids"]]
    score = ask(url, "/v1/score", {"tokens": tokens, "seed": 1, "draws": 8}).json()
    assert min(answer["edlm"]["best_of_energies"][0]) == pytest.approx(score["energies"]["step"]["nats"] / 8, rel=1e-5)


def test_tokens_and_the_steps_that_unmasked_them_are_shown_on_request(url):
    request = {"prompt": "ab", "seed": 1, "max_tokens": 20}
    (choice,) = ask(url, COMPLETIONS, {**request, "edlm": {"return": ["token_ids", "trajectory"]}}).json()["choices"]
    assert ask(url, "/v1/detokenize", {"tokens": choice["token_ids"]}).json()["text"] == choice["text"]
    assert len(choice["unmasked_at"]) == 20
    assert min(choice["unmasked_at"]) >= 1


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 81}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "edlm": {"candidates": 1}}, "best_of"),
        ({"best_of": 2, "max_tokens": LENGTH + 1}, "best_of"),
        ({"n": 81}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"edlm": {"timeout_seconds": 1000}}, "edlm.timeout_seconds"),
    ],
)
def test_what_does_not_go_together_is_named(url, request_, param):
    assert error(ask(url, COMPLETIONS, request_), 400)["param"] == param


def test_a_temperature_is_another_distribution_and_states_so(url, generator):
    request = {"prompt": "ab", "max_tokens": 10, "seed": 3}
    plain, warm = (ask(url, COMPLETIONS, {**request, "temperature": temperature}).json() for temperature in (1, 0.7))
    assert (plain["edlm"]["temperature"], plain["edlm"]["distribution"]) == (1.0, None)
    assert (warm["edlm"]["temperature"], warm["edlm"]["distribution"]) == (0.7, "another distribution")
    assert plain["choices"][0]["text"] == texts(url, **request)[0]
    view = tempered(generator, 0.7)
    (text,) = view.write(view.read("ab"), 10, [3], view.bundle.sampler)
    assert warm["choices"][0]["text"] == text.text


@pytest.mark.parametrize("temperature", [0.009, 1e-9])
@pytest.mark.parametrize("more", [{}, {"guided_regex": "[a-z]+"}])
def test_a_temperature_close_to_zero_is_raised_as_in_vllm_and_the_answer_says_so(url, temperature, more):
    request = {"prompt": "ab", "max_tokens": 10, "seed": 3, **more}
    answers = [ask(url, COMPLETIONS, {**request, "temperature": value}).json() for value in (temperature, 0.01)]
    assert [answer["edlm"]["temperature"] for answer in answers] == [0.01, 0.01]
    assert answers[0]["choices"] == answers[1]["choices"]


@pytest.mark.parametrize(
    "settings", [{}, {"candidates": 1}, {"energy": "conditional"}, {"candidates": 0, "energy": "conditional"}]
)
def test_at_temperature_zero_one_step_of_one_position_is_the_likeliest_token(url, settings):
    request = {"prompt": "abcd", "max_tokens": 1, "temperature": 0, "edlm": {"steps": 1, **settings}}
    answer = ask(url, COMPLETIONS, {**request, "n": 6}).json()
    assert len({choice["text"] for choice in answer["choices"]}) == 1
    if settings.get("candidates") != 0:
        assert (answer["edlm"]["candidates"], answer["edlm"]["energy"]) == (1, None)


def test_texts_of_several_temperatures_at_once_are_those_of_each_alone(url):
    requests = [
        {"prompt": "ab", "seed": 1, "max_tokens": 20, "temperature": t, "edlm": {"steps": 8, "energy": energy}}
        for t in (0, 0.5, 1, 1.5) for energy in ("step", "conditional")
    ]  # fmt: skip
    alone = [texts(url, **request) for request in requests]
    assert len({text for (text,) in alone}) > 4
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(lambda request: texts(url, **request), requests)) == alone


def test_another_model_is_not_found(url):
    assert error(ask(url, COMPLETIONS, {"model": "other"}), 404)["code"] == "model_not_found"


def test_legal_values_that_are_too_much_together_are_refused_with_their_cost(url, service):
    refused = error(ask(url, COMPLETIONS, {"max_tokens": 4096, "n": 8, "edlm": {"steps": 64}}), 400)
    assert refused["code"] == "work_limit_exceeded"
    assert f"{service.endpoint.request_limits.max_work:g}" in refused["message"]
    assert service.endpoint.engine.statistics().waiting == 0


def test_a_prompt_as_long_as_the_canvas_and_longer_is_continued(url):
    for size in (LENGTH, LENGTH + 1, api.MAX_PROMPT):
        answer = ask(url, COMPLETIONS, {"prompt": "a" * size, "max_tokens": 3}).json()
        assert answer["edlm"]["context_tokens"] == [LENGTH - 3]
        assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("prompt", ["\0", "‮abc", "😀", "<script>", "ﬁ", ""])
def test_strange_text_is_read_as_the_tokenizer_reads_it(url, prompt):
    answer = ask(url, COMPLETIONS, {"prompt": prompt, "max_tokens": 3})
    assert answer.status_code == 200
    assert set(answer.json()["edlm"]["prompt"][0]) <= set(" abcdefghijklmnopqrstuvwxyz")
