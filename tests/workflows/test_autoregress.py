"""The baseline and the judge are the same network, each trained on documents of its own."""

from dataclasses import replace

import pytest

from edlm.checkpoints.networks import open_autoregressive
from edlm.config import load
from edlm.local_copies import local_copy
from edlm.training.local_engine import LocalEngine
from tests.paths import SMALLEST
from tests.workflows.local_session import LocalSession
from workflows import autoregress
from workflows.experiment import Experiment, Given


@pytest.fixture
def splits(monkeypatch) -> dict[str, str]:
    """The split on which each model would have been trained; stages write models that were not."""
    splits = {}

    def write_untrained(_session, work, _data, split, training, objective, write) -> dict:
        splits[work.stage] = split
        write(LocalEngine(objective(), training).export(), work.folder)
        return {}

    monkeypatch.setattr(autoregress, "run_training", write_untrained)
    return splits


def test_the_baseline_is_trained_on_the_training_split_and_the_judge_on_its_own(tmp_path, splits):
    session = LocalSession(load(Experiment, SMALLEST), str(tmp_path))
    autoregress.baseline_and_judge(session)
    assert session.ran == ["prepare", "autoregress", "judge"]
    assert splits == {"autoregress": "train", "judge": "judge"}
    for stage in (autoregress.autoregress, autoregress.judge):
        open_autoregressive(local_copy(stage(session)))


def test_models_that_are_given_are_not_trained(tmp_path, splits):
    given = Given(autoregressive="/of/another", judge="/of/a/third")
    session = LocalSession(replace(load(Experiment, SMALLEST), given=given), str(tmp_path))
    assert (autoregress.autoregress(session), autoregress.judge(session)) == ("/of/another", "/of/a/third")
    assert (session.ran, splits) == ([], {})
