"""The loop: gradients under accumulation, best and last, repeatability, bad losses."""

import json
import math

import numpy as np
import pytest
import torch

from classification.data import IMDbDataset
from classification.evaluation import classification_loss
from gpt2.batching import collate
from gpt2.bookkeeping import NotFinite
from gpt2.checkpoint import Recipe, TrainingState, load_checkpoint, load_weights, save_checkpoint
from gpt2.heads import ClassificationHead
from gpt2.model import GPT2, Block, GPT2Config
from gpt2.optimization import (
    TrainingConfig,
    choose_trainable,
    learning_rate,
)
from gpt2.support.errors import UserError
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from gpt2.training import train

TEXTS = ["good", "a very bad film indeed", "great fun", "it was awful " * 6, "fine", "dull dull",
         "lovely little thing", "worst"]  # fmt: skip
LABELS = [1, 0, 1, 0, 1, 0, 1, 0]


def tiny_model(dropout=0.0, dtype=torch.float32, seed=0):
    config = GPT2Config(2, 2, 16, 64, 8192, dropout)
    torch.manual_seed(seed)
    return GPT2(config, ClassificationHead(config, 2)).to(dtype)


def tiny_dataset(texts=TEXTS, labels=LABELS):
    return IMDbDataset(texts, labels, get_encoding("mini"), 64)


def run_training(
    folder,
    config,
    model=None,
    evaluate=None,
    loss=classification_loss,
    dataset=None,
    resume=None,
):
    folder.mkdir(exist_ok=True)
    model = model or tiny_model()
    config.learning_rate = config.learning_rate or 6e-4
    dataset = dataset or tiny_dataset()
    checkpoint = Recipe(
        "classification", get_encoding("mini"), {"labels": ["bad", "good"], "max_length": 64}
    )

    def whole_loss():
        with torch.no_grad():
            total, count = classification_loss(
                model, collate([dataset[i] for i in range(len(dataset))])
            )
        return {"loss": total.item() / count}

    run = RunFolder(folder, resume=bool(resume))
    if resume is not None:  # a run that is resumed later, or now
        run.start({}, "cpu")
    result = train(model, dataset, loss, evaluate or whole_loss, config, 1, run, checkpoint)
    return model, result, run.read_log()


def first_gradient(tmp_path, monkeypatch, micro_batch_size, micro_batch_tokens=0):
    """The gradient that reaches AdamW in the first step over all 8 rows."""
    gradients = {}
    model = tiny_model(dtype=torch.float64)

    def capture(optimizer, closure=None):
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", capture)
        config = TrainingConfig(
            epochs=1,
            batch_size=8,
            micro_batch_size=micro_batch_size,
            micro_batch_tokens=micro_batch_tokens,
            clip=0,
            precision="float32",
        )
        run_training(tmp_path / f"{micro_batch_size} {micro_batch_tokens}", config, model)
    return gradients


def difference(first, second):
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_one_batch_of_8_and_2x4_and_8x1_and_5_plus_3_give_the_same_gradient(tmp_path, monkeypatch):
    whole = first_gradient(tmp_path, monkeypatch, 8)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3
    for micro_batch_size in (4, 1, 5):
        other = first_gradient(tmp_path, monkeypatch, micro_batch_size)
        assert difference(whole, other) < 1e-12  # the promise is 1e-6


@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_a_budget_of_tokens_changes_no_gradient(tmp_path, monkeypatch, tokens):
    """1 leaves each row alone, 20 and 60 cut the batch of 8 unevenly."""
    whole = first_gradient(tmp_path, monkeypatch, 8)
    assert difference(whole, first_gradient(tmp_path, monkeypatch, 8, tokens)) < 1e-12


def test_activation_checkpointing_changes_no_bit(tmp_path, monkeypatch):
    """With dropout: what is computed again must drop the same. And it is computed again: each
    block runs twice in a step."""
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda *given: calls.append(1) or forward(*given))
    models = []
    for name, again in (("kept", False), ("again", True)):
        calls.clear()
        config = TrainingConfig(epochs=2, batch_size=8, activation_checkpointing=again)
        models.append(run_training(tmp_path / name, config, tiny_model(dropout=0.2))[0])
        models[-1].calls = len(calls)
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two), name
    assert models[1].calls - models[0].calls == 2 * len(models[0].h)


def test_the_mean_of_means_would_not(tmp_path, monkeypatch):
    """The rule that litgpt has and transformers had: average the micro-batches' means."""
    whole = first_gradient(tmp_path, monkeypatch, 8)
    dataset, model = tiny_dataset(), tiny_model(dtype=torch.float64)
    order = np.argsort(dataset.lengths, kind="stable")
    for rows in (order[:5], order[5:]):
        total, count = classification_loss(model, collate([dataset[int(row)] for row in rows]))
        (total / count / 2).backward()
    wrong = {name: p.grad for name, p in model.named_parameters()}
    assert difference(whole, wrong) > 1e-4


def test_four_rows_can_be_learnt_by_heart(tmp_path):
    dataset = tiny_dataset(TEXTS[:4], LABELS[:4])
    config = TrainingConfig(epochs=300, batch_size=4, learning_rate=1e-2, evaluate_every=300,
                            weight_decay=0.0)  # fmt: skip
    _, _, log = run_training(tmp_path, config, dataset=dataset)
    assert log[0]["validation"]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert log[-1]["validation"]["loss"] < 1e-3


