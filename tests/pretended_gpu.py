"""A GPU that is none: its tensors hold their numbers in main memory and say that they are on
"cuda:0". Everything is computed, and everything that a GPU would refuse is refused.

What it knows of a GPU:

- tensors of both devices do not meet, but for a number () in main memory, which is sent along;
- the host waits for the GPU where it needs a number or a shape from it (`item`, `tolist`, `nonzero`
  and what is like it) and where it copies, unless it copies to the GPU, from pinned memory, and
  says `non_blocking`;
- every operation that is no view is launched, and a launch takes the host microseconds.

What it does not know: how long anything takes, kernels of its own (attention is computed by its
formula), float32 that is rounded. Autocast is that of the CPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)

# A tensor from the other device is copied, and the host waits for that.
MAY_MIX = {"aten::copy_", "aten::_to_copy", "aten::index.Tensor", "aten::index_put_"}
# How large the result is, or what comes back to the host, is known when the GPU has computed it.
ASK = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_consecutive", "aten::unique_dim", "aten::bincount", "aten::equal",
    "aten::repeat_interleave.Tensor", "aten::multinomial",
}  # fmt: skip


class OnGPU(Tensor):
    """A tensor that says it is on the GPU; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        # For torch's C++ it is on the CPU: without CUDA nothing else has an autograd.
        return Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device="cpu",
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"OnGPU({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_cpu = GPU, True, False  # C++ goes on believing what it does

    def cpu(self):
        return _to_cpu(self)

    def tolist(self):
        return _to_cpu(self).tolist()

    def to(self, *args, copy=False, **kwargs):
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return _to_cpu(self, dtype)
        return super().to(dtype=dtype or self.dtype, copy=copy)

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: outside of pretended_gpu()")


# Whether "cpu" means what it says: torch's C++ means the device of the tensors that it was given.
_cpu_is_meant = False


@contextlib.contextmanager
def _meaning_cpu(yes: bool = True) -> Iterator[None]:
    global _cpu_is_meant
    before, _cpu_is_meant = _cpu_is_meant, yes
    try:
        yield
    finally:
        _cpu_is_meant = before


def _to_cpu(tensor: OnGPU, dtype: torch.dtype | None = None) -> Tensor:
    with _meaning_cpu():
        return torch.ops.aten._to_copy(tensor, device="cpu", dtype=dtype)


class Functions(TorchFunctionMode):
    """What Python asks of torch without a tensor of the GPU is meant for the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        of_gpu = any(isinstance(leaf, OnGPU) for leaf in tree_leaves((args, kwargs)))
        with _meaning_cpu(_cpu_is_meant or not of_gpu):
            return func(*args, **kwargs)


class PretendedGPU(TorchDispatchMode):
    """Sees every operation of torch; counts the `waits` and the `launches`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name(), dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
        on_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
        to_gpu = bool(on_gpu)
        if kwargs.get("device") is not None:
            said = torch.device(kwargs["device"]).type
            to_gpu = said == "cuda" or not _cpu_is_meant
            kwargs["device"] = torch.device("cpu")
        mixed = on_gpu and any(tensor.dim() > 0 for tensor in on_cpu)
        if mixed and name not in MAY_MIX:
            raise RuntimeError(f"{name}: expected all tensors to be on one device, cuda:0 or cpu")
        if on_gpu or to_gpu:
            self._count(func, name, args, kwargs, mixed or (bool(on_gpu) != to_gpu and tensors))

        held = [tensor.held for tensor in on_gpu]
        args, kwargs = tree_map(
            lambda leaf: leaf.held if isinstance(leaf, OnGPU) else leaf, (args, kwargs)
        )
        result = func(*args, **kwargs)
        if not to_gpu:
            return result

        def put_on_gpu(leaf):
            if not isinstance(leaf, Tensor):
                return leaf
            for tensor, own in zip(on_gpu, held, strict=True):
                if leaf is own:  # what an operation in place returns
                    return tensor
            return OnGPU(leaf)

        return tree_map(put_on_gpu, result)

    def _count(self, func, name, args, kwargs, copies) -> None:
        if not func.is_view:
            self.launches[name] += 1
        if copies:
            source = args[1] if name == "aten::copy_" else args[0]
            asynchronous = kwargs.get("non_blocking") or (
                name == "aten::copy_" and args[2:] == (True,)
            )
            to_host = isinstance(source, OnGPU)
            if to_host or not (asynchronous and getattr(source, "pinned", False)):
                self.waits[name] += 1
        elif name in ASK:
            self.waits[name] += 1
        elif name.startswith(("aten::index.", "aten::index_put")):  # by a mask: it is `nonzero`
            self.waits[name] += any(
                index is not None and index.dtype == torch.bool for index in args[1]
            )


class Autocast(torch.autocast):
    """For the pretended GPU that of the CPU."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu", *args, **kwargs)

    def __enter__(self):
        self.before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        super().__enter__()
        torch.set_autocast_enabled("cuda", self._enabled)
        torch.set_autocast_dtype("cuda", self.fast_dtype)

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.set_autocast_enabled("cuda", self.before[0])
        torch.set_autocast_dtype("cuda", self.before[1])


class Generator(torch.Generator):
    """For the pretended GPU one of the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def _group_by_device(
    tensors, with_indices=False, _group=Optimizer._group_tensors_by_device_and_dtype
):
    """What an optimizer updates at once, by the device that torch's C++ takes for the CPU."""
    return {
        (GPU if isinstance(group[0][0], OnGPU) else device, dtype): (group, indices)
        for (device, dtype), (group, indices) in _group(tensors, with_indices).items()
    }


def _pin_memory(tensor: Tensor) -> Tensor:
    assert not isinstance(tensor, OnGPU), "cannot pin a tensor of the GPU"
    copy = tensor.clone()
    copy.pinned = True
    return copy


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """Inside, "cuda:0" is a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(torch.amp, "autocast", Autocast)  # of activation checkpointing
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(Tensor, "pin_memory", _pin_memory)
        patch.setattr(
            Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_group_by_device)
        )
        # without CUDA a GradScaler would do nothing
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters become OnGPU
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes on the CPU, and copies
        try:
            with PretendedGPU() as gpu, Functions():
                yield gpu
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)
            torch.__future__.set_swap_module_params_on_conversion(swaps)
