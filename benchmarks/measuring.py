"""How `throughput.py` measures: clocks, counts, and a process for each contender."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.workload import Job
from gpt2.support.device import arithmetic, peak_memory

MATRIX_SIZES = {"cpu": 4096, "mps": 4096, "cuda": 8192}


@dataclass
class Measured:
    """What a contender took for one pass over the rows, padding included in `all_tokens` only."""

    seconds: float
    rows: int
    real_tokens: int
    all_tokens: int
    peak_memory: int = 0  # bytes
    shares: dict[str, float] = field(default_factory=dict)  # of the time, by part of a step


class Seen:
    """The rows and tokens that went into the model, over two or more passes. Tensors are kept and
    added up at the end, because that would make a GPU wait."""

    def __init__(self) -> None:
        self.rows = 0
        self.all_tokens = 0
        self.lengths: list[Tensor] = []

    def add(self, lengths: Tensor, all_tokens: int) -> None:
        """A batch: the real tokens of each row (B,), and all tokens with padding."""
        self.rows += len(lengths)
        self.all_tokens += all_tokens
        self.lengths.append(lengths)

    def add_mask(self, attention_mask: Tensor, last_is_target: bool = False) -> None:
        """A batch that is known from its `attention_mask` (B, T). `last_is_target`: the last token
        of a row predicts nothing, so it does not count, as it is in no batch of this project."""
        left_out = int(last_is_target)
        lengths = attention_mask.sum(dim=1) - left_out
        self.add(lengths, attention_mask.numel() - left_out * len(lengths))

    def measured(self, seconds: float, passes: int) -> Measured:
        """One of the `passes` that were seen."""
        return Measured(
            seconds=seconds,
            rows=self.rows // passes,
            real_tokens=sum(int(lengths.sum()) for lengths in self.lengths) // passes,
            all_tokens=self.all_tokens // passes,
        )


class PassTimer:
    """When each pass over the rows ended in training: after the update in which the last row was
    seen. A hook in torch's optimizers, so that every contender is timed alike.

    In the third pass, if there is one, it also adds up the parts of a step. On a GPU this waits for
    each of them, which is why it is not done in the pass that is timed.
    """

    def __init__(self, seen: Seen, rows: int, device: torch.device) -> None:
        self.seen, self.rows, self.device = seen, rows, device
        self.ends: list[float] = []
        self.parts: dict[str, float] = {}

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        hook = register_optimizer_step_post_hook(lambda *_: self._updated())
        try:
            yield
        finally:
            hook.remove()

    def _updated(self) -> None:
        self.lap("update")
        if self.seen.rows >= self.rows * (len(self.ends) + 1):
            synchronize(self.device)
            self.lap_at = time.perf_counter()
            self.ends.append(self.lap_at)

    def lap(self, part: str) -> None:
        """What ran since the last lap was `part`."""
        if len(self.ends) == 2:
            synchronize(self.device)
            now = time.perf_counter()
            self.parts[part] = self.parts.get(part, 0.0) + now - self.lap_at
            self.lap_at = now

    @property
    def seconds(self) -> float:
        """What the second pass took."""
        return self.ends[1] - self.ends[0]

    @property
    def shares(self) -> dict[str, float]:
        """The parts of a step, as shares of the third pass."""
        whole = self.ends[2] - self.ends[1]
        return {part: seconds / whole for part, seconds in self.parts.items()}


def second_of_two(one_pass: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second of two calls."""
    for _ in range(2):
        started = time.perf_counter()
        one_pass()
        synchronize(device)
        seconds = time.perf_counter() - started
    return seconds


def matrix_rates(device: torch.device) -> dict[str, float]:
    """FLOP/s of a product of two square matrices that are large enough to keep `device` busy, in
    float32 and, where these are faster, in bfloat16 or float16."""
    size = MATRIX_SIZES[device.type]
    rates = {}
    dtypes = [torch.float32]
    fast = arithmetic(device, "auto")  # where it is emulated a product takes minutes
    if fast != "float32":
        dtypes.append(getattr(torch, fast))
    for dtype in dtypes:
        first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            first @ second
            synchronize(device)
            seconds.append(time.perf_counter() - started)
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / statistics.median(seconds[1:])
    return rates


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a fresh process, where its memory is its own and all that it
    prints is lost. Raises what `function` raises."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_be_quiet) as pool:
        return pool.submit(function, *arguments).result()


def _be_quiet() -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")
    warnings.simplefilter("ignore")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def run_contender(function: Callable[..., Measured], job: Job, options: dict[str, Any]) -> Measured:
    """What `function` measures, and the peak memory of this process."""
    measured = function(job, **options)
    measured.peak_memory = peak_memory(job.device)
    return measured
