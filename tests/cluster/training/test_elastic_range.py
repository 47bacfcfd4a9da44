"""How many workers train: as many of the allowed as there is room for, after a wait for all of them; without Ray."""

import pytest

from cluster.config import Cluster
from cluster.training import elastic_range as module
from cluster.training.elastic_range import elastic_range, room
from edlm.config import ConfigurationError, parse
from edlm.training.settings import Training

NEEDED = {"CPU": 2.0, "GPU": 0.5}


@pytest.fixture
def machines(monkeypatch) -> dict[str, dict[str, float]]:
    """Resources by machine, all of them free."""
    machines = {}
    for name in ("available_resources_per_node", "total_resources_per_node"):
        monkeypatch.setattr(module, name, lambda: machines)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    return machines


def made(workers: int, least: int | None, batch: int = 12, alone: bool = False):
    cluster = Cluster(workers=workers, min_workers=least, start_timeout_seconds=0.05)
    return elastic_range("toy", Training(steps=1, batch=batch, accumulation=2), cluster, NEEDED, alone)


def test_a_worker_has_room_on_one_machine_only(machines):
    machines |= {"a": {"CPU": 3.0, "GPU": 8.0}, "b": {"CPU": 3.9, "GPU": 0.5}, "c": {"CPU": 64.0}, "d": {}}
    assert room(NEEDED) == 2
    machines["c"]["GPU"] = 3 * 0.5 - 1e-9
    assert room(NEEDED) == 5


def test_only_sizes_among_which_a_batch_divides_are_in_the_range():
    assert made(6, 1).sizes == [6, 3, 2, 1]
    assert made(6, 2).sizes == [6, 3, 2]
    assert made(6, None).sizes == [6]
    with pytest.raises(ConfigurationError, match="multiple of 8"):
        made(4, 1, batch=12)
    with pytest.raises(ConfigurationError, match=r"cluster.min_workers: 3 is more than cluster.workers, 2"):
        parse(Cluster, {"workers": 2, "min_workers": 3})


def test_the_largest_size_with_room_is_taken_after_a_wait_for_all(machines):
    machines["a"] = {"CPU": 11.0, "GPU": 8.0}
    elastic = made(6, 1)
    elastic.settle(60.0)
    assert elastic.size == 3, "five have room, among whom a batch does not divide"
    machines["b"] = {"CPU": 2.0, "GPU": 1.0}
    elastic.settle(60.0)
    assert elastic.size == 6


@pytest.mark.usefixtures("machines")
def test_without_room_for_the_fewest_the_error_names_what_is_missing(monkeypatch):
    asked = []

    def refuse(what: str, total: dict[str, float], seconds: float) -> None:
        asked.append((total, round(seconds)))
        raise ConfigurationError(what)

    monkeypatch.setattr(module, "require_resources", refuse)
    for least, alone, seconds in ((2, False, 0.1), (2, True, 0.0), (None, False, 7.0)):
        with pytest.raises(ConfigurationError, match=f"{least or 3} workers of toy"):
            made(3, least, alone=alone).settle(seconds)
    two, three = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 6.0, "GPU": 1.5}
    assert asked == [(two, 0), (two, 0), (three, 7)]


def test_it_grows_into_the_free_room_of_a_shared_cluster(machines):
    elastic, alone = made(6, 1), made(6, 1, alone=True)
    elastic.size = alone.size = 3
    machines["a"] = {"CPU": 4.0, "GPU": 8.0}
    assert elastic.growth() is None, "five would not share a batch"
    machines["b"] = {"CPU": 2.0, "GPU": 1.0}
    assert elastic.growth() == 6
    assert alone.growth() is None
    elastic.size = 6
    assert elastic.growth() is None