def test_a_run_is_repeatable_bit_for_bit(tmp_path):
    config = TrainingConfig(epochs=3, batch_size=3, micro_batch_size=2)
    (first, _, log), (second, _, again) = (
        run_training(tmp_path / name, config, tiny_model(dropout=0.1)) for name in ("one", "two")
    )
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert [r.get("loss") for r in log] == [r.get("loss") for r in again]
    third, _, _ = run_training(tmp_path / "three", config, tiny_model(dropout=0.1, seed=1))
    assert not torch.equal(first.wte.weight, third.wte.weight)


def scripted(losses):
    """An evaluation that returns these losses in turn; the first is the one before training."""
    remaining = iter(losses)
    return lambda: {"loss": next(remaining)}


def test_best_is_the_lowest_loss_and_last_is_the_last(tmp_path):
    config = TrainingConfig(epochs=3, batch_size=8)
    model, result, _ = run_training(tmp_path, config, evaluate=scripted([9, 3, 1, 2]))
    assert result.best_step == 2
    for name, step, loss in (("best", 2, 1), ("last", 3, 2)):
        saved = json.loads((tmp_path / name / "config.json").read_text())
        assert (saved["step"], saved["validation"]["loss"]) == (step, loss)
    last, _ = load_checkpoint(tmp_path / "last", "classification")
    best, _ = load_checkpoint(tmp_path, "classification")
    assert torch.equal(last.wte.weight, model.wte.weight)
    assert not torch.equal(best.wte.weight, model.wte.weight)


def test_buffers_of_a_changed_architecture_are_saved_and_loaded(tmp_path):
    model = tiny_model()
    model.head.norm = torch.nn.BatchNorm1d(4)
    model.head.norm.running_mean += 3
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run/best", model, Recipe("classification", get_encoding("mini"),
                    {"labels": ["bad", "good"], "max_length": 64}), TrainingState())  # fmt: skip
    other = tiny_model(seed=1)
    other.head.norm = torch.nn.BatchNorm1d(4)
    load_weights(tmp_path / "run/best", other)
    for (name, one), two in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    with pytest.raises(UserError, match=r"does not fit the model at head\.norm"):
        load_weights(tmp_path / "run/best", tiny_model())


def test_early_stopping_on_request(tmp_path):
    losses = [9, 3, 1, 2, 2, 2, 2, 2]
    config = TrainingConfig(epochs=7, batch_size=8, patience=2)
    _, result, _ = run_training(tmp_path / "patient", config, evaluate=scripted(losses))
    assert (result.steps, result.best_step, result.stopped_early) == (4, 2, True)
    config.patience = 0
    _, result, _ = run_training(tmp_path / "endless", config, evaluate=scripted(losses))
    assert (result.steps, result.stopped_early) == (7, False)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rows(tmp_path):
    calls = []

    def loss(model, batch):
        calls.append(batch)
        total, count = classification_loss(model, batch)
        return (total * math.nan, count) if len(calls) == 3 else (total, count)

    config = TrainingConfig(epochs=2, batch_size=4, evaluate_every=1)
    model = tiny_model()
    with pytest.raises(NotFinite, match=r"step 3: loss nan.* rows (\d, ){3}\d$"):
        run_training(tmp_path, config, model, loss=loss)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    last, _ = load_checkpoint(tmp_path / "last", "classification")
    assert torch.equal(last.wte.weight, model.wte.weight)  # step 2, as it was


def test_a_validation_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(NotFinite, match="step 1: the validation loss is nan"):
        run_training(
            tmp_path, TrainingConfig(epochs=2, batch_size=8), evaluate=scripted([1, math.nan])
        )
    assert not (tmp_path / "best").exists()


def test_the_log_has_every_step_that_was_asked_for(tmp_path):
    config = TrainingConfig(epochs=3, batch_size=3, log_every=2, evaluate_every=4)
    _, result, log = run_training(tmp_path, config)
    assert [r["step"] for r in log if "loss" in r] == [2, 4, 6, 8, 9]
    assert [r["step"] for r in log if "validation" in r] == [0, 4, 8, 9]
    assert result.tokens == 3 * sum(tiny_dataset().lengths)


@pytest.mark.parametrize("rows, steps", [(7, 91), (4, 92)])
def test_little_data_gets_enough_epochs_for_at_least_90_steps(tmp_path, rows, steps):
    config = TrainingConfig(batch_size=1, evaluate_every=1000)
    dataset = tiny_dataset(TEXTS[:rows], LABELS[:rows])
    _, result, _ = run_training(tmp_path, config, dataset=dataset, evaluate=lambda: {"loss": 1.0})
    assert result.steps == steps


def test_max_steps_ends_the_run_and_its_schedule(tmp_path):
    config = TrainingConfig(epochs=3, batch_size=3, max_steps=4, log_every=1, warmup=0)
    _, result, log = run_training(tmp_path, config)
    assert result.steps == 4 and not result.stopped_early
    rates = [r["learning_rate"] for r in log if "learning_rate" in r]
    assert rates == [learning_rate(step, 4, config) for step in range(4)]


def test_what_is_frozen_stays_as_it_was(tmp_path):
    model = tiny_model()
    choose_trainable(model, "last:1")
    before = {name: p.clone() for name, p in model.named_parameters()}
    run_training(tmp_path, TrainingConfig(epochs=2, batch_size=4), model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name
