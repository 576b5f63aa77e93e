"""A loss is one argument of the loop: a sum over targets, and how many they were."""

import json

import pytest
import torch
from test_training import difference, tiny_dataset, tiny_model
from torch.nn import functional as F

from classification.evaluation import classification_loss
from gpt2.checkpoint import Recipe, load_weights
from gpt2.optimization import TrainingConfig
from gpt2.support import stopping
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from gpt2.training import train

RECIPE = Recipe("classification", get_encoding("mini"),
                {"labels": ["bad", "good"], "max_length": 64, "truncation": "head"})  # fmt: skip


def smoothed_loss(model, batch):
    """Cross-entropy that asks for 95 and 5 in a hundred, where 100 and 0 are labelled (Szegedy et
    al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7)."""
    logits = model(batch.tokens, batch.lengths)
    loss = F.cross_entropy(logits, batch.targets, label_smoothing=0.1, reduction="sum")
    return loss, len(batch.targets)


def train_with(loss, folder, model, resume=False, **settings):
    """The losses of all steps of a run over 8 rows, one step an epoch."""
    config = TrainingConfig(
        **{"batch_size": 8, "log_every": 1, "precision": "float32", "learning_rate": 6e-4}
        | settings
    )
    run = RunFolder(folder, resume=resume)
    run.start({"training": config}, "cpu")
    try:
        train(model, tiny_dataset(), loss=loss, evaluate=lambda: {"loss": 1.0}, config=config,
              seed=1, run=run, recipe=RECIPE)  # fmt: skip
    finally:
        stopping.release_signals()
    return [record["loss"] for record in run.read_log() if "learning_rate" in record]


def gradients_of(loss, folder, monkeypatch, **cut):
    """What reaches AdamW in the first step, in float64."""
    found, model = {}, tiny_model(dtype=torch.float64)

    def capture(optimizer, closure=None):
        found.update({name: p.grad.clone() for name, p in model.named_parameters()})

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", capture)
        train_with(loss, folder, model, max_steps=1, clip=0, **cut)
    return found


def test_gradients_do_not_depend_on_the_micro_batches(tmp_path, monkeypatch):
    whole = gradients_of(smoothed_loss, tmp_path / "8", monkeypatch)
    for size in (4, 5):  # 4 + 4 and 5 + 3
        cut = gradients_of(smoothed_loss, tmp_path / str(size), monkeypatch, micro_batch_size=size)
        assert difference(whole, cut) < 1e-6
    # and they are those of this loss, not of the stock one
    stock = gradients_of(classification_loss, tmp_path / "stock", monkeypatch)
    assert difference(whole, stock) > 1e-3
    model, dataset = tiny_model(dtype=torch.float64), tiny_dataset()
    for tokens, target in (dataset[row] for row in range(8)):  # one row at a time, by the formula
        logits = model(tokens[None], torch.tensor([len(tokens)]))[0]
        wanted = torch.tensor([0.05, 0.05], dtype=torch.float64)
        wanted[target] += 0.9
        (-(wanted * logits.log_softmax(dim=0)).sum() / 8).backward()
    by_hand = {name: p.grad for name, p in model.named_parameters()}
    assert difference(whole, by_hand) < 1e-6


def test_it_trains_and_a_resumed_run_ends_as_an_unbroken_one(tmp_path):
    long = {"epochs": 30, "schedule": "constant", "warmup": 0, "learning_rate": 1e-2}
    unbroken = tiny_model(dropout=0.1)
    losses = train_with(smoothed_loss, tmp_path / "unbroken", unbroken, **long)
    least = -(0.95 * torch.tensor(0.95).log() + 0.05 * torch.tensor(0.05).log()).item()
    assert losses[0] == pytest.approx(0.69, abs=0.05)
    assert least < losses[-1] < least + 0.2  # with smoothing no loss is lower than that

    first = train_with(
        smoothed_loss, tmp_path / "run", tiny_model(dropout=0.1), max_steps=11, **long
    )
    resumed = tiny_model(dropout=0.1, seed=1)
    again = train_with(smoothed_loss, tmp_path / "run", resumed, resume=True, **long)
    assert first == losses[:11] and again == losses
    for (name, one), two in zip(unbroken.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), name
    saved = tiny_model(seed=2)
    load_weights(tmp_path / "run/last", saved)
    assert torch.equal(saved.wte.weight, unbroken.wte.weight)
    assert json.loads((tmp_path / "run/last/config.json").read_text())["step"] == 30
