"""What a step, of generation or of training, costs the host of a device: these numbers never rise again.

Counted on the pretended device. A host hands a kernel to a device in some 5 microseconds. Where it waits for an answer,
the device has nothing to do until the host has thought about it.
"""

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.testing._internal.distributed.fake_pg import FakeStore

from cluster.training.gathering import Gathering
from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import AutoregressiveEnergyConfig, CarryOverEnergyConfig
from edlm.inference.batch_executor import BatchExecutor
from edlm.inference.sequence import RunningSequence
from edlm.interfaces import Model
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult
from edlm.schedule import LogLinear
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.settings import Training
from tests.cluster.training.zero_objectives import objectives, science_rows
from tests.engines import new_request
from tests.networks import stirred
from workflows.benchmarking.pretended_device import NAME, HostTransfers, pretended

LENGTH, ROWS, VOCABULARY, STEPS = 64, 4, 27, 8
ENERGIES: dict[str, AbstractEnergyConfig | None] = {
    "plain": None,
    "step": StepEnergyConfig(block=8, width=32, heads=2),
    "conditional": ConditionalEnergyConfig(width=32, layers=1, heads=2),
    "ar": AutoregressiveEnergyConfig(),
    "coar": CarryOverEnergyConfig(),
    "residual": ResidualEnergyConfig(width=32, heads=2),
}
# Of a step beyond the denoiser's own pass: dispatches, with those of the energy's network, and waits. One wait is for
# the positions that are masked, one for the number of distinct candidates. A proposal draws token by token.
MOST = {
    "plain": (60, 1), "step": (250, 2), "conditional": (215, 2), "ar": (250, 2), "coar": (250, 2), "residual": (690, 2),
}  # fmt: skip


def step_of(case: str, counts: HostTransfers, **way: int | bool) -> tuple[int, int, StepResult]:
    """Dispatches beyond the denoiser's own, waits, and result of the first step whose rows are partly filled."""
    torch.manual_seed(0)
    denoiser = Denoiser(TransformerConfig(width=32, layers=3, heads=2), VOCABULARY).eval()
    kind = ENERGIES[case]
    energy = None if kind is None else stirred(build(kind, denoiser), seed=3).eval().to(NAME)
    sampler = Sampler(steps=STEPS, **({"candidates": 8 if kind else 1} | way))  # pyright: ignore[reportArgumentType]
    model = Model(denoiser.to(NAME), energy, LogLinear())
    xt, seeds = torch.full((ROWS, LENGTH), VOCABULARY, device=NAME), torch.arange(ROWS)

    def result(xt: Tensor, i: int) -> StepResult:
        t, s = (torch.full((ROWS,), at / STEPS, dtype=torch.float64) for at in (i, i - 1))
        return sampler.step(xt, t, s, torch.full((ROWS,), i), seeds, model)

    xt = result(xt, STEPS).xs
    with torch.no_grad():
        counts.clear()
        denoiser.read(xt, torch.full((ROWS,), 1.0, dtype=torch.float64).to(NAME))
        own = counts.dispatches - 1
    counts.clear()
    done = result(xt, STEPS - 1)
    return counts.dispatches - own, counts.waits, done


def build(kind: AbstractEnergyConfig, denoiser: Denoiser) -> nn.Module:
    if isinstance(kind, ResidualEnergyConfig):
        return kind.build(
            denoiser, stirred(ConditionalEnergyConfig(width=32, layers=1, heads=2).build(denoiser), seed=4)
        )
    network = TransformerConfig(width=32, layers=2, heads=2)
    return kind.build(denoiser, stirred(AutoregressiveModel(network, VOCABULARY), seed=4).eval().to(NAME))


@pytest.mark.parametrize("case", MOST)
def test_a_step_dispatches_and_waits_no_more_than_this(case):
    with pretended() as counts:
        dispatches, waits, _ = step_of(case, counts)
    assert dispatches <= MOST[case][0]
    assert waits <= MOST[case][1]


