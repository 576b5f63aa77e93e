"""Chapter 4, fine-tuning: one explicit AdamW loop for every task.

The loop knows nothing of reviews or instructions. A task gives it a dataset, a loss and a way to
evaluate; the loop gives back a trained model, a log and two checkpoints.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from gpt2.batching import Batch, collate, cut_batch, shuffled_batches
from gpt2.checkpoint import Checkpoint, Progress, load_training, save_checkpoint
from gpt2.command_line import UserError, out_of_memory
from gpt2.device import autocast, peak_memory
from gpt2.distributed import (
    all_reduce_max,
    all_reduce_sum,
    check_alike,
    full_tensor,
    micro_batches,
    parallel_objective,
    reshard,
    seed_step,
    sync_gradients,
    world_size,
)
from gpt2.durable import check_folder, whole_folder
from gpt2.optimization import TrainingConfig, learning_rate, parameter_groups, parse_save_every
from gpt2.run_folder import RunFolder
from gpt2.stopping import Stopped, stop_if_asked


@dataclass
class TrainingResult:
    """What a run took. `seconds` leaves evaluation and saving out."""

    steps: int
    epochs: float
    seconds: float
    tokens: int  # real tokens, padding left out
    useful_token_share: float  # real tokens among all, padding included
    peak_memory: int  # bytes, of this process; of a GPU's memory, in tensors
    best_step: int
    stopped_early: bool


class NotFinite(Exception):
    """The loss or the gradient became infinite or NaN in a step over these `rows` of the training
    set, or the validation loss did, without rows. Checkpoints from before are intact."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


