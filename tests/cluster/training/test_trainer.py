"""Which actors a training starts besides its controller and workers."""

from ray.train.torch import TorchTrainer

from cluster.training.trainer import UNUSED, Trainer


def test_only_the_callbacks_that_start_unused_actors_are_left_out():
    theirs = [type(callback) for callback in TorchTrainer(print)._create_default_callbacks()]
    assert set(UNUSED) <= set(theirs)
    ours = [type(callback) for callback in Trainer(print)._create_default_callbacks()]
    assert ours == [kind for kind in theirs if kind not in UNUSED]
