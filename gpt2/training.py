"""Chapter 4, fine-tuning: one explicit loop for every task.

The loop knows nothing of reviews or instructions. A task gives it a dataset, a loss and a way to
evaluate; the loop leaves a trained model. What is counted, printed, evaluated and saved on the way
is in gpt2/bookkeeping.py, where nothing touches a gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gpt2.batching import Batch, collate, cut_batch, steps_from
from gpt2.bookkeeping import Bookkeeping, StepSums, TrainingResult
from gpt2.checkpoint import Recipe
from gpt2.optimization import TrainingConfig, count_steps, make_optimizer, set_learning_rate
from gpt2.support.device import autocast, loss_scaler, to_numbers
from gpt2.support.distributed import (
    all_reduce_sum,
    full_tensor,
    micro_batches,
    parallel_objective,
    seed_step,
    sync_gradients,
    world_size,
)
from gpt2.support.run_folder import RunFolder
from gpt2.support.stopping import stop_if_asked


def train(
    model: nn.Module,
    dataset: Dataset,
    loss: Callable[[nn.Module, Batch], tuple[Tensor, int | Tensor]],
    evaluate: Callable[[], dict[str, float]],
    config: TrainingConfig,
    seed: int,
    run: RunFolder,
    recipe: Recipe,
    best_by: str = "loss",
) -> TrainingResult:
    """Train `model` in place; leave the weights that do best on validation in `best/` of the run
    folder and the last ones in `last/`. A run to resume goes on from its `last/`, and ends
    with the same bytes as one that was never stopped.

    dataset   rows of (tokens, target) with an array `lengths`
    loss      (model, batch) -> (sum over the batch's targets, how many there are or, where they
              weigh differently, the sum of their weights)
    evaluate  () -> metrics over the whole validation split, "loss" among them
    recipe    what is saved beside the weights: tokenizer, label names and so on
    best_by   the metric that is lowest for the best weights

    Raises NotFinite, naming step and rows, if a loss or the gradient is not finite; Stopped, after
    saving, if Ctrl-C or SIGTERM came; UserError if memory or the disk does not suffice.
    """
    device = next(model.parameters()).device
    model.activation_checkpointing = config.activation_checkpointing
    optimizer = make_optimizer(model, config)
    scaler = loss_scaler(device, config.precision)  # for float16; otherwise it does nothing
    objective = parallel_objective(model, loss)  # loss(model, batch), on one process or on many
    steps = count_steps(len(dataset), config)
    book = Bookkeeping(
        model, optimizer, scaler, dataset, evaluate, best_by, config, steps, run, recipe
    )
    book.start()  # at step 0 or, in a resumed run, with weights, moments and counters as they were

    model.train()
    with book.saving_on_stop():  # Ctrl-C and SIGTERM save before they end the run
        book.evaluate_if_due()  # before the first step: what the training is measured against
        ahead = batches_from(book.step, steps, dataset, config, seed)
        coming = next(ahead, None)
        while coming and not book.patience_is_over():
            step, rows, batches = coming
            started = time.perf_counter()
            seed_step(seed, step)  # dropout draws what it would have drawn in an unbroken run

            # --- 1. forward and backward: the gradient of the *sum* of the losses of all rows
            sums = add_gradients(objective, scaler, batches, config, device)
            coming = next(ahead, None)  # made while a GPU is at work on this step

            # --- 2. divide by the number of targets, then clip the norm to --clip
            norm = average_and_clip(optimizer, scaler, sums, config.clip)
            book.check_finite(sums, norm, rows)  # before it gets into the weights

            # --- 3. update
            rate = set_learning_rate(optimizer, step, steps, config)
            scaler.step(optimizer)  # not if the gradient has overflowed in float16
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            # --- 4. count and log; now and then evaluate and save
            book.count(sums, rate, norm, started)
            if not book.evaluate_if_due():
                book.save_if_due()
    return book.result()


def batches_from(
    first: int, steps: int, dataset: Dataset, config: TrainingConfig, seed: int
) -> Iterator[tuple[int, list[int], list[tuple[Batch, int]]]]:
    """Each step from `first` to `steps` - 1, its rows, and this process's part of them (alone: all)
    as micro-batches, each of as many rows as fit into memory, with its weight: 1, or 0 for the
    filler of a process that has no rows left."""

    def cut(some_rows: Sequence[int]) -> list[list[int]]:
        return cut_batch(some_rows, dataset.lengths, config.rows_at_once, config.micro_batch_tokens)

    for step, rows in steps_from(first, steps, dataset.lengths, config.batch_size, seed):
        seed_step(seed, step)  # for a dataset that draws random numbers
        own = micro_batches(rows, cut)
        yield step, rows, [(collate([dataset[row] for row in part]), w) for part, w in own]


def add_gradients(
    objective: nn.Module,
    scaler: torch.amp.GradScaler,
    batches: Sequence[tuple[Batch, int]],
    config: TrainingConfig,
    device: torch.device,
) -> StepSums:
    """Forward and backward over the micro-batches of one step, each with its weight. Nothing here
    waits for a GPU.

    Each micro-batch adds the gradient of its *summed* loss to `.grad`, so the total does not depend
    on how the rows are cut: 8, 4 + 4 and 5 + 3 give the same. The micro-batches' *means* would not
    do: a short micro-batch would count as much as a long one.
    """
    sums = StepSums(loss=torch.zeros((), device=device))
    for number, (batch, weight) in enumerate(batches, start=1):
        # Many processes add up their gradients once a step, after the last micro-batch.
        with sync_gradients(objective, now=number == len(batches)):
            with autocast(device, config.precision):
                loss, targets = objective(batch.to(device))
            loss = weight * loss
            scaler.scale(loss).backward()
        sums.loss += loss.detach()
        sums.targets += weight * targets
        sums.real_tokens += weight * int(batch.lengths.sum())
        sums.all_tokens += weight * batch.tokens.numel()
        stop_if_asked()  # Ctrl-C: this step is dropped; the resumed run takes it again
    return StepSums(*all_reduce_sum(sums.loss, sums.targets, sums.real_tokens, sums.all_tokens))


def average_and_clip(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, sums: StepSums, clip: float
) -> float:
    """Divide the gradient by the targets of the whole step, over all micro-batches and processes,
    and scale it down to the norm `clip` if it is longer (0: never). Returns the norm before
    clipping; the tensors of `sums` are numbers from here on."""
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    # DistributedDataParallel leaves the mean of the processes' gradients on each of them; times the
    # number of processes it is their sum, which is what is divided here.
    norm = full_tensor(nn.utils.get_total_norm(gradients))
    # The one time in each step that a GPU is waited for.
    sums.loss, sums.targets, norm = to_numbers(sums.loss, sums.targets, norm)
    scale = world_size() / sums.targets
    norm *= scale
    if clip and math.isfinite(norm):
        scale *= min(1.0, clip / (norm + 1e-6))  # 1e-6 avoids division by zero
    # Mean and clipping in one pass: gradients are as large as the model.
    torch._foreach_mul_(gradients, scale)
    return norm