def train(
    model: nn.Module,
    dataset: Dataset,
    loss: Callable[[nn.Module, Batch], tuple[Tensor, int]],
    evaluate: Callable[[], dict[str, float]],
    config: TrainingConfig,
    seed: int,
    run: RunFolder,
    checkpoint: Checkpoint,
) -> TrainingResult:
    """Train `model` in place; leave the weights with the lowest validation loss in `best/` of the
    run folder and the last ones in `last/`. A run to resume goes on from its `last/`, and ends
    with the same bytes as one that was never stopped.

    dataset     rows of (tokens, target) with an array `lengths`
    loss        (model, batch) -> (sum over the batch's targets, how many there are)
    evaluate    () -> metrics over the whole validation split, "loss" among them
    checkpoint  what is saved beside the weights: tokenizer, label names and so on

    Raises NotFinite, naming step and rows, if a loss or the gradient is not finite; Stopped, after
    saving, if Ctrl-C or SIGTERM came; UserError if memory or the disk does not suffice.
    """
    device = next(model.parameters()).device
    if device.type == "mps" and config.activation_checkpointing and model.config.dropout:
        raise UserError(
            "--activation-checkpointing and --dropout do not go together on mps, where torch drops "
            "others the second time (pytorch #127676); leave one of them out"
        )
    reshard(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay, config.layer_decay),
        betas=(0.9, config.beta2),
        fused=True,
    )
    objective = parallel_objective(model, loss)  # loss(model, batch), on however many processes
    model.activation_checkpointing = config.activation_checkpointing
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    steps_per_epoch = math.ceil(len(dataset) / config.batch_size)
    epochs = config.epochs or max(3, math.ceil(180 / steps_per_epoch))
    steps = epochs * steps_per_epoch
    if config.max_steps:
        steps = min(steps, config.max_steps)
    evaluate_every = config.evaluate_every or steps_per_epoch
    save_steps, save_seconds = parse_save_every(config.save_every)

    # --- from the start, or from where the run stopped
    data = _checksum(dataset)
    check_alike("the training rows", data)
    progress = Progress()  # what the loop counts; saved with the weights
    if run.resume and whole_folder(run.folder / "last").exists():
        progress = _go_on(run, model, optimizer, data, steps)
    run.keep_log(progress.log_records)
    saved_at = time.monotonic()
    bar = tqdm(total=steps, initial=progress.step, unit="step", disable=None, dynamic_ncols=True)

    def save_last() -> None:
        nonlocal saved_at
        progress.log_records = run.log_records
        save_checkpoint(run.folder / "last", model, checkpoint, progress, optimizer, data)
        saved_at = time.monotonic()

    def evaluate_and_save() -> None:
        model.eval()
        metrics = evaluate()
        model.train()
        if not math.isfinite(metrics["loss"]):
            raise NotFinite(f"step {progress.step}: the validation loss is {metrics['loss']}", [])
        epoch = round(progress.step / steps_per_epoch, 4)
        run.log({"step": progress.step, "epoch": epoch, "validation": metrics})
        if progress.step == 0:
            progress.first_loss = metrics["loss"]
            tqdm.write(f"before training, validation: {_show(metrics)}")
        else:
            bar.write(
                f"step {progress.step} of {steps}, epoch {epoch:.2f}, training: loss "
                f"{progress.seen_loss / progress.seen_targets:.4f}; validation: {_show(metrics)}"
            )
        progress.seen_loss, progress.seen_targets = 0.0, 0
        progress.evaluated_at, progress.validation = progress.step, metrics
        if progress.step > 0:
            progress.evaluations_since_best += 1
            if progress.best_loss is None or metrics["loss"] < progress.best_loss:
                progress.best_loss, progress.best_step = metrics["loss"], progress.step
                progress.evaluations_since_best = 0
                save_checkpoint(run.folder / "best", model, checkpoint, progress)
            save_last()

    def cut(rows: Sequence[int]) -> list[list[int]]:
        return cut_batch(rows, dataset.lengths, config.rows_at_once, config.micro_batch_tokens)

    def evaluation_is_due() -> bool:
        at = progress.step
        return (at % evaluate_every == 0 or at == steps) and progress.evaluated_at != at

    def save_is_due() -> bool:
        if save_steps:
            return progress.step % save_steps == 0
        return save_seconds and all_reduce_max(time.monotonic() - saved_at >= save_seconds)

    def finished() -> bool:
        return progress.step >= steps or 0 < config.patience <= progress.evaluations_since_best

    model.train()
    try:
        if evaluation_is_due():
            evaluate_and_save()

        while not finished():
            epoch, place = divmod(progress.step, steps_per_epoch)
            batches = shuffled_batches(dataset.lengths, config.batch_size, seed, epoch)
            for rows in batches[place:]:
                if finished():
                    break
                started = time.perf_counter()
                seed_step(seed, progress.step)

                # --- forward and backward, one micro-batch after the other
                loss_sum = torch.zeros((), device=device)
                targets = real_tokens = all_tokens = 0
                own = micro_batches(rows, cut)  # counts: 0 for a row that only helps to exchange
                for number, (micro_batch, counts) in enumerate(own, start=1):
                    batch = collate([dataset[row] for row in micro_batch])
                    real_tokens += counts * int(batch.lengths.sum())
                    all_tokens += counts * batch.tokens.numel()
                    with sync_gradients(objective, now=number == len(own)):
                        with autocast(device, config.precision):
                            micro_loss, micro_targets = objective(batch.to(device))
                        micro_loss = counts * micro_loss
                        micro_loss.backward()  # of the sum: gradients of all micro-batches add up
                    loss_sum += micro_loss.detach()
                    targets += counts * micro_targets
                    # A step that is not finished counts for nothing: the resumed run repeats it.
                    stop_if_asked()

                # --- the mean over all targets of the step. A mean of the micro-batches' means
                # would give short micro-batches more weight, and the gradient would depend on the
                # cut. (The processes have exchanged the mean of their gradients, not the sum.)
                loss_sum, targets, real_tokens, all_tokens = all_reduce_sum(
                    loss_sum, targets, real_tokens, all_tokens
                )
                gradients = [p.grad for p in trained if p.grad is not None]
                factor = world_size() / targets
                norm = factor * full_tensor(nn.utils.get_total_norm(gradients)).item()
                if not (torch.isfinite(loss_sum) and math.isfinite(norm)):
                    raise NotFinite(
                        f"step {progress.step + 1}: loss {loss_sum.item() / targets:g}, gradient "
                        f"norm {norm:g} on training rows {', '.join(map(str, rows))}",
                        rows,
                    )
                if config.clip:
                    factor *= min(1.0, config.clip / (norm + 1e-6))  # 1e-6: it may be 0
                for gradient in gradients:  # once for both: they are as large as the model
                    gradient *= factor

                # --- update
                rate = learning_rate(progress.step, steps, config)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["rate_share"]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step_loss = loss_sum.item()  # waits until a GPU has done the update

                # --- count and log
                step_seconds = time.perf_counter() - started
                progress.step += 1
                progress.seconds += step_seconds
                progress.real_tokens += real_tokens
                progress.all_tokens += all_tokens
                progress.logged_loss += step_loss
                progress.logged_targets += targets
                progress.seen_loss += step_loss
                progress.seen_targets += targets
                bar.update()
                if progress.step % config.log_every == 0 or progress.step == steps:
                    mean_loss = progress.logged_loss / progress.logged_targets
                    run.log(
                        {
                            "step": progress.step,
                            "epoch": round(progress.step / steps_per_epoch, 4),
                            "loss": mean_loss,
                            "learning_rate": rate,
                            "gradient_norm": norm,
                        }
                    )
                    bar.set_postfix_str(
                        f"loss {mean_loss:.3f}, rate {rate:.1e}, "
                        f"{real_tokens / step_seconds:,.0f} tokens/s"
                    )
                    progress.logged_loss, progress.logged_targets = 0.0, 0

                # --- evaluate and save
                if evaluation_is_due():
                    evaluate_and_save()
                elif save_is_due():
                    save_last()
    except Stopped:
        save_last()
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(_how_to_save_memory(progress.step + 1, config.rows_at_once)) from None
    finally:
        bar.close()
    best, first = progress.best_loss, progress.first_loss
    if best is not None and first is not None and best >= first:
        tqdm.write("no evaluation was better than the one before training: see the curves")
    return TrainingResult(
        steps=progress.step,
        epochs=round(progress.step / steps_per_epoch, 4),
        seconds=progress.seconds,
        tokens=progress.real_tokens,
        useful_token_share=progress.real_tokens / progress.all_tokens,
        peak_memory=peak_memory(device),
        best_step=progress.best_step,
        stopped_early=progress.step < steps,
    )


