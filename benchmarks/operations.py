"""Which operations a training step spends its time in.

    python benchmarks/operations.py
    python benchmarks/operations.py --model mini --max-length 128

Random weights and tokens, all weights trained, no padding. What is no matrix product is what stands
between the rate that `throughput.py` measures of the machine and the rate that training reaches.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory import measure
from gpt2.model import SIZES
from gpt2.support.device import DeviceSettings, arithmetic, choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, percent
from gpt2.weights.building import check_max_length

GROUPS = {
    "matrix products": ("mm", "addmm"),
    "products of attention": (
        "bmm",
        "_scaled_dot_product",
        "_flash_attention",
        "_efficient_attention",
    ),
    "softmax": ("_softmax",),
    "GELU": ("gelu",),
    "norms": ("native_layer_norm",),
    "copies and casts": ("copy_", "cat"),
    "sums": ("add", "sum"),
    "AdamW": ("_fused_adamw_",),
}


@dataclass
class OperationsSettings:
    """Operations"""

    model: str = flag("gpt2", "shape, with random weights", choices=tuple(SIZES))
    max_length: int = flag(512, "tokens of each row", at_least=1)
    batch_size: int = flag(8, "rows in a step", at_least=1)
    steps: int = flag(4, "steps; the first does not count", at_least=2)


def group_of(operation: str) -> str:
    """The key of GROUPS to which `operation` belongs, as "aten::gelu_backward" to "GELU"."""
    name = operation.removeprefix("aten::")
    for group, beginnings in GROUPS.items():
        if name in beginnings or name.startswith(tuple(each + "_" for each in beginnings)):
            return group
    return "the rest"


def profiled(steps: int, **what: Any) -> dict[str, tuple[float, float]]:
    """Seconds of one step and the FLOPs that torch counts in it, by group of operations."""
    device = choose_device(what["device"])
    if device.type == "mps":
        raise UserError("torch's profiler does not see what an mps device does; use --device cpu")
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    profiler = profile(activities=activities, with_flops=True)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or it says on the terminal that it runs
    updates = 0

    def after_update(*_: Any) -> None:
        nonlocal updates
        updates += 1
        if updates == 1:
            profiler.start()
        if updates == steps:
            profiler.stop()

    hook = register_optimizer_step_post_hook(after_update)
    try:
        measure(steps=steps, **what)
    finally:
        hook.remove()
    found: dict[str, tuple[float, float]] = {}
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a GPU's kernel, whose time the operation that started it has too
        own = event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
        seconds, flops = found.get(group_of(event.key), (0.0, 0.0))
        found[group_of(event.key)] = (
            seconds + own / 1e6 / (steps - 1),
            flops + event.flops / (steps - 1),
        )
    return found


def main() -> None:
    settings, on = parse_flags([OperationsSettings, DeviceSettings], __doc__.splitlines()[0])
    check_max_length(settings.max_length, SIZES[settings.model])
    found = profiled(
        settings.steps, config=SIZES[settings.model], rows=settings.batch_size,
        length=settings.max_length, precision=on.precision, device=on.device,
    )  # fmt: skip
    whole = sum(seconds for seconds, _ in found.values())
    rows = []
    for group, (seconds, flops) in sorted(found.items(), key=lambda item: -item[1][0]):
        rate = f"{flops / seconds / 1e9:,.0f}" if "products" in group else None
        rows.append([group, f"{1000 * seconds:.0f}", percent(seconds / whole), rate])
    device = choose_device(on.device)
    print(
        f"{settings.model}, {settings.batch_size} rows of {settings.max_length} tokens; "
        f"{arithmetic(device, on.precision)} on {device}, {torch.get_num_threads()} threads\n"
    )
    print(format_table(["", "ms a step", "share", "GFLOP/s"], rows))


if __name__ == "__main__":
    run_script(main)
