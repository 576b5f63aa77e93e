"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpt2.command_line import UserError, flag


@dataclass
class DeviceSettings:
    """Device"""

    device: str = flag(
        "auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda", "mps")
    )
    precision: str = flag(
        "auto", "arithmetic of matrix products", choices=("auto", "float32", "bfloat16")
    )


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "mps" means here. Raises UserError if there is no
    such device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind, there in available.items() if there), "cpu")
    elif not available.get(name, True):
        raise UserError(f"--device {name}: this torch sees no such device; use --device cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context for a forward pass: matrix products in bfloat16 or not; weights, gradients and
    the residual stream stay float32 either way."""
    enabled = arithmetic(device, precision) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def arithmetic(device: torch.device, precision: str) -> str:
    """What `precision` means on `device`: "auto" is bfloat16 where the device is fast at it."""
    if precision == "auto":
        return "bfloat16" if _fast_bfloat16(device) else "float32"
    return precision


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere and later
    # Without these instructions bfloat16 is emulated, and several times slower than float32.
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
