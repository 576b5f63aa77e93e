"""Chapter 4, what the training loop is told: its flags, what is trained, which
parameters decay, the rate of every step and of every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.lora import LoRA
from gpt2.model import GPT2, SIZES
from gpt2.support.device import ARITHMETIC
from gpt2.support.distributed import reshard
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, flag_name


@dataclass
class TrainingConfig:
    """Training"""

    epochs: int | None = flag(
        None, "passes over the training rows; left out, 3, or on little data what makes 90 steps",
        at_least=1, may_change=True,
    )  # fmt: skip
    max_steps: int = flag(
        0, "optimizer steps of the whole run, where the learning rate ends too: for a quick trial; "
        "0 makes all --epochs", at_least=0, may_change=True,
    )  # fmt: skip
    batch_size: int = flag(16, "rows in each optimizer step", at_least=1)
    micro_batch_size: int = flag(
        0, "rows in memory at once, in each process; lower it when memory runs out, the gradient "
        "stays the same; 0 takes the whole batch", at_least=0, may_change=True
    )  # fmt: skip
    micro_batch_tokens: int = flag(
        0, "tokens in memory at once, padding included; lower it when memory runs out on rows of "
        "very different lengths, the gradient stays the same; 0 sets no limit", at_least=0,
        may_change=True,
    )  # fmt: skip
    activation_checkpointing: bool = flag(
        False, "keep only the input of each block and compute the block again in the backward "
        "pass: far less memory, a third more time, the same numbers", may_change=True,
    )  # fmt: skip
    compile: bool = flag(
        False, "compile the blocks with torch.compile: a minute or more at the start, then faster "
        "steps, above all on a GPU; needs a C++ compiler", may_change=True,
    )  # fmt: skip
    optimizer: str | None = flag(
        None, "adamw, or muon for the matrices of the blocks and AdamW for all else, which learns "
        "more in as many steps; they take longer. Left out, muon for all weights of mini, if this "
        "torch has it, otherwise adamw", choices=("adamw", "muon"), in_older_runs="adamw",
    )  # fmt: skip
    learning_rate: float | None = flag(
        None, "peak rate; too high, the loss jumps, too low, it hardly moves. Left out, what suits "
        "--model, --train and --optimizer: random weights 6e-4; mini as a classifier 1.2e-3 with "
        "muon and 6e-4 with adamw, as a language model 2e-4; for last:N of a classifier and for "
        "lora 2e-3, for its head 1e-2; the released gpt2 to gpt2-xl and encoders 5e-5, for lora "
        "2e-4, for a classifier's head 1e-3", above=0,
    )  # fmt: skip
    warmup: float = flag(
        0.1, "share of the steps over which the rate rises from 0 to its peak; more if the loss "
        "jumps at the start", at_least=0, at_most=1,
    )  # fmt: skip
    schedule: str = flag(
        "cosine", "how the rate falls from its peak to 0; trapezoid stays at the peak until the "
        "last fifth of the steps, so that a run may be prolonged until then",
        choices=("cosine", "linear", "trapezoid", "constant"),
    )  # fmt: skip
    layer_decay: float = flag(
        1.0, "factor on the learning rate from each block to the one below it, the embeddings last "
        "(a tied head's too); 0.8 keeps more of the pre-training; 1 is one rate for all", above=0,
        at_most=1,
    )  # fmt: skip
    weight_decay: float = flag(0.1, "decay of matrices; biases and norms never decay", at_least=0)
    beta2: float = flag(
        0.99, "AdamW's memory of squared gradients; lower forgets sooner, higher is steadier with "
        "small batches", at_least=0, at_most=0.99999,
    )  # fmt: skip
    clip: float = flag(
        1.0, "largest norm of the whole gradient; lower it if the loss jumps; 0 does not clip",
        at_least=0,
    )  # fmt: skip
    train: str = flag(
        "all", "what to train: all; head, for a fast first look; last:N, the last N blocks, the "
        "final norm and the head, for less memory and less overfitting; lora, low-rank adapters "
        "and the head, for less memory and a checkpoint of a few megabytes",
    )  # fmt: skip
    lora_rank: int = flag(
        8, "rank of the adapters of --train lora; more can learn more, and takes more", at_least=1
    )
    lora_alpha: float = flag(
        16.0, "the adapters' update counts alpha / rank times; raise it with the rank", above=0
    )
    lora_dropout: float = flag(
        0.0, "share of the adapters' input dropped in training, against overfitting", at_least=0,
        at_most=0.9,
    )  # fmt: skip
    lora_on: str = flag(
        "attn,mlp", "the layers that get adapters, by parts of their names: attn, mlp, or one "
        "matrix, as c_attn; left out, of an encoder all linear layers of its blocks",
    )  # fmt: skip
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
        False, "under torchrun, split weights, gradients and AdamW's moments among the processes "
        "instead of copying them to each: for a model that does not fit; slower", may_change=True,
    )  # fmt: skip
    precision: str = flag(
        "auto", "arithmetic of matrix products; auto is bfloat16 where the device is fast at it, "
        "float16 where it is fast at that alone", choices=ARITHMETIC,
    )  # fmt: skip

    def __post_init__(self) -> None:
        parse_save_every(self.save_every)
        if self.train != "lora":
            for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_on"):
                value = getattr(self, name)
                if value != getattr(TrainingConfig, name):
                    raise UserError(f"{flag_name(name)} {value} goes with --train lora; add it")

    @property
    def lora(self) -> LoRA:
        """The adapters that --train lora makes, but for what they stand on."""
        return LoRA(self.lora_rank, self.lora_alpha, self.lora_dropout, self.lora_on)

    @property
    def rows_at_once(self) -> int:
        """Rows in memory at once, in training and in evaluation."""
        return self.micro_batch_size or self.batch_size


def steps_per_epoch(rows: int, config: TrainingConfig) -> int:
    """Optimizer steps that one pass over `rows` training rows takes."""
    return math.ceil(rows / config.batch_size)


def count_steps(rows: int, config: TrainingConfig) -> int:
    """Optimizer steps of the whole run: --epochs passes, cut by --max-steps. Without --epochs 3
    passes, or on little data as many as make 90 steps."""
    one_epoch = steps_per_epoch(rows, config)
    epochs = config.epochs or max(3, math.ceil(90 / one_epoch))
    steps = epochs * one_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


def choose_trainable(model: nn.Module, train: str) -> None:
    """Freeze all of `model`, a GPT2 or an Encoder, but what `train` names.

    "all", "head" (nothing but the head), or "last:N" (the last N blocks, and what is above them).
    With a tied language modelling head, training the head trains `wte`: they are one tensor.
    (`--train lora` is gpt2.lora.add_adapters.)

    Raises UserError if `train` is none of these, or if there are fewer than N blocks.
    """
    if train == "all":
        trained = list(model.parameters())
    elif train == "head":
        trained = list(model.head.parameters())
    elif train.startswith("last:") and train[5:].isdecimal():
        count, blocks = int(train[5:]), len(model.h)
        if not 1 <= count <= blocks:
            raise UserError(f"--train last:{count} is not possible: the model has {blocks} blocks")
        upper = model.layers()[-1 - count :]
        trained = [*(p for layer in upper for p in layer), *model.head.parameters()]
    else:
        raise UserError(f"--train '{train}' is not one of all, head, last:N (N blocks), lora")
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def default_optimizer(model: GPT2, config: TrainingConfig, pretrained: bool) -> str:
    """The optimizer where none is given: Muon for all weights of `mini`, which were made with it
    and learn more by it (docs/results.md#muon-in-fine-tuning), and of other pre-trained models as
    narrow; AdamW for all else, and where Muon cannot be had. `pretrained` tells whether the trunk's
    weights are."""
    narrow = pretrained and model.config.n_embd < SIZES["gpt2"].n_embd
    can_be_had = hasattr(torch.optim, "Muon") and not config.shard
    return "muon" if narrow and config.train == "all" and can_be_had else "adamw"


def default_learning_rate(model: GPT2, train: str, pretrained: bool, optimizer: str) -> float:
    """The peak rate where none is given: the less of `model` is trained, the more it takes to get
    anywhere, and the less there is to break. `train` is as in `choose_trainable`; `pretrained`
    tells whether the trunk's weights are; `optimizer` is "adamw" or "muon"."""
    # With a tied head, `head` and `last:N` train the embeddings too: a third of mini's weights.
    part = "all" if model.head.ties_wte and train != "lora" else train
    if pretrained and model.config.n_embd >= SIZES["gpt2"].n_embd:
        # the field's usual values, not measured here
        return {"head": 1e-3, "lora": 2e-4}.get(part, 5e-5)
    # Measured with mini's weights on the built-in texts and instructions, by validation loss
    if part == "all":
        if pretrained and model.head.ties_wte:
            return 2e-4  # a language model goes on with what it can do; a classifier's head is new
        return 1.2e-3 if pretrained and optimizer == "muon" else 6e-4
    return 1e-2 if part == "head" else 2e-3


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
    done = (step - warmup_steps) / max(1, steps - warmup_steps)  # 0 to just below 1
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    if config.schedule == "trapezoid":
        # Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
        # Durations": as good as cosine, and the length need not be known at the start
        return config.learning_rate * min(1.0, 5 * (1 - done))
    return config.learning_rate


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, steps: int, config: TrainingConfig
) -> float:
    """Give every group of parameters its rate in `step`; returns the rate before layer decay."""
    rate = learning_rate(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


def make_optimizer(
    model: nn.Module, config: TrainingConfig
) -> torch.optim.Optimizer | MuonAndAdamW:
    """AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization") over the trained
    parameters, or Muon and AdamW; the rate is set anew before each step. Raises UserError if Muon
    cannot be had."""
    reshard(model)  # a sharded model is whole after an evaluation
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    adamw = {"betas": (0.9, config.beta2), "fused": True}
    if config.optimizer != "muon":
        return torch.optim.AdamW(groups, **adamw)
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"--optimizer muon needs torch 2.9 or newer, this is {torch.__version__}")
    if config.shard:
        raise UserError("--optimizer muon needs whole matrices; leave out --shard")
    return MuonAndAdamW(model, groups, adamw)


