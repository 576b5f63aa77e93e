"""What makes training fast changes nothing: after 20 steps the weights are those of the plain path.

The plain path is written out here: each row by itself and without a pad, softmax as in the paper,
the logits of every position, the mean over all targets of a step, torch's own AdamW one parameter
at a time."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from classification.data import IMDbDataset
from classification.evaluation import classification_loss
from gpt2.batching import IGNORE, shuffled_batches
from gpt2.checkpoint import Recipe
from gpt2.heads import POOLINGS, ClassificationHead, LanguageModelHead
from gpt2.language_modelling import language_model_loss
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig, learning_rate
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from gpt2.training import train
from instruction.data import InstructionDataset
from instruction.template import Template

SHAPE = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=96, vocab_size=8192, dropout=0.0)
# 22 rows: 4 steps an epoch, of which one has 4 rows
CONFIG = TrainingConfig(
    epochs=5, batch_size=6, learning_rate=1e-3, precision="float32", log_every=1, save_every="0",
    clip=4.0,  # some steps are clipped and others are not, or AdamW would not see a wrong scale
)  # fmt: skip
SEED = 3


def reviews():
    words = "a dull start but what an ending fine film , bad actors and no story at all".split()
    texts = [" ".join((words * 5)[row : 2 + row * row % 61]) or "so" for row in range(22)]
    labels = [row % 3 for row in range(22)]
    return IMDbDataset(texts, labels, get_encoding("mini"), 48)


def instructions():
    rows = [(f"Say {'very ' * (row % 4)}much.", "", "word " * (1 + 7 * row % 17))
            for row in range(22)]  # fmt: skip
    template = Template(without_input="Q: {instruction} A:")
    return InstructionDataset(rows, template, get_encoding("mini"), 40)


def plain_hidden(model, tokens):
    """Hidden states (T, C) of one row (T,)."""
    T, C = len(tokens), model.config.n_embd
    hidden_pairs = torch.ones(T, T, dtype=torch.bool).triu(1)
    x = model.wte.weight[tokens] + model.wpe.weight[:T]
    for block in model.h:
        heads = block.attn.c_attn(block.ln_1(x)).view(T, 3, model.config.n_head, -1)
        q, k, v = heads.permute(1, 2, 0, 3)  # (n_head, T, head_size)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(2))
        seen = scores.masked_fill(hidden_pairs, -math.inf).softmax(dim=2) @ v
        x = x + block.attn.c_proj(seen.transpose(0, 1).reshape(T, C))
        x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
    return model.ln_f(x)


def plain_row_loss(model, tokens, target):
    """(sum, number of targets) of one row."""
    hidden = plain_hidden(model, tokens)
    if isinstance(model.head, LanguageModelHead):
        logits = hidden @ model.wte.weight.T
        return F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum"), int(
            (target != IGNORE).sum()
        )
    pooled = {
        "last": lambda: hidden[-1],
        "first": lambda: hidden[0],
        "mean": lambda: hidden.mean(dim=0),
        "attention": lambda: (
            (hidden @ model.head.query / math.sqrt(hidden.size(1))).softmax(dim=0) @ hidden
        ),
    }[model.head.pooling]()
    return F.cross_entropy(model.head.score.weight @ pooled, target, reduction="sum"), 1


def train_plainly(model, dataset):
    """The losses of all steps."""
    decaying = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decaying, "weight_decay": CONFIG.weight_decay},
              {"params": others, "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, betas=(0.9, CONFIG.beta2), foreach=False)
    losses = []
    for epoch in range(CONFIG.epochs):
        for rows in shuffled_batches(dataset.lengths, CONFIG.batch_size, SEED, epoch):
            sums, counts = zip(*(plain_row_loss(model, *dataset[row]) for row in rows), strict=True)
            loss = sum(sums) / sum(counts)
            optimizer.zero_grad()
            loss.backward()
            gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
            for parameter in model.parameters():
                parameter.grad *= min(1.0, CONFIG.clip / gradients.norm().item())
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(len(losses), 20, CONFIG)
            optimizer.step()
            losses.append(loss.item())
    return losses


def build(make_head):
    torch.manual_seed(SEED)
    return GPT2(SHAPE, make_head(SHAPE))


def apart(ours, other):
    """The largest difference, in norms, of two matrices with the same name, and of two vectors.

    Left out is what has no gradient but rounding, which AdamW divides by itself: the biases of the
    keys, because softmax does not see what is added to all scores of a row; with pooling `first`,
    whose token has one key to look at, all of queries and keys.
    """
    first = getattr(ours.head, "pooling", "") == "first"
    differences = {1: [], 2: []}
    for (name, one), two in zip(ours.named_parameters(), other.parameters(), strict=True):
        if "c_attn" in name and (first or name.endswith("bias")):
            kept = [2] if first else [0, 2]  # of query, key and value
            one, two = (weights.unflatten(0, (3, -1))[kept] for weights in (one, two))
            dimensions = one.dim() - 1
        else:
            dimensions = one.dim()
        differences[dimensions].append(((one - two).norm() / one.norm()).item())
    return max(differences[2]), max(differences[1])


@pytest.mark.parametrize(
    "task, more",
    [*((task, {}) for task in [*POOLINGS, "instruction"]),
     ("instruction", {"micro_batch_tokens": 60}),
     ("last", {"micro_batch_size": 4, "activation_checkpointing": True})],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "as-it-comes",
)  # fmt: skip
def test_after_20_steps_weights_and_losses_are_those_of_the_plain_path(tmp_path, task, more):
    def make_head(config):
        if task == "instruction":
            return LanguageModelHead(config)
        return ClassificationHead(config, 3, task)

    dataset = instructions() if task == "instruction" else reviews()
    task_loss = language_model_loss if task == "instruction" else classification_loss
    start, plain, ours = build(make_head), build(make_head), build(make_head)
    losses = train_plainly(plain, dataset)
    run = RunFolder(tmp_path)
    checkpoint = Recipe("pretraining", get_encoding("mini"), {"max_length": 48})
    config = dataclasses.replace(CONFIG, **more)
    train(ours, dataset, task_loss, lambda: {"loss": 1.0}, config, SEED, run, checkpoint)

    logged = [record["loss"] for record in run.read_log() if "learning_rate" in record]
    assert len(losses) == 20
    assert logged == pytest.approx(losses, rel=1e-5)
    matrices, vectors = apart(ours, plain)
    # Biases begin at 0 and are still small, so that the same rounding is a larger part of them.
    assert matrices < 1e-5 and vectors < 1e-4
    assert apart(ours, start)[0] > 0.01  # they have gone somewhere
