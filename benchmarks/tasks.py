"""What throughput.py compares: the tasks, and who does each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks import contenders, savings
from benchmarks.measuring import Measured

OURS = "this project"
OURS_COMPILED = "this project, compiled"


@dataclass
class Contender:
    """One row of a table. `run` is a function of contenders.py and gets `options`; `does` says what
    it is, for the reader of the table."""

    name: str
    does: str
    run: Callable[..., Measured]
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # packages
    compiles: bool = False  # with torch.compile, for which a C++ compiler is needed
    in_bfloat16: bool = False  # in float32 it is what this project does


@dataclass
class Task:
    """One table: what its contenders do on the weights and rows of `data`."""

    title: str
    data: str  # "classification" or "instruction"
    contenders: list[Contender]


_TUNED = "{faster}rows of similar length together, fused AdamW, SDPA, nothing logged, no cache"
_TRAINERS = [
    Contender(
        "Trainer", "as it comes: float32, rows in random order", contenders.train_with_trainer,
        needs=("transformers", "accelerate"),
    ),
    Contender(
        "Trainer, tuned", _TUNED, contenders.train_with_trainer, {"tuned": True},
        needs=("transformers", "accelerate"),
    ),
    Contender(
        "Trainer, compiled", "tuned, and torch.compile", contenders.train_with_trainer,
        {"tuned": True, "compiled": True}, needs=("transformers", "accelerate"), compiles=True,
    ),
]  # fmt: skip
_TRAIN_HERE = Contender(
    OURS, "the loop of its training scripts, gpt2/training.py, with their defaults",
    contenders.train_here,
)  # fmt: skip

_HERE = [
    _TRAIN_HERE,
    Contender(
        OURS_COMPILED, "with --compile", contenders.train_here, {"compiled": True}, compiles=True,
    ),
]  # fmt: skip

_SAVINGS = [
    _TRAIN_HERE,
    Contender(
        "without bfloat16", "all in float32", savings.train_in, {"precision": "float32"},
        in_bfloat16=True,
    ),
    Contender(
        "without sorting", "batches of whatever lengths come together", savings.train_in,
        {"context": savings.in_random_order},
    ),
    Contender(
        "without blocks", "torch's own kernel for attention", savings.train_in,
        {"context": savings.torchs_attention}, in_bfloat16=True,
    ),
    Contender(
        "without skipping", "the last block's MLP for every token, read or not", savings.train_in,
        {"context": savings.whole_last_block},
    ),
    Contender(
        "without fusing", "AdamW in a loop over tensors, torch's default on a CPU",
        savings.train_in, {"context": savings.adamw_in_a_loop},
    ),
]  # fmt: skip

TASKS = {
    "training": Task("training a classifier", "classification", [*_HERE, *_TRAINERS]),
    "prediction": Task(
        "predicting classes, from texts to probabilities",
        "classification",
        [
            Contender(
                OURS, "predict of classification/predict.py", contenders.predict_here
            ),
            Contender(
                OURS_COMPILED, "with --compile", contenders.predict_here, {"compiled": True},
                compiles=True,
            ),
            Contender(
                "pipeline", "as it comes: float32, one text at a time",
                contenders.predict_with_pipeline, needs=("transformers",),
            ),
            Contender(
                "pipeline, tuned", "{faster}batches of texts of similar length, SDPA, no cache",
                contenders.predict_with_pipeline, {"tuned": True}, needs=("transformers",),
            ),
            Contender(
                "pipeline, compiled", "tuned, and torch.compile",
                contenders.predict_with_pipeline, {"tuned": True, "compiled": True},
                needs=("transformers",), compiles=True,
            ),
        ],
    ),
    "instruction": Task(
        "training on instructions, loss on the responses",
        "instruction",
        [
            *_HERE,
            *_TRAINERS,
            Contender(
                "SFTTrainer", "as it comes, with completion_only_loss: bfloat16 where it is fast, "
                "gradient checkpointing, rows in random order", contenders.train_with_sft,
                needs=("transformers", "accelerate", "trl"),
            ),
        ],
    ),
    "generation": Task(
        "answering instructions, greedily",
        "instruction",
        [
            Contender(OURS, "generate of gpt2/generation.py", contenders.generate_here),
            Contender(
                OURS_COMPILED, "with --compile", contenders.generate_here, {"compiled": True},
                compiles=True,
            ),
            Contender(
                "generate", "as it comes: float32, rows in their order",
                contenders.generate_with_transformers, needs=("transformers",),
            ),
            Contender(
                "generate, tuned", "{faster}prompts of similar length together, SDPA",
                contenders.generate_with_transformers, {"tuned": True}, needs=("transformers",),
            ),
        ],
    ),
    "savings": Task("training a classifier without one of the savings", "classification", _SAVINGS),
    "instruction-savings": Task(
        "training on instructions without one of the savings",
        "instruction",
        [
            *_SAVINGS,
            Contender(
                "without choosing", "logits, and the last MLP, of all tokens, pads and prompts too",
                savings.train_in, {"context": savings.all_logits_at_once},
            ),
        ],
    ),
}  # fmt: skip
