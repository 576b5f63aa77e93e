"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

import torch

from gpt2.command_line import UserError


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
    if precision == "auto":
        precision = "bfloat16" if _fast_bfloat16(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere and later
    # Without these instructions bfloat16 is emulated, and several times slower than float32.
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
