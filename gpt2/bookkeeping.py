"""Chapter 4, beside the loop: what it counts, prints, evaluates and saves. Nothing here touches a
gradient; the loop calls this file, never the other way round."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from gpt2.checkpoint import Recipe, TrainingState, load_training, save_checkpoint
from gpt2.optimization import TrainingConfig, parse_save_every, steps_per_epoch
from gpt2.support.device import out_of_memory, peak_memory
from gpt2.support.distributed import all_reduce_max, check_alike
from gpt2.support.durable import check_folder, whole_folder
from gpt2.support.errors import UserError
from gpt2.support.run_folder import RunFolder
from gpt2.support.stopping import Stopped


@dataclass
class TrainingResult:
    """What a run took. `seconds` leaves evaluation and saving out."""

    steps: int
    epochs: float
    seconds: float
    tokens: int  # real tokens, padding left out
    useful_token_share: float  # real tokens among all, padding included
    peak_memory: int  # bytes: of this process or, on a GPU, of its memory in tensors
    best_step: int
    stopped_early: bool
    skipped_steps: int  # whose gradient overflowed in float16


@dataclass
class StepSums:
    """What the micro-batches of one step add up to, over all processes."""

    loss: Tensor | float  # in nats; a tensor () on the device until the step is averaged
    targets: Tensor | float = 0  # how many; or the sum of their weights, which may be a tensor too
    real_tokens: int = 0  # padding left out
    all_tokens: int = 0


class NotFinite(Exception):
    """The loss or the gradient became infinite or NaN in a step over these `rows` of the training
    set, or the validation loss did, without rows. Checkpoints from before are intact."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows

    @classmethod
    def in_step(cls, step: int, sums: StepSums, norm: float, rows: list[int]) -> NotFinite:
        """Of a training step, the first being 1."""
        loss = sums.loss / sums.targets
        shown = ", ".join(map(str, rows))
        return cls(f"step {step}: loss {loss:g}, gradient norm {norm:g} on training rows {shown}",
                   rows)  # fmt: skip


MOST_SKIPPED = 30  # steps in a row: the loss is then scaled by a billionth of what it was


