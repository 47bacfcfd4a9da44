"""What the methods of a client send: the fields, the settings and the options that it is given, merged."""

import pytest

from edlm.client.settings import Settings


def test_a_request_without_a_seed_is_given_one_that_can_be_sent_again(client, protocol):
    seeds = {client.complete("x").details.seed for _ in range(3)}
    assert seeds == {asked["seed"] for asked in protocol.asked}
    assert len(seeds) == 3


def test_texts_without_a_seed_are_independent_and_with_one_as_the_service_has_it(client, protocol):
    client.complete("x", n=2)
    client.infill(["a", 1])
    list(client.stream("x"))
    list(client.stream_infill(["a", 1]))
    assert [asked["edlm"] for asked in protocol.asked] == [{"streams": "independent"}] * 4
    client.complete("x", seed=1)
    client.complete("x", settings=Settings(streams="shared"))
    assert [asked["edlm"] for asked in protocol.asked[4:]] == [{}, {"streams": "shared"}]


def test_settings_and_fields_are_sent_together(client, protocol):
    window = Settings(window=(0.5, 1.0), candidates=2)
    client.complete("x", seed=1, edlm={"steps": 4})
    client.complete("x", seed=1, settings=window, edlm={"steps": 4, "window": [0.5, 1.0], "energy": None})
    client.infill(["a", 1], seed=1, edlm={"steps": 4})
    client.score("a", edlm={"steps": 4})
    list(client.stream("x", seed=1, edlm={"steps": 4}))
    list(client.stream_infill(["a", 1], seed=1, edlm={"steps": 4}))
    client.complete("x", seed=1, settings=Settings(candidates=2), steps=4, window=(0.5, 1.0))
    merged = {"steps": 4, "window": [0.5, 1.0], "candidates": 2}
    assert [asked["edlm"] for asked in protocol.asked] == [{"steps": 4}, merged, *[{"steps": 4}] * 4, merged]
    assert not {"steps", "window"} & set(protocol.asked[-1])


def test_the_distribution_of_the_tokens_and_their_logprobs_are_fields(client, protocol):
    asked = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    client.complete("x", logprobs=2, **asked)
    list(client.stream("x", logprobs=2, **asked))
    client.infill(["a", 1], **asked)
    list(client.stream_infill(["a", 1], **asked))
    for sent, logprobs in zip(protocol.asked, (2, 2, None, None), strict=True):
        assert asked.items() <= sent.items()
        assert sent.get("logprobs") == logprobs


class FromElsewhere:
    request_form = {"choice": ["a", "b"]}  # noqa: RUF012


@pytest.mark.parametrize("constraint", [FromElsewhere(), {"choice": ["a", "b"]}])
def test_a_constraint_is_a_part_of_the_settings(client, protocol, constraint):
    client.complete("x", constraint=constraint, steps=4)
    list(client.stream("x", constraint=constraint))
    client.infill(["a", 1], constraint=constraint, edlm={"steps": 4})
    list(client.stream_infill(["a", 1], constraint=constraint))
    assert [asked["edlm"]["constraint"] for asked in protocol.asked] == [{"choice": ["a", "b"]}] * 4
    assert [asked["edlm"].get("steps") for asked in protocol.asked] == [4, None, 4, None]
    with pytest.raises(TypeError, match=r"constraint is 'a.'; give edlm.Regex, edlm.OneOf, edlm.JsonSchema or a map"):
        client.complete("x", constraint="a+")
    with pytest.raises(ValueError, match=r"edlm.constraint is .*; give it once"):
        client.complete("x", constraint=constraint, edlm={"constraint": {"regex": "a"}})


def test_settings_of_another_type_are_named(client):
    with pytest.raises(TypeError, match=r"give Settings\(steps=4\), or steps=4 by itself"):
        client.complete("x", settings={"steps": 4})


def test_options_of_a_stream_are_sent_together(client, protocol):
    list(client.stream("x", denoising=True, stream=True, stream_options={"include_usage": False, "other": 1}))
    list(client.stream("x", stream_options={"denoising": True}))
    list(client.stream_infill(["a", 1], stream_options={"denoising": False}))
    assert [asked["stream_options"] for asked in protocol.asked] == [
        {"include_usage": False, "denoising": True, "other": 1},
        {"include_usage": True, "denoising": True},
        {"include_usage": True, "denoising": False},
    ]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda client: client.complete("x", settings=Settings(steps=4), edlm={"steps": 8}), "edlm.steps is 8, and as"),
        (lambda client: client.score("x", settings=Settings(steps=4), edlm={"steps": 8}), "edlm.steps is 8, and as"),
        (lambda client: client.complete("x", settings=Settings(steps=4), steps=8), "edlm.steps is 8, and as"),
        (lambda client: client.complete("x", edlm=4), "edlm is 4; it is an object"),
        (lambda client: client.stream("x", denoising=True, stream_options={"denoising": False}), "options.denoising"),
        (lambda client: client.stream("x", stream=False), "call complete or infill"),
        (lambda client: client.complete("x", stream=True), "call stream or stream_infill"),
        (lambda client: client.infill(["x", 1], stream=True), "call stream or stream_infill"),
    ],
)
def test_what_contradicts_itself_is_not_sent(client, protocol, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(client)
    assert not protocol.asked
