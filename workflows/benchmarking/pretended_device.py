"""A pretended accelerator for tests on any processor: it refuses what a GPU refuses, and counts what a GPU's host pays.

Tensors on the device "pretended" are computed by the processor's own kernels, so that results are the same bits, but an
operation that mixes them with tensors of the processor raises, as on a GPU. `HostTransfers` has what the host hands
to the device (dispatches; views are free) and how often it waits for an answer (waits).

Limits: one device; no streams, graphs or compilation; a fused kernel is one dispatch only where torch has one operator
for it. Built on torch's experimental Python backends (torch >= 2.11), which a process registers once and for all.
"""

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
COPIES = frozenset({"aten::copy_", "aten::_to_copy"})
# A GPU takes these from the processor as well: what is copied, and the indices of an indexing.
MAY_MIX = COPIES | {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
WAITS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"})
VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "expand", "transpose", "t", "permute", "squeeze", "unsqueeze", "select",
        "slice", "split", "split_with_sizes", "unbind", "unfold", "as_strided", "alias", "detach", "lift_fresh",
    )
)  # fmt: skip


@dataclass
class HostTransfers:
    """What a host would have paid since the device was entered, or since `clear`; there is one device, so one of it."""

    dispatches: int = 0
    waits: int = 0
    by_operator: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.dispatches = self.waits = 0
        self.by_operator.clear()


_COUNTS = HostTransfers()


@contextmanager
def pretended() -> Iterator[HostTransfers]:
    """Within it `device="pretended"` works, in the threads that are started there as well."""
    _COUNTS.clear()
    run = threading.Thread.run
    functions, swap = (torch.tensor, torch.as_tensor), torch.__future__.get_swap_module_params_on_conversion()

    def run_on_device(thread: threading.Thread) -> None:
        with _Dispatch():
            run(thread)

    threading.Thread.run = run_on_device  # type: ignore[method-assign]
    # Both build a tensor below the dispatcher, where no mode sees them.
    torch.tensor, torch.as_tensor = _tensor, _as_tensor
    # Modules are converted by `parameter.data = ...`, which would leave `host` as it was.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Dispatch():
            yield _COUNTS
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
        torch.tensor, torch.as_tensor = functions
        torch.__future__.set_swap_module_params_on_conversion(swap)


class OnDevice(Tensor):
    """A tensor on the pretended device; `host` holds its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=_device(),
        )  # fmt: skip

    def __init__(self, host: Tensor) -> None:
        self.host = host

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.host})"

    def tolist(self) -> Any:
        _COUNTS.waits += 1
        return self.host.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operator, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """What runs every operator of a thread, so that factories know the device, too."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operator, args, kwargs or {})


# At import, which is before any test runs: autograd counts the devices when it is first used.
_setup_privateuseone_for_python_backend(NAME)
getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]  # asked for by activation checkpointing


@functools.cache
def _device() -> torch.device:
    return torch.device(NAME, 0)


def _computed(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator's result by the processor's kernel, on the device where the operator would leave it."""
    name, target = _name(operator), kwargs.get("device")
    tensors: list[Tensor] = []
    host_args, host_kwargs = _on_host(args, tensors), _on_host(kwargs, tensors)
    theirs = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    ours = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    _require_one_device(name, args, theirs, ours)
    if target is not None:
        on_device = torch.device(target).type == NAME
        host_kwargs["device"] = torch.device("cpu")
        host_kwargs.pop("pin_memory", None)
    else:
        on_device = isinstance(args[0], OnDevice) if name in COPIES else bool(theirs)
    if theirs or on_device:
        _count(name, _is_waited_for(name, on_device, ours, args, kwargs))
    given = {id(tensor.host): tensor for tensor in theirs}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or any(value is tensor for tensor in ours):
            return value
        if id(value) in given:  # computed in place
            return given[id(value)]
        return OnDevice(value) if on_device else value

    result = operator(*host_args, **host_kwargs)
    return wrapped(result) if isinstance(result, Tensor) else tree_map(wrapped, result)


def _on_host(value: Any, tensors: list[Tensor]) -> Any:
    """The same arguments with the processor's tensors in them; all tensors met are added to the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.host if isinstance(value, OnDevice) else value
    if isinstance(value, list | tuple):
        return [_on_host(each, tensors) for each in value]
    if isinstance(value, dict):
        return {key: _on_host(each, tensors) for key, each in value.items()}
    return value


@functools.cache
def _name(operator: Any) -> str:
    return operator._schema.name


def _require_one_device(name: str, args: Any, theirs: list[OnDevice], ours: list[Tensor]) -> None:
    """Raise RuntimeError where a GPU would: numbers without an axis may come from the processor, others may not."""
    if not theirs or not any(tensor.dim() > 0 for tensor in ours):
        return
    if name not in MAY_MIX:
        shapes = [tuple(tensor.shape) for tensor in ours if tensor.dim() > 0]
        raise RuntimeError(f"expected all tensors on one device: {name} got {NAME} and tensors on cpu of {shapes}")
    if name not in COPIES and not isinstance(args[0], OnDevice):
        raise RuntimeError(f"{name}: the indices are on {NAME}, and the indexed tensor is on cpu")


def _is_waited_for(name: str, on_device: bool, ours: list[Tensor], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a GPU's host waits: for an answer, or until what it sends is copied.

    It does not wait for a `non_blocking` copy of pinned memory; whether memory is pinned is not seen here.
    """
    if name in COPIES:
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)  # the third of `copy_`
        return not on_device or (bool(ours) and not non_blocking)
    return name in WAITS or (name in MAY_MIX and any(index.dim() > 0 for index in ours))


def _count(name: str, waited_for: bool) -> None:
    _COUNTS.by_operator[name] += 1
    _COUNTS.dispatches += name not in VIEWS
    _COUNTS.waits += waited_for


_torch_tensor, _torch_as_tensor = torch.tensor, torch.as_tensor


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    made = _torch_tensor(data, dtype=dtype)
    return (made if device is None else made.to(device)).requires_grad_(requires_grad)


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    made = data if isinstance(data, Tensor) else _torch_as_tensor(data, dtype=dtype)
    return made if device is None and dtype is None else made.to(device=device or made.device, dtype=dtype)
