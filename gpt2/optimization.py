"""What the training loop is told: its flags, the rate of every step, which parameters decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from gpt2.command_line import UserError, flag


@dataclass
class TrainingConfig:
    """Training"""

    epochs: int | None = flag(
        None, "passes over the training rows; left out, 3, or on little data what makes 180 steps",
        at_least=1, may_change=True,
    )  # fmt: skip
    max_steps: int = flag(
        0, "optimizer steps at which to stop early; 0 runs all epochs", at_least=0, may_change=True
    )
    batch_size: int = flag(16, "rows in each optimizer step", at_least=1)
    micro_batch_size: int = flag(
        0, "rows in memory at once, in each process; lower it when memory runs out, the gradient "
        "stays the same; 0 takes the whole batch", at_least=0, may_change=True
    )  # fmt: skip
    micro_batch_tokens: int = flag(
        0, "tokens in memory at once, padding included; what rows are for data of one length, this "
        "is for data of many: many short rows or a few long ones; 0 sets no limit", at_least=0,
        may_change=True,
    )  # fmt: skip
    activation_checkpointing: bool = flag(
        False, "keep each block's input alone and compute the block once more in the backward "
        "pass: far less memory, a third more time, the same numbers", may_change=True,
    )  # fmt: skip
    learning_rate: float = flag(
        6e-4, "peak rate of AdamW; the larger the model, the lower", above=0
    )  # fmt: skip
    warmup: float = flag(
        0.1,
        "share of the steps over which the rate rises from 0 to its peak",
        at_least=0,
        at_most=1,
    )
    schedule: str = flag(
        "cosine", "how the rate falls from its peak to 0; trapezoid stays at the peak until the "
        "last fifth of the steps, so that a run may be prolonged until then",
        choices=("cosine", "linear", "trapezoid", "constant"),
    )  # fmt: skip
    weight_decay: float = flag(
        0.1, "AdamW's decay of matrices; biases and norms never decay", at_least=0
    )
    beta2: float = flag(
        0.99,
        "AdamW's memory of squared gradients; lower forgets sooner",
        at_least=0,
        at_most=0.99999,
    )
    clip: float = flag(1.0, "largest global norm of the gradient; 0 does not clip", at_least=0)
    train: str = flag("all", "what to train: all, head, or last:N (the last N blocks and the head)")
    evaluate_every: int = flag(
        0, "steps between evaluations on the validation split; 0 evaluates after each epoch",
        at_least=0, may_change=True,
    )  # fmt: skip
    patience: int = flag(
        0, "stop after so many evaluations without a lower validation loss; 0 never stops",
        at_least=0, may_change=True,
    )  # fmt: skip
    log_every: int = flag(
        10, "steps between two lines of metrics.jsonl", at_least=1, may_change=True
    )
    save_every: str = flag(
        "10m", "steps (200) or minutes (10m) between two saves of last/, to resume from; 0 saves "
        "at evaluations only", may_change=True,
    )  # fmt: skip
    shard: bool = flag(
        False, "under torchrun, keep a part of weights, gradients and AdamW's moments in each "
        "process instead of all in all: for a model that does not fit, and slower", may_change=True,
    )  # fmt: skip
    precision: str = flag(
        "auto", "arithmetic of matrix products; auto takes bfloat16 where the device is fast at it",
        choices=("auto", "float32", "bfloat16"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        parse_save_every(self.save_every)

    @property
    def rows_at_once(self) -> int:
        """Rows in memory at once, in training and in evaluation."""
        return self.micro_batch_size or self.batch_size


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """The rate of optimizer step `step` (0 to steps - 1): linear warm-up to the peak, then decay
    towards 0. A pure function of the step, so that nothing of it needs saving.

    The first step has a rate above 0, the last warm-up step has the peak, and a warm-up as long as
    the run still reaches the peak.

    >>> config = TrainingConfig(learning_rate=1.0, warmup=0.5, schedule="linear")
    >>> [learning_rate(step, 4, config) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = round(config.warmup * steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)  # 0 to just below 1
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    if config.schedule == "trapezoid":
        # Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
        # Durations": as good as cosine, and the length need not be known at the start
        return config.learning_rate * min(1.0, 5 * (1 - progress))
    return config.learning_rate


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The trained parameters for AdamW: matrices decay, biases and norms do not. A tied tensor
    stands in it once, because `parameters()` counts it once."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def parse_save_every(text: str) -> tuple[int, float]:
    """ "200" -> (200, 0.0), steps; "10m" -> (0, 600.0), seconds."""
    number = text.removesuffix("m")
    if not number.isdecimal():
        raise UserError(f"--save-every {text}: must be steps, as 200, or minutes, as 10m")
    return (0, 60.0 * int(number)) if text.endswith("m") else (int(number), 0.0)
