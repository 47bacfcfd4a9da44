"""A worker imports neither MLflow nor torch's compiler with DeepSpeed, which would take seconds."""

import os
import socket
import subprocess
import sys

import pytest

from cluster.training.deepspeed_import import unavailable
from tests.paths import PROJECT

TRAINS = """
import sys, torch, torch.distributed
from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from edlm.training.loop import fit
from tests import toy
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:" + sys.argv[1], rank=0, world_size=1)
losses = []
for stage in range(3):
    engine = ZeroEngine(toy.Toy(0.0), toy.training(), Zero(stage=stage), torch.device("cpu"))
    fit(engine, toy.rows, toy.training(), 0, lambda _, metrics: losses.append(metrics["gradient_norm"]), lambda _: None)
assert len(losses) == 3 * toy.training().steps
torch.distributed.destroy_process_group()
print([name for name in ("mlflow", "torch._dynamo") if name in sys.modules])
"""


@pytest.mark.cluster
def test_zero_below_stage_3_trains_without_mlflow_and_torchs_compiler():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, str(port)],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_module_is_unavailable_within_unless_it_is_imported_already():
    with unavailable("tabnanny"), pytest.raises(ImportError):
        import tabnanny
    import tabnanny

    with unavailable("tabnanny"):
        assert sys.modules["tabnanny"] is tabnanny
