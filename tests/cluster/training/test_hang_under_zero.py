"""A rank that hangs outside a collective is named, and training goes on, under every stage of ZeRO."""

import functools
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.config import Zero
from cluster.runtime.ray_connection import connect
from cluster.training.workers import train
from edlm.config import parse
from edlm.data.preparation import Data, prepare
from edlm.storage import publish
from tests.cluster.training.objectives import toy_objective
from tests.cluster.training.test_workers import TWO, curve, task
from tests.paths import PROJECT

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Iterator[str]:
    """Data, and a Ray for their training whose workers import the tests."""
    folder: Path = tmp_path_factory.mktemp("data")
    shares = {"validation": 0.1, "judge": 0.0}
    settings = {"corpus": {"kind": "embedded"}, "tokenizer": {"kind": "characters"}, "length": 6, "shares": shares}
    prepare(parse(Data, settings), folder, lambda _: None)
    publish(folder, str(folder))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(PROJECT))
        with connect(TWO):
            yield str(folder)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rank_that_hangs_is_named_and_training_ends_as_without_it(prepared, tmp_path, capsys, stage):
    cluster = replace(TWO, zero=Zero(stage=stage), collective_timeout_seconds=20.0)
    whole, struck = tmp_path / "whole", tmp_path / "struck"
    weights = dict(train(task(prepared, whole), cluster))
    fault = ("hang", 9, 7, str(tmp_path / "mark"))
    actual = train(task(prepared, struck, objective=functools.partial(toy_objective, fault)), cluster)
    time.sleep(1)  # until the last lines are printed
    output = capsys.readouterr().out
    assert re.search(r"rank 1 \(process \d+ on .*\) has taken no step for 1\d s; it stands at .*toy.py:\d+", output)
    assert "restart 1 of at most 2, from the last checkpoint" in output
    assert curve(struck) == curve(whole)
    assert all(torch.equal(actual[name], weight) for name, weight in weights.items())