@pytest.mark.parametrize("case", ["conditional", "coar"])
def test_a_step_that_draws_token_by_token_waits_only_for_its_positions(case):
    with pretended() as counts:
        _, waits, _ = step_of(case, counts, candidates=0)
        assert waits <= 1


@pytest.mark.parametrize("case", ["conditional", "coar"])
def test_a_step_that_verifies_a_draft_waits_twice_in_a_pass(case):
    with pretended() as counts:
        _, waits, done = step_of(case, counts, candidates=0, speculative=True)
        assert waits <= 1 + 2 * int(done.energy_calls.max())


def test_a_text_of_the_autoregressive_model_waits_for_nothing():
    with pretended() as counts:
        torch.manual_seed(0)
        model = AutoregressiveModel(TransformerConfig(width=32, layers=2, heads=2), VOCABULARY).eval().to(NAME)
        seeds = torch.arange(3).to(NAME)
        counts.clear()
        model.draw(seeds, LENGTH)
        assert counts.waits == 0


@pytest.mark.parametrize(("way", "waits"), [({"candidates": 1}, 1), ({"candidates": 3, "energy": "step"}, 2)])
def test_a_step_of_the_engine_waits_for_its_result_and_the_number_of_distinct_candidates(on, way, waits):
    with pretended() as counts:
        generator = on(NAME)
        sequences = [RunningSequence(new_request((), 12, seed, steps=2, **way), generator) for seed in range(3)]
        executor = BatchExecutor(rows=8, step_seconds=60.0)
        counts.clear()
        assert len(executor.step(sequences)) == 3
        assert counts.waits <= waits


def waits_between_steps(engine_of: Callable[[str, Training], LocalEngine], name: str) -> list[int]:
    """How often the host waits from one step to the next, of six, where metrics are logged after three."""
    with pretended() as counts:
        waits: list[int] = []

        def counted(step: int, start: int, stop: int) -> Rows:
            waits.append(counts.waits)
            return science_rows(step, start, stop)

        settings = Training(steps=6, batch=8, ema=0.9, log_every=3, checkpoint_every=6)
        fit(engine_of(name, settings), counted, settings, 0, lambda *_: None, lambda _: None)
        return [after - before for before, after in itertools.pairwise(waits)]


@pytest.mark.parametrize("name", ["denoising", "next token", "step", "conditional"])
def test_a_training_waits_for_no_step_between_two_logs(name):
    def alone(name: str, settings: Training) -> LocalEngine:
        return LocalEngine(objectives()[name]().to(NAME), settings)

    assert waits_between_steps(alone, name) == [0, 0, 1, 0, 0]


class Worker(LocalEngine):
    """A worker with the exchange of `ZeroEngine`; DeepSpeed, which does not run on this device, is not counted."""

    def __init__(self, world_size: int, hosts: ProcessGroup | None, name: str, settings: Training) -> None:
        super().__init__(objectives()[name]().to(NAME), settings)
        self.world_size, self._gathering = world_size, Gathering(world_size, hosts)

    def gather(self, values: Tensor) -> Tensor:
        return self._gathering(values)


def test_one_of_two_workers_waits_for_no_step_between_two_logs(monkeypatch):
    exchanged: set[tuple[str, ProcessGroup | None]] = set()
    all_gather = torch.distributed.all_gather

    def watched(parts: list[Tensor], values: Tensor, group: ProcessGroup | None = None) -> None:
        exchanged.add((values.device.type, group))
        all_gather(parts, values, group=group)

    monkeypatch.setattr(torch.distributed, "all_gather", watched)
    # Torch's group without others: each of them has sent what this worker sends.
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        hosts = torch.distributed.new_group(backend="fake")
        assert isinstance(hosts, ProcessGroup)
        assert waits_between_steps(functools.partial(Worker, 2, hosts), "denoising") == [0, 0, 1, 0, 0]
        assert exchanged == {("cpu", hosts), (NAME, None)}
    finally:
        torch.distributed.destroy_process_group()


def test_one_worker_exchanges_nothing_and_waits_for_no_step_between_two_logs():
    assert waits_between_steps(functools.partial(Worker, 1, None), "denoising") == [0, 0, 1, 0, 0]
