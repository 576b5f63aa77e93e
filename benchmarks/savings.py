"""What each of this project's savings is worth: the training loop of `contenders.py` without it.

Each context here takes one saving away and leaves the others, but for `all_logits_at_once`, which
needs the whole last block.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import contenders
from benchmarks.measuring import Measured
from benchmarks.workload import Job
from gpt2.batching import IGNORE, Batch
from gpt2.model import GPT2, KeyValueCache


def in_random_order() -> AbstractContextManager:
    """Batches of whatever lengths come together."""

    def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
        return [order[start : start + size] for start in range(0, len(order), size)]

    return mock.patch("gpt2.batching.shuffled_batches", batches)


def all_logits_at_once() -> AbstractContextManager:
    """Logits of the whole vocabulary for every token, pads and prompts too, and autograd's way
    back through them."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        logits = model(batch.tokens, batch.lengths)  # (B, T, V)
        flat = logits.float().flatten(0, 1), batch.targets.flatten()
        total = F.cross_entropy(*flat, ignore_index=IGNORE, reduction="sum")
        return total, int((batch.targets != IGNORE).sum())

    return mock.patch.object(contenders, "language_model_loss", loss)


def torchs_attention() -> AbstractContextManager:
    """torch's attention kernel everywhere."""
    return mock.patch("gpt2.model.in_blocks", return_value=False)


def whole_last_block() -> AbstractContextManager:
    """The last block's MLP for every token, also where nothing reads what comes out of it."""
    original = GPT2.hidden_states

    def hidden_states(
        model: GPT2,
        tokens: Tensor,
        cache: KeyValueCache | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        hidden = original(model, tokens, cache)  # (B, T, C)
        return hidden if at is None else hidden[at]

    return mock.patch.object(GPT2, "hidden_states", hidden_states)


def adamw_in_a_loop() -> AbstractContextManager:
    """AdamW as torch computes it on a CPU unless it is told otherwise, one operation and one tensor
    after the other."""
    original = torch.optim.AdamW

    def adamw(*arguments: object, **named: object) -> torch.optim.AdamW:
        return original(*arguments, **(named | {"fused": False}))

    return mock.patch("torch.optim.AdamW", adamw)


def train_in(
    job: Job,
    context: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    precision: str = "",
) -> Measured:
    """`train_here` in `context`, or with another `precision` than the job's."""
    on = dataclasses.replace(job.on, precision=precision or job.on.precision)
    with context():
        return contenders.train_here(dataclasses.replace(job, on=on))
