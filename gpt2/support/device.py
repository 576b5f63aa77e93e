"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2.support.errors import UserError
from gpt2.support.flags import flag

ARITHMETIC = ("auto", "float32", "bfloat16", "float16")  # choices of --precision


@dataclass
class DeviceSettings:
    """Device"""

    device: str = flag(
        "auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda", "mps")
    )
    precision: str = flag(
        "auto",
        "arithmetic of matrix products; auto is bfloat16 where the device has instructions for it: "
        "a CPU without them takes a hundred times as long in bfloat16 as in float32; and float16 "
        "on GPUs that are fast at that alone",
        choices=ARITHMETIC,
    )


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "mps" means here. Raises UserError if there is no
    such device."""
    available = {
        "cuda": torch.cuda.is_available(),
        # Before, attention on Apple's GPUs is wrong, silently (pytorch #163597, #195910).
        "mps": torch.backends.mps.is_available() and torch.__version__ >= (2, 13),
    }
    if name == "auto":
        name = next((kind for kind, there in available.items() if there), "cpu")
    elif not available.get(name, True):
        need = "no such device, or it is older than 2.13" if name == "mps" else "no such device"
        raise UserError(f"--device {name}: this torch sees {need}; use --device cpu")
    if name == "cuda":  # what stays in float32 is multiplied in TF32, many times as fast
        torch.set_float32_matmul_precision("high")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context for a forward pass: matrix products in 16 bits or not; weights, gradients and
    the residual stream stay float32 either way."""
    chosen = arithmetic(device, precision)
    dtype = torch.float16 if chosen == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=chosen != "float32")


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """What keeps gradients above float16's smallest numbers: the loss is multiplied by a power of
    two, and its gradient divided by it (Micikevicius et al. 2018, "Mixed Precision Training",
    section 3.2). If the gradient overflows, the step is skipped and the factor halved; after 2,000
    steps without that it is doubled. In other arithmetic all this does nothing.
    """
    # torch begins with 2^16, which suits the mean of the losses; the loop takes their sum.
    enabled = arithmetic(device, precision) == "float16"
    return torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=enabled)


def arithmetic(device: torch.device, precision: str) -> str:
    """What `precision` means on `device`: "auto" is bfloat16 where the device is fast at it, and
    float16 where it is fast at that alone."""
    if precision != "auto":
        return precision
    if _fast_bfloat16(device):
        return "bfloat16"
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 7:
        return "float16"  # V100, T4: the first tensor cores know no other
    return "float32"


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere and later
    # Without these instructions bfloat16 is emulated, a hundred times as slowly as float32.
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def to_numbers(*values: Tensor | float) -> list[float]:
    """Tensors () as numbers, for all of which a GPU is waited for once; numbers as they are.

    >>> to_numbers(torch.tensor(0.5), 3)
    [0.5, 3]
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    found = iter(torch.stack([tensor.to(dtype) for tensor in tensors]).tolist())
    return [next(found) if isinstance(value, Tensor) else value for value in values]


def peak_memory(device: torch.device) -> int:
    """The most that this process has held so far, in bytes; on a GPU, of its memory, in tensors.
    Not known on Windows: 0."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # where ru_maxrss begins with what the parent process has held
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource  # not in Windows' Python

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whatever device. torch raises a plain RuntimeError on a CPU
    and on Apple's GPUs."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
        or "MPS backend out of memory" in str(error)
    )
