"""The loss of a language model, over a batch and over a whole split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from gpt2.batching import IGNORE, Batch, collate, map_batches, sorted_batches
from gpt2.heads import LanguageModelHead
from gpt2.support.device import autocast

_TARGETS_AT_ONCE = 1024  # on a CPU: whose logits are in memory
_ROWS_AT_ONCE = 64  # on a CPU: of these logits, taken through softmax while they are in the cache
_LOGITS_AT_ONCE = 2**27  # on a GPU, which wants few large kernels: half a GiB in float32


def language_model_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross-entropy in nats, summed over the targets that count, and how many these are. Logits
    are computed only where there is a target: in the response, not in the prompt or the padding."""
    hidden = model.hidden_states(batch.tokens, at=batch.at)  # (N, C)
    targets = batch.targets[batch.at]  # (N,)
    if type(model.head) is LanguageModelHead:  # logits are hidden @ weight.T and nothing else
        return ChunkedCrossEntropy.apply(hidden, model.head.weight, targets), len(targets)
    logits = model.head(hidden, batch.lengths)  # (N, V) of a head of your own
    return F.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)


def chunk_sizes(device: torch.device, vocab_size: int) -> tuple[int, int]:
    """Of how many targets the logits are in memory at once, and how many of these go through
    softmax at once."""
    if device.type == "cpu":
        return _TARGETS_AT_ONCE, _ROWS_AT_ONCE
    targets = max(1, _LOGITS_AT_ONCE // vocab_size)
    return targets, targets


class ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies of hidden @ weight.T against targets, without ever holding all
    logits: with a vocabulary of 50,257 they would be by far the largest tensor of a step.

    hidden (N, C), weight (V, C), targets (N,) int64  ->  () float32, or float64 from float64

    The gradient is computed together with the loss, chunk by chunk while the chunk's logits are at
    hand, and takes their place: softmax minus one at the target. That is faster, too, than autograd
    on all logits. The idea is that of Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for
    LLM Training", section 3.2.

    Raises RuntimeError if the gradient is to be differentiated once more: it is a constant here.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        learns_hidden, learns_weight, _ = ctx.needs_input_grad
        hidden_gradient = torch.empty_like(hidden) if learns_hidden else None
        weight_gradient = None  # the first chunk makes it
        targets_at_once, rows_at_once = chunk_sizes(hidden.device, len(weight))
        with torch.autocast(device, enabled=False):
            cast_weight = weight.to(dtype)  # None leaves it as it is
            for first in range(0, len(hidden), targets_at_once):
                chunk = slice(first, first + targets_at_once)
                cast_hidden = hidden[chunk].to(dtype)  # (n, C)
                logits = cast_hidden @ cast_weight.T  # (n, V)
                for rows, row_targets in zip(
                    logits.split(rows_at_once), targets[chunk].split(rows_at_once), strict=True
                ):
                    target = row_targets.unsqueeze(1)  # (rows, 1)
                    log_probabilities = F.log_softmax(rows, dim=1, dtype=exact)  # (rows, V)
                    total -= log_probabilities.gather(1, target).sum()
                    if learns_hidden or learns_weight:
                        of_rows = log_probabilities.exp_()
                        of_rows.scatter_add_(1, target, of_rows.new_full(target.shape, -1))
                        rows.copy_(of_rows)
                gradient = logits  # (n, V), which has taken their place
                if learns_hidden:
                    hidden_gradient[chunk] = gradient @ cast_weight
                if learns_weight:
                    addition = (gradient.T @ cast_hidden).to(weight.dtype)  # (V, C)
                    weight_gradient = addition if first == 0 else weight_gradient.add_(addition)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would not notice
            raise RuntimeError(
                "ChunkedCrossEntropy has no second derivative; F.cross_entropy of all logits has"
            )
        hidden_gradient, weight_gradient = ctx.saved_tensors
        # Saves a pass over the vocabulary's gradient. Not checked on a GPU, where reading the value
        # would wait for all work before it.
        if loss_gradient.is_cpu and loss_gradient == 1:
            return hidden_gradient, weight_gradient, None
        return (
            hidden_gradient * loss_gradient if hidden_gradient is not None else None,
            weight_gradient * loss_gradient if weight_gradient is not None else None,
            None,
        )


@torch.no_grad()
def row_losses(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    precision: str,
    desc: str = "",
    max_tokens: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `dataset` its summed loss (rows,) float64 in nats, and its number of targets
    (rows,) int64. The model must be in evaluation mode; batches are those of `evaluate_loss`."""
    device = next(model.parameters()).device
    batches = sorted_batches(dataset.lengths, batch_size, max_tokens)
    targets_at_once, _ = chunk_sizes(device, model.config.vocab_size)

    def losses_of(rows: list[int]) -> list[tuple[float, int]]:
        batch = collate([dataset[row] for row in rows])
        counts = (batch.targets != IGNORE).sum(dim=1)
        row_of_target, _ = batch.at
        batch = batch.to(device)
        targets = batch.targets[batch.at]  # (N,)
        with autocast(device, precision):
            hidden = model.hidden_states(batch.tokens, at=batch.at)  # (N, C)
            losses = [
                F.cross_entropy(
                    model.head(some, batch.lengths).float(), some_targets, reduction="none"
                )
                for some, some_targets in zip(
                    hidden.split(targets_at_once), targets.split(targets_at_once), strict=True
                )
            ]
        sums = torch.zeros(len(rows), dtype=torch.float64)
        sums.index_add_(0, row_of_target, torch.cat(losses).cpu().double())
        return list(zip(sums.tolist(), counts.tolist(), strict=True))

    found = map_batches(losses_of, batches, desc)
    losses, targets = np.empty(len(dataset)), np.empty(len(dataset), dtype=np.int64)
    for rows, of_batch in zip(batches, found, strict=True):
        for row, (loss, count) in zip(rows, of_batch, strict=True):
            losses[row], targets[row] = loss, count
    return losses, targets


@torch.no_grad()
def evaluate_loss(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    precision: str,
    desc: str = "",
    max_tokens: int = 0,
) -> dict[str, float]:
    """Mean loss (nats) and perplexity over all targets of `dataset`. The model must be in
    evaluation mode. The mean is over targets, not over batches: the same at any batch size. A batch
    has at most `batch_size` rows and, unless 0, `max_tokens` tokens. `desc` names the bar."""
    device = next(model.parameters()).device

    def loss_of(rows: list[int]) -> tuple[float, int]:
        batch = collate([dataset[row] for row in rows]).to(device)
        with autocast(device, precision):
            loss, count = language_model_loss(model, batch)
        return loss.item(), count

    losses = map_batches(loss_of, sorted_batches(dataset.lengths, batch_size, max_tokens), desc)
    # in the order of the batches: the same sum on any number of processes
    total = sum(loss for loss, _ in losses)
    targets = sum(count for _, count in losses)
    return {"loss": total / targets, "perplexity": perplexity(total / targets)}


def perplexity(loss: float) -> float:
    """exp of a loss in nats, which for a hopeless model stays finite."""
    return math.exp(min(loss, 700))