class MuonAndAdamW:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases; to the training
    loop and to a checkpoint one optimizer.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": the step is the
    momentum with all its singular values made about 1, so that what is rare in the gradient is
    learnt as fast as what is common. Scaled as in Liu et al. 2025, "Muon is Scalable for LLM
    Training", it is as large as AdamW's: one rate suits both.
    """

    def __init__(self, model: GPT2, groups: list[dict[str, Any]], adamw: dict[str, Any]) -> None:
        matrices = {parameter for parameter in model.h.parameters() if parameter.dim() == 2}

        def part(of_muon: bool) -> list[dict[str, Any]]:
            parts = [
                group | {"params": [p for p in group["params"] if (p in matrices) == of_muon]}
                for group in groups
            ]
            return [group for group in parts if group["params"]]

        if not part(of_muon=True):
            raise UserError("--optimizer muon is for the matrices of blocks, and none is trained")
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(part(of_muon=True), adjust_lr_fn="match_rms_adamw")
        ]
        if part(of_muon=False):  # adapters may be all that is trained
            self.optimizers.append(torch.optim.AdamW(part(of_muon=False), **adamw))
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]
        self.state = self.optimizers[0].state
        for one in self.optimizers:
            one.state = self.state  # what a checkpoint saves and brings back

    def step(self) -> None:
        for one in self.optimizers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for one in self.optimizers:
            one.zero_grad(set_to_none)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """The trained parameters for AdamW, in groups of those that are treated alike:

    weight_decay  for matrices; 0 for biases and norms
    lr_scale      how much of the learning rate the group gets: all of it in the head and `ln_f`,
                  `layer_decay` times that in the last block, and so on down to the embeddings, a
                  tied output embedding among them. What lies low is general and should change
                  least (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text
                  Classification", section 3.2).

    A tied tensor stands in them once, because `named_parameters()` names it once: as an embedding.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    depth: dict[Tensor, int] = {}  # how many layers a parameter lies below the head
    for below_head, layer in enumerate(reversed(model.layers())):
        depth |= dict.fromkeys(layer, below_head)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        below_head = depth[parameter]
        decay = weight_decay if parameter.dim() >= 2 else 0.0
        groups.setdefault((decay, layer_decay**below_head), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": lr_scale}
        for (decay, lr_scale), parameters in groups.items()
    ]


def parse_save_every(text: str) -> tuple[int, float]:
    """ "200" -> (200, 0.0), steps; "10m" -> (0, 600.0), seconds."""
    number = text.removesuffix("m")
    if not number.isdecimal():
        raise UserError(f"--save-every {text}: must be steps, as 200, or minutes, as 10m")
    return (0, 60.0 * int(number)) if text.endswith("m") else (int(number), 0.0)
