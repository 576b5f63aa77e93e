"""What is run on the pretended GPU (pretended_gpu.py), and on the CPU beside it: each way of
training, through the real loop, on a tiny model."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pretended_gpu import GPU, OnGPU, pretended_gpu

from classification import evaluation, train_gpt
from gpt2 import batching, bookkeeping, language_modelling, training
from gpt2.checkpoint import Recipe
from gpt2.heads import POOLINGS, ClassificationHead, LanguageModelHead
from gpt2.lora import LoRA, add_adapters
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig, choose_trainable
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding

SHAPE = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=32, vocab_size=50, dropout=0.1)
ENCODING = get_encoding("mini")
SETTINGS = {"labels": ["bad", "good"], "template": {}, "max_length": 32}


class Rows:
    """Tokens with a class, or with the next token as targets; the first ones are a prompt."""

    def __init__(self, task, count):
        draw = np.random.default_rng(count)
        self.lengths = draw.integers(3, 12, count)
        self.tokens = [torch.from_numpy(draw.integers(0, 50, n)) for n in self.lengths]
        self.prompt = {"classification": None, "instruction": 2, "pretraining": 0}[task]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, row):
        tokens = self.tokens[row]
        if self.prompt is None:
            return tokens, torch.tensor(row % 2)
        targets = tokens.roll(-1)
        targets[: self.prompt] = batching.IGNORE
        return tokens, targets


@dataclass
class Case:
    """One way of training. A new one is one more line of `CASES`."""

    task: str = "classification"
    pooling: str = "mean"
    class_weights: bool = False
    label_smoothing: float = 0.0
    train: str = "all"
    config: tuple = ()  # fields of TrainingConfig


CASES = {
    **{f"pooling {pooling}": Case(pooling=pooling) for pooling in POOLINGS},
    "class weights": Case(class_weights=True, config=(("micro_batch_size", 3),)),
    "label smoothing": Case(label_smoothing=0.1),
    "instruction": Case("instruction"),
    "pretraining": Case("pretraining"),
    "last:1": Case("instruction", train="last:1"),
    "head": Case(train="head"),
    "lora": Case(train="lora"),
    "lora, instruction": Case("instruction", train="lora"),
    "micro-batches": Case("instruction", config=(("micro_batch_size", 2),)),
    "activation checkpointing": Case(config=(("activation_checkpointing", True),)),
}


def build_model(case, device):
    torch.manual_seed(0)
    head = LanguageModelHead(SHAPE)
    if case.task == "classification":
        head = ClassificationHead(SHAPE, 2, case.pooling)
    return freeze(GPT2(SHAPE, head), case.train).to(device)


def freeze(model, train):
    if train == "lora":
        add_adapters(model, LoRA(rank=2, dropout=0.1))
    else:
        choose_trainable(model, train)
    return model


def run(case, folder, device="cpu", precision="float32", steps=4, resume=False):
    """The loop, with an evaluation before and after `steps` steps and the checkpoints. Returns the
    model and, for each step, what `counted` was at its end."""
    device = torch.device(device)
    model = build_model(case, device)
    rows, validation = Rows(case.task, 14), Rows(case.task, 6)
    if case.task == "classification":
        weights = np.array([1.0, 3.0], dtype=np.float32) if case.class_weights else None
        settings = train_gpt.ClassificationSettings(label_smoothing=case.label_smoothing)
        loss = train_gpt.make_loss(settings, weights, device)

        def evaluate():
            found = evaluation.predict_log_probabilities(model, validation, 4, precision)
            targets = np.arange(len(validation)) % 2
            return evaluation.classification_metrics(found, targets)

    else:
        loss = language_modelling.language_model_loss

        def evaluate():
            return language_modelling.evaluate_loss(model, validation, 4, precision)

    config = TrainingConfig(
        max_steps=steps, epochs=9, batch_size=6, log_every=1, evaluate_every=100, save_every="0",
        learning_rate=1e-3, schedule="constant", warmup=0, precision=precision, **dict(case.config),
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    run_folder = RunFolder(folder, resume=resume)
    run_folder.start({}, str(device))
    recipe = Recipe("classification" if case.task == "classification" else "instruction",
                    ENCODING, SETTINGS)  # fmt: skip
    training.train(model, rows, loss, evaluate, config, 1, run_folder, recipe)
    return model


def run_on_gpu(case, folder, **how):
    """The same on the GPU; what it was waited for and what was launched in each step."""
    per_step = []
    with pretended_gpu() as gpu, pytest.MonkeyPatch.context() as patch:
        count = bookkeeping.Bookkeeping.count
        last = Counter(), Counter()

        def counting(*given):
            nonlocal last
            now = Counter(gpu.waits), Counter(gpu.launches)
            per_step.append((now[0] - last[0], now[1] - last[1]))
            last = now
            return count(*given)

        patch.setattr(bookkeeping.Bookkeeping, "count", counting)
        model = run(case, folder, GPU, **how)
        assert all(isinstance(parameter, OnGPU) for parameter in model.parameters())
    return per_step[1:]  # before the first step lies an evaluation