def _go_on(
    run: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer, data: str, steps: int
) -> Progress:
    """Load what `last/` holds into model and optimizer."""
    progress = load_training(run.folder / "last", model, optimizer, data)
    if progress.step > steps:
        raise UserError(
            f"{run.folder}: has {progress.step} steps already, but --epochs or --max-steps ask for "
            f"{steps}; raise them"
        )
    tqdm.write(f"going on after step {progress.step} of {steps}")
    if progress.best_loss is not None and progress.step < steps:
        try:
            check_folder(whole_folder(run.folder / "best"))
        except UserError as error:
            tqdm.write(f"{error}; the next evaluation saves best/ anew")
            progress.best_loss, progress.evaluations_since_best = None, 0
    return progress


def _checksum(dataset: Dataset) -> str:
    """SHA-256 of all rows. Lengths alone would miss a corrected label."""
    digest = hashlib.sha256()
    for row in range(len(dataset)):
        for tensor in dataset[row]:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _how_to_save_memory(step: int, micro_batch_size: int) -> str:
    smaller = (
        f"--micro-batch-size {micro_batch_size // 2} halves what a step needs and keeps the "
        "gradient (rows are summed up to --batch-size); "
        if micro_batch_size > 1
        else ""
    )
    return (
        f"out of memory in step {step}, with {micro_batch_size} rows at once: {smaller}"
        "--activation-checkpointing keeps it too, and takes time; --max-length, where rows are "
        "cut, and a smaller --model save more. What was saved is intact; --resume RUN goes on from "
        "it, with a smaller --micro-batch-size or --activation-checkpointing"
    )


def _show(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
