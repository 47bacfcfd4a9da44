"""A model without energies is served: it completes, fills, streams and scores, and says what it cannot do."""

from collections.abc import Iterator

import pytest

from cluster.http.local import serving
from cluster.http.warmup import warmed
from edlm.client.client import Client
from edlm.client.errors import InvalidRequest
from edlm.client.settings import Settings
from edlm.inference.generator import TextGenerator
from edlm.storage import publish
from tests.bundles import LENGTH, make_plain_bundle
from tests.cluster.asking import COMPLETIONS, states, stream


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    bundle = make_plain_bundle(tmp_path_factory.mktemp("plain"))
    publish(bundle, str(bundle))
    generator = TextGenerator.load(str(bundle))
    warmed(generator)
    with serving(generator, "1/0") as service:
        yield service.url


@pytest.fixture
def client(url) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def test_it_states_that_it_has_no_energy(client):
    (model,) = client.models()
    assert (model.facts.energies, model.facts.energy) == ((), None)
    assert model.facts.sampler["candidates"] == 1


def test_a_text_is_completed_and_filled_without_a_call_of_an_energy(client):
    done = client.complete("ab", max_tokens=8, seed=3)
    assert len(done.choices[0].text) == 8
    assert (done.details.candidates, done.details.energy, done.details.energy_calls) == (1, None, 0)
    assert 1 <= done.details.denoiser_calls <= 4
    filled = client.infill(["ab", 3, "c"], seed=3).choices[0]
    assert (filled.text[:2], filled.text[5:]) == ("ab", "c")


def test_its_states_are_streamed(url):
    options = {"stream_options": {"denoising": True}}
    pieces = stream(url, COMPLETIONS, {"prompt": "ab", "max_tokens": 8, "seed": 3, **options})
    assert states(pieces)[-1]["energy_calls"] == 0


def test_a_score_has_bounds_and_no_energies(client):
    score = client.score("abc", seed=1, draws=4)
    assert score.energies == {}
    assert score.bound.nats > 0
    assert score.nelbo.nats > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(candidates=8), "this model has no energy to choose with; give 1"),
        (Settings(energy="step", candidates=8), "energy 'step' is not in this model; it has: none"),
    ],
)
def test_candidates_are_refused_with_the_way_out(client, settings, message):
    with pytest.raises(InvalidRequest, match=message):
        client.complete("ab", max_tokens=LENGTH, settings=settings)