class Bookkeeping:
    """The counters of a run (`state`), its log and bar, and when to evaluate and to save.

    `steps` is the length of the whole run; the other arguments are those of `train`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        dataset: Dataset,
        evaluate: Callable[[], dict[str, float]],
        best_by: str,
        config: TrainingConfig,
        steps: int,
        run: RunFolder,
        recipe: Recipe,
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.evaluate, self.best_by = evaluate, best_by
        self.config, self.steps, self.run, self.recipe = config, steps, run, recipe
        self.steps_per_epoch = steps_per_epoch(len(dataset), config)
        self.evaluate_every = config.evaluate_every or self.steps_per_epoch
        self.save_steps, self.save_seconds = parse_save_every(config.save_every)
        self.data = _checksum(dataset)
        self.state = TrainingState()

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.state.step

    def start(self) -> None:
        """Take up the run where it stopped, if it is one to resume, and cut its log to there.
        Raises UserError if it cannot be resumed."""
        check_alike("the training rows", self.data)
        last = self.run.folder / "last"
        if self.run.resume and whole_folder(last).exists():
            self.state = load_training(last, self.model, self.optimizer, self.data)
            if self.state.scaler and self.scaler.is_enabled():
                self.scaler.load_state_dict(self.state.scaler)
            self._check_resumed()
        elif self.run.resume:
            tqdm.write("this run has saved nothing yet: it starts again")
        self.run.keep_log(self.state.log_records)
        self.saved_at = time.monotonic()
        self.bar = tqdm(
            total=self.steps, initial=self.step, unit="step", disable=None, dynamic_ncols=True
        )

    def _check_resumed(self) -> None:
        if self.step > self.steps:
            raise UserError(
                f"{self.run.folder}: has {self.step} steps already, but --epochs or --max-steps "
                f"ask for {self.steps}; raise them"
            )
        tqdm.write(f"going on after step {self.step} of {self.steps}")
        if self.state.best_loss is not None and self.step < self.steps:
            try:
                check_folder(whole_folder(self.run.folder / "best"))
            except UserError as error:
                tqdm.write(f"{error}; the next evaluation saves best/ anew")
                self.state.best_loss, self.state.evaluations_since_best = None, 0

    def patience_is_over(self) -> bool:
        """Whether --patience ends the run: that many evaluations without a lower loss."""
        return 0 < self.config.patience <= self.state.evaluations_since_best

    def check_finite(self, sums: StepSums, norm: float, rows: list[int]) -> None:
        """Raises NotFinite if the loss of a step over `rows` or the norm of its gradient is not
        finite. In float16 a norm may be, some steps in a row, because the scaler skips these steps
        and scales the next losses less."""
        may_skip = self.scaler.is_enabled() and self.state.skipped_in_a_row < MOST_SKIPPED
        if not (math.isfinite(sums.loss) and (math.isfinite(norm) or may_skip)):
            raise NotFinite.in_step(self.step + 1, sums, norm, rows)

    def count(self, sums: StepSums, rate: float, norm: float, started: float) -> None:
        """Count one finished step, show it on the bar and, every --log-every steps, log it."""
        state = self.state
        # (A GPU may be at the update still; the next step waits for it, and has its time.)
        seconds = time.perf_counter() - started
        state.step += 1
        state.seconds += seconds
        state.real_tokens += sums.real_tokens
        state.all_tokens += sums.all_tokens
        state.logged_loss += sums.loss
        state.logged_targets += sums.targets
        skipped = not math.isfinite(norm)
        state.skipped_steps += skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        state.seen_loss += sums.loss
        state.seen_targets += sums.targets
        self.bar.update()
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            mean_loss = state.logged_loss / state.logged_targets
            self.run.log(
                {
                    "step": self.step,
                    "epoch": self._epoch(),
                    "loss": mean_loss,
                    "learning_rate": rate,
                    "gradient_norm": None if skipped else norm,
                    **self._about_float16(),
                }
            )
            self.bar.set_postfix_str(
                f"loss {mean_loss:.3f}, rate {rate:.1e}, {sums.real_tokens / seconds:,.0f} tokens/s"
            )
            state.logged_loss, state.logged_targets = 0.0, 0

    def _about_float16(self) -> dict[str, float]:
        if not self.scaler.is_enabled():
            return {}
        return {"skipped_steps": self.state.skipped_steps, "loss_scale": self.scaler.get_scale()}

    def evaluate_if_due(self) -> bool:
        """Before the first step, every --evaluate-every steps and at the end: evaluate on the
        validation split; but for the first time, save `last/` too, and `best/` if these weights
        are the best so far. Returns whether it was due."""
        state = self.state
        due = self.step % self.evaluate_every == 0 or self.step == self.steps
        if not due or state.evaluated_at == self.step:
            return False
        self.model.eval()
        metrics = self.evaluate()
        self.model.train()
        if not math.isfinite(metrics["loss"]):
            raise NotFinite(f"step {self.step}: the validation loss is {metrics['loss']}", [])
        self._report(metrics)
        state.seen_loss, state.seen_targets = 0.0, 0
        state.evaluated_at, state.validation = self.step, metrics
        if self.step > 0:
            state.evaluations_since_best += 1
            if state.best_loss is None or metrics[self.best_by] < state.best_loss:
                state.best_loss, state.best_step = metrics[self.best_by], self.step
                state.evaluations_since_best = 0
                save_checkpoint(self.run.folder / "best", self.model, self.recipe, state)
            self.save_last()
        return True

    def _report(self, metrics: dict[str, float]) -> None:
        self.run.log({"step": self.step, "epoch": self._epoch(), "validation": metrics})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        if self.step == 0:
            self.state.first_loss = metrics[self.best_by]
            tqdm.write(f"before training, validation: {shown}")
        else:
            training_loss = self.state.seen_loss / self.state.seen_targets
            self.bar.write(
                f"step {self.step} of {self.steps}, epoch {self._epoch():.2f}, training: loss "
                f"{training_loss:.4f}; validation: {shown}"
            )

    def save_if_due(self) -> None:
        """Save `last/` if --save-every says so."""
        if self.save_steps:
            due = self.step % self.save_steps == 0
        else:
            long_ago = time.monotonic() - self.saved_at >= self.save_seconds
            due = self.save_seconds and all_reduce_max(long_ago)  # one process's clock for all
        if due:
            self.save_last()

    def save_last(self) -> None:
        """Save what the run goes on from: weights, the optimizer's state, counters."""
        self.state.log_records = self.run.log_records
        self.state.scaler = self.scaler.state_dict()
        save_checkpoint(
            self.run.folder / "last", self.model, self.recipe, self.state, self.optimizer, self.data
        )
        self.saved_at = time.monotonic()

    @contextlib.contextmanager
    def saving_on_stop(self) -> Iterator[None]:
        """Around the loop: Ctrl-C and SIGTERM save before they end it, and a lack of memory is said
        in one line."""
        try:
            yield
        except Stopped:
            self.save_last()
            raise
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            message = _how_to_save_memory(self.step + 1, self.config.rows_at_once)
            raise UserError(message) from None
        finally:
            self.bar.close()

    def result(self) -> TrainingResult:
        """What the finished run took."""
        state = self.state
        if None not in (state.best_loss, state.first_loss) and state.best_loss >= state.first_loss:
            tqdm.write("no evaluation was better than the one before training: see the curves")
        return TrainingResult(
            steps=self.step,
            epochs=self._epoch(),
            seconds=state.seconds,
            tokens=state.real_tokens,
            useful_token_share=state.real_tokens / state.all_tokens,
            peak_memory=peak_memory(next(self.model.parameters()).device),
            best_step=state.best_step,
            stopped_early=self.step < self.steps,
            skipped_steps=state.skipped_steps,
        )

    def _epoch(self) -> float:
        return round(self.step / self.steps_per_epoch, 4)


def _checksum(dataset: Dataset) -> str:
    """SHA-256 of all rows. Lengths alone would miss a corrected label."""
    digest = hashlib.sha256()
    for row in range(len(dataset)):
        for tensor in dataset[row]:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _how_to_save_memory(step: int, rows_at_once: int) -> str:
    smaller = (
        f"--micro-batch-size {rows_at_once // 2} halves what a step needs and keeps the "
        "gradient (rows are summed up to --batch-size); "
        if rows_at_once > 1
        else ""
    )
    return (
        f"out of memory in step {step}, with {rows_at_once} rows at once: {smaller}"
        "--activation-checkpointing keeps it too, and takes time; --max-length, where rows are "
        "cut, and a smaller --model save more. What was saved is intact; --resume RUN goes on from "
        "it, with a smaller --micro-batch-size or --activation-checkpointing"
    )
