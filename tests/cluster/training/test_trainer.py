"""Which actors a training starts besides its workers, and what its processes import."""

import asyncio
import pickle
import subprocess
import sys

import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.training.process_group import ProcessGroup
from cluster.training.trainer import UNUSED, Trainer, UnaidedScalingPolicy


def trainer(autoscaled: bool = False) -> Trainer:
    return Trainer(print, ProcessGroup("gloo", 60), ScalingConfig(num_workers=1), RunConfig(), autoscaled)


def test_only_the_callbacks_that_start_unused_actors_are_left_out():
    theirs = [type(callback) for callback in TorchTrainer(print)._create_default_callbacks()]
    assert set(UNUSED) <= set(theirs)
    ours = [type(callback) for callback in trainer()._create_default_callbacks()]
    assert ours == [kind for kind in theirs if kind not in UNUSED]


def test_no_autoscaler_is_asked_where_there_is_none_and_all_workers_are_started():
    policy = UnaidedScalingPolicy(ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2}))
    policy.after_controller_start(trainer().train_run_context)  # Ray's would start an actor, and so a cluster
    decision = policy.make_decision_for_non_running_worker_group()
    assert (decision.num_workers, decision.resources_per_worker) == (3, {"CPU": 2})
    asyncio.run(policy.before_controller_shutdown())
    assert not ray.is_initialized()


@pytest.mark.parametrize("autoscaled", [False, True])
def test_an_autoscaler_is_asked_for_machines_where_there_may_be_one(autoscaled, monkeypatch):
    given = {}
    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", lambda _, **settings: given | settings)
    theirs = FixedScalingPolicy(ScalingConfig(num_workers=1))
    started = trainer(autoscaled)._initialize_and_run_controller(scaling_policy=theirs)
    assert (started["scaling_policy"] is theirs) == autoscaled


def test_the_controller_which_the_workers_wait_for_need_not_import_torch():
    needed = (ProcessGroup("gloo", 60), UnaidedScalingPolicy(ScalingConfig(num_workers=1)))
    code = (
        "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1])); "
        "from ray.train.v2._internal.execution.controller import TrainController; print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, pickle.dumps(needed).hex()]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "False\n"
