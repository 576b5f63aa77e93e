"""The loss of a language model, over a batch and over a whole split."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset
from tqdm import tqdm

from gpt2.batching import IGNORE, Batch, collate, sorted_batches
from gpt2.training import autocast

_CHUNK = 512  # targets whose logits are in memory at once


def language_model_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross-entropy in nats, summed over the targets that count, and how many these are.

    Logits are computed where there is a target and nowhere else, and not all at once: with a
    vocabulary of 50,257 they would be by far the largest tensor of a step. The backward pass
    computes each chunk's logits again (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
    Cost"), which on a CPU costs no time: chunks stay in its cache.
    """
    wanted = batch.targets != IGNORE  # (B, T)
    hidden = model.hidden_states(batch.tokens)[wanted]  # (targets, C)
    targets = batch.targets[wanted]  # (targets,)

    def chunk_loss(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = model.head(hidden, batch.lengths)  # (chunk, V)
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    losses = [
        checkpoint(chunk_loss, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True)
    ]
    return torch.stack(losses).sum(), len(targets)


@torch.no_grad()
def evaluate_loss(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    precision: str,
    progress: str = "",
) -> dict[str, float]:
    """Mean loss (nats) and perplexity over all targets of `dataset`. The model must be in
    evaluation mode. The mean is over targets, not over batches: the same at any batch size."""
    device = next(model.parameters()).device
    batches = sorted_batches(dataset.lengths, batch_size)
    if progress:
        batches = tqdm(batches, desc=progress, unit="batch", disable=None, leave=False)
    total, targets = 0.0, 0
    for rows in batches:
        batch = collate([dataset[row] for row in rows]).to(device)
        with autocast(device, precision):
            loss, count = language_model_loss(model, batch)
        total += loss.item()
        targets += count
    return {"loss": total / targets, "perplexity": perplexity(total / targets)}


def perplexity(loss: float) -> float:
    """exp of a loss in nats, which for a hopeless model stays finite."""
    return math.exp(min(loss, 700))
