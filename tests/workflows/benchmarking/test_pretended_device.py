"""The pretended device refuses what a GPU refuses, and counts dispatches and waits."""

import threading

import pytest
import torch

from workflows.benchmarking.pretended_device import NAME, pretended


def test_tensors_of_two_devices_are_not_mixed():
    with pretended():
        on_device, on_cpu = torch.ones(3, device=NAME), torch.ones(3)
        assert on_device.device.type == NAME
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            on_device + on_cpu
        with pytest.raises(RuntimeError, match="the indexed tensor is on cpu"):
            on_cpu[torch.tensor([0], device=NAME)]
        with pytest.raises(TypeError, match="copy it to the CPU first"):
            on_device.numpy()


def test_numbers_without_an_axis_copies_and_indices_come_from_the_processor():
    with pretended():
        on_device = torch.arange(4.0, device=NAME)
        assert (on_device + torch.tensor(1.0)).cpu().tolist() == [1, 2, 3, 4]
        assert on_device[torch.tensor([1, 3])].device.type == NAME
        on_device.copy_(torch.zeros(4))
        assert on_device.cpu().tolist() == [0] * 4


def test_results_are_the_processors_bits_and_gradients_flow():
    with pretended():
        on_cpu, grid = torch.nn.Linear(5, 3), torch.linspace(0, 1, 20).view(4, 5)
        expected = on_cpu(grid).square().sum()
        expected.backward()
        gradient, on_cpu.weight.grad = on_cpu.weight.grad, None
        on_device = on_cpu.to(NAME)
        actual = on_device(grid.to(NAME)).square().sum()
        actual.backward()
        assert torch.equal(actual.cpu(), expected)
        assert torch.equal(on_device.weight.grad.cpu(), gradient)


def test_a_module_that_is_rounded_on_the_device_computes_with_what_was_rounded():
    with pretended():
        module = torch.nn.Linear(3, 2).to(NAME)
        weight, exact = module.weight, module.weight.detach().cpu()
        module.to(torch.bfloat16)
        assert module.weight is weight
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight.cpu(), exact.bfloat16())
        assert module(torch.ones(3, dtype=torch.bfloat16, device=NAME)).dtype == torch.bfloat16


def test_views_are_free_and_answers_are_waited_for():
    with pretended() as counts:
        on_device = torch.ones(2, 3, device=NAME)
        counts.clear()
        on_device.view(3, 2)[0].t()
        assert (counts.dispatches, counts.waits) == (0, 0)
        total = on_device.sum()
        assert (counts.dispatches, counts.waits) == (1, 0)
        total.item()
        on_device.cpu()
        torch.nonzero(on_device)
        assert counts.waits == 3
        assert counts.by_operator["aten::sum"] == 1


def test_what_the_host_sends_is_waited_for_unless_the_copy_is_non_blocking():
    with pretended() as counts:
        on_host, on_device = torch.ones(3), torch.zeros(3, device=NAME)
        index = torch.tensor([0, 2])
        counts.clear()
        on_host.to(NAME, non_blocking=True)
        on_device.copy_(on_host, non_blocking=True)
        on_device.double().copy_(on_device)
        on_device + torch.tensor(1.0)
        torch.full((3,), 2.0, device=NAME)
        assert counts.waits == 0
        on_host.to(NAME)
        on_device.copy_(on_host)
        torch.tensor([1, 2], device=NAME)
        on_device[index]
        assert counts.waits == 4


def test_a_thread_that_is_started_on_the_device_has_it():
    made: list[torch.Tensor] = []
    with pretended():
        thread = threading.Thread(target=lambda: made.append(torch.zeros(2, device=NAME)))
        thread.start()
        thread.join()
    assert made[0].device.type == NAME


def test_outside_nothing_is_changed():
    before = torch.tensor, torch.as_tensor, threading.Thread.run
    with pretended():
        pass
    assert (torch.tensor, torch.as_tensor, threading.Thread.run) == before
