"""What only a GPU would notice: tensors that do not meet on one device, and a host that waits for
the GPU or keeps it busy with small things. The GPU is pretended (pretended_gpu.py)."""

import inspect
import json
import os
import textwrap
from collections import Counter

import numpy as np
import pytest
import torch
from gpu_runs import CASES, SHAPE, Case, Rows, build_model, freeze, run, run_on_gpu
from pretended_gpu import GPU, pretended_gpu

from classification import evaluation, train_gpt
from gpt2 import batching, bookkeeping, checkpoint, generation, heads, language_modelling, training
from gpt2.generation import SamplingSettings
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.lora import LoRALinear
from gpt2.model import GPT2, GPT2Config, KeyValueCache, LayerCache
from gpt2.support.device import autocast


def log_of(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [record | record.pop("validation", {}) for record in records]


def check_training(name, folder, precision="float32"):
    """A step meets no tensor of the other device, waits once, launches no more than it needs to,
    and computes what a CPU does."""
    case = CASES[name]
    per_step = run_on_gpu(case, folder / "gpu", precision=precision)
    run(case, folder / "cpu", precision=precision)
    for here, there in zip(log_of(folder / "cpu"), log_of(folder / "gpu"), strict=True):
        near = 1e-5 if precision == "float32" else 0.02  # attention is another one in bfloat16
        assert there == pytest.approx(here, rel=near, abs=near)
    for waits, launches in per_step:
        # In float16 each log, here each step, has the scale of the loss as well.
        assert sum(waits.values()) <= 1 + (precision == "float16"), waits
        # AdamW has two groups, matrices and vectors; a kernel there is for all tensors of a group.
        of_groups = [name for name in launches if "_foreach" in name or "adamw" in name]
        unscaling = 3 * (precision == "float16")  # and that a skipped step does not count
        assert sum(launches[name] for name in of_groups) <= 5 + unscaling
        assert launches["aten::mul_.Tensor"] <= 2, launches
        assert launches["aten::_log_softmax"] <= len(dict(case.config)) * 2 + 1, launches


def check_resume(name, folder):
    """Two steps and two more end with the bytes of four."""
    case = CASES[name]
    run_on_gpu(case, folder / "unbroken")
    run_on_gpu(case, folder / "resumed", steps=2)
    run_on_gpu(case, folder / "resumed", resume=True)
    for file in ("last/model.safetensors", "last/optimizer.safetensors"):
        assert (folder / "resumed" / file).read_bytes() == (folder / "unbroken" / file).read_bytes()


def check_evaluation(name, folder):
    """The host waits once a batch, for what it computed."""
    case = CASES[name]
    rows = Rows(case.task, 6)
    measures = [evaluation.predict_log_probabilities]
    if case.task != "classification":
        measures = [language_modelling.evaluate_loss, language_modelling.row_losses]
    for measure in measures:
        expected = measure(build_model(case, "cpu").eval(), rows, 4, "float32")
        with pretended_gpu() as gpu:
            model = build_model(case, GPU).eval()
            gpu.waits.clear()
            found = measure(model, rows, 4, "float32")
        assert sum(gpu.waits.values()) <= 2, gpu.waits  # 6 rows in batches of 4
        if isinstance(expected, dict):
            found, expected = list(found.values()), list(expected.values())
        assert np.allclose(found, expected, atol=1e-5)


PROMPTS = [[1, 2, 3], [4], [5, 6]]


def generate(sampling, layers=2, precision="float32", train="all"):
    """The answers on the GPU, and what each token but the first took."""
    config = GPT2Config(**(vars(SHAPE) | {"n_layer": layers}))
    torch.manual_seed(0)
    model = freeze(GPT2(config, LanguageModelHead(config)), train).eval()
    per_token, answers = [], []
    with pretended_gpu() as gpu:
        model.to(GPU)
        with autocast(GPU, precision):
            for tokens in generation.generate_steps(model, PROMPTS, sampling, stop_token=7):
                answers.append(tokens)
                per_token.append((Counter(gpu.waits), Counter(gpu.launches)))
                gpu.waits.clear()
                gpu.launches.clear()
    return answers, per_token[2:]


def check_generation(name, folder):
    """Each token is waited for once, and what all layers share is made once."""
    sampling = {
        "greedy": SamplingSettings(6),
        "sampled": SamplingSettings(
            6, temperature=1.0, top_k=20, top_p=0.9, repetition_penalty=1.1
        ),
    }[name]
    answers, per_token = generate(sampling)
    model = build_model(Case("instruction"), "cpu").eval()
    expected = list(generation.generate_steps(model, PROMPTS, sampling, stop_token=7))
    assert answers == expected and len(answers) == 6
    for waits, _ in per_token:
        assert sum(waits.values()) <= 1, waits
    _, with_three = generate(sampling, layers=3)
    of_one_layer = with_three[0][1] - per_token[0][1]
    assert sum(of_one_layer.values()) <= 18, of_one_layer  # 6 norms and products, 2 of the cache
    assert not of_one_layer["aten::arange"] and not of_one_layer["aten::le.Tensor"]


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and nobody pulls a plug


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_runs_on_one_device_and_waits_once(name, precision, tmp_path):
    check_training(name, tmp_path, precision)


@pytest.mark.parametrize("name", ["class weights", "last:1", "lora"])
def test_a_run_is_resumed(name, tmp_path):
    check_resume(name, tmp_path)


@pytest.mark.parametrize("name", ["pooling mean", "instruction"])
def test_an_evaluation_waits_once_a_batch(name, tmp_path):
    check_evaluation(name, tmp_path)


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_a_generated_token_is_waited_for_once(name, tmp_path):
    check_generation(name, tmp_path)


def test_frozen_weights_are_cast_once_not_for_each_token():
    """Autocast by itself keeps the bfloat16 copies of those weights only that are trained."""
    launches = {}
    for train in ("all", "last:1", "lora"):
        _, per_token = generate(SamplingSettings(6), precision="bfloat16", train=train)
        launches[train] = per_token[0][1]
    assert launches["last:1"] == launches["all"]
    # In both blocks the input of c_attn and of c_fc is cast once more, for the adapter.
    assert launches["lora"]["aten::_to_copy"] == launches["all"]["aten::_to_copy"] + 4


def test_a_gpu_gets_the_loss_in_large_chunks_that_fit():
    assert language_modelling.chunk_sizes(torch.device("cpu"), 50257) == (1024, 64)
    for vocab_size in (50, 8192, 50257, 10**9):
        targets, at_once = language_modelling.chunk_sizes(GPU, vocab_size)
        assert targets == at_once >= 1
        assert targets == 1 or targets * vocab_size * 4 <= 2**29  # bytes in float32


# What a GPU would notice: the line that is changed, and who sees it.
PLANTED = {
    "a mask on the CPU": (
        heads, "real_tokens", ", device=hidden.device", "", check_training, "pooling mean",
    ),
    "rows on the CPU": (
        ClassificationHead, "looks_at", "(lengths) if", "(lengths.cpu()) if", check_training,
        "pooling last",
    ),
    "positions on the CPU": (
        GPT2, "hidden_states", "arange(T, device=tokens.device)", "arange(T)", check_training,
        "pooling mean",
    ),
    "class weights on the CPU": (
        train_gpt, "make_loss", ".to(device)", "", check_training, "class weights",
    ),
    "the adapters' dropout on the CPU": (
        LoRALinear, "forward", "F.dropout(x, self.dropout, self.training)",
        "x * (torch.rand(x.shape) > self.dropout)", check_training, "lora",
    ),
    "a batch that stays on the CPU": (
        training, "add_gradients", "batch.to(device)", "batch", check_training, "instruction",
    ),
    "moments on the CPU": (
        bookkeeping, "load_training", "distribute_like(tensor.clone(), parameter)",
        "tensor.clone()", check_resume, "last:1",
    ),
    "weights that are saved from the GPU": (
        checkpoint, "_on_cpu", "tensor.cpu()", "tensor", check_training, "head",
    ),
    "probabilities that stay on the GPU": (
        evaluation, "predict_log_probabilities", ".cpu()", "", check_evaluation, "pooling mean",
    ),
    ".item() of the loss": (
        training, "add_gradients", "sums.loss += loss.detach()", "sums.loss += loss.item()",
        check_training, "micro-batches",
    ),
    "a weight asked for": (
        train_gpt, "classification_loss", "class_weights[batch.targets].sum()",
        "float(class_weights[batch.targets].sum())", check_training, "class weights",
    ),
    "loss and norm asked for apart": (
        training, "average_and_clip", "to_numbers(sums.loss, sums.targets, norm)",
        "[sums.loss.item(), sums.targets, norm.item()]", check_training, "instruction",
    ),
    "a question in the middle": (
        training, "add_gradients", "loss = weight * loss",
        "loss = weight * loss if loss.isfinite() else loss", check_training, "pooling mean",
    ),
    "targets looked for on the GPU": (
        language_modelling, "language_model_loss", "at=batch.at",
        "at=(batch.targets != IGNORE).nonzero(as_tuple=True)", check_training, "instruction",
    ),
    "a batch that is not pinned": (
        batching.Batch, "to", "tensor.pin_memory().to(device, non_blocking=True)",
        "tensor.to(device)", check_training, "pretraining",
    ),
    "gradients scaled one by one": (
        training, "average_and_clip", "torch._foreach_mul_(gradients, scale)",
        "[gradient.mul_(scale) for gradient in gradients]", check_training, "pooling mean",
    ),
    "the loss in slices": (
        language_modelling, "chunk_sizes", "return targets, targets", "return targets, 8",
        check_training, "pretraining",
    ),
    "cache rows on the CPU": (
        KeyValueCache, "__init__", "torch.arange(rows, device=like.device)", "torch.arange(rows)",
        check_generation, "greedy",
    ),
    "what all layers share made in each": (
        LayerCache, "extend", "self.keys[self.rows,",
        "self.rows = torch.arange(len(k), device=k.device).unsqueeze(1); self.keys[self.rows,",
        check_generation, "greedy",
    ),
    "rows that end told token by token": (
        generation, "generate_steps", "cache.lengths * goes_on",
        "cache.lengths * torch.tensor(running, device=device)", check_generation, "greedy",
    ),
    "each row's sample asked for": (
        generation, "choose_tokens", "(probabilities / exponential).argmax(dim=1)",
        "torch.cat([torch.multinomial(row, 1) for row in probabilities])", check_generation,
        "sampled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake, tmp_path, monkeypatch):
    place, name, right, wrong, check, case = PLANTED[mistake]
    function = getattr(place, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1
    planted = {}
    code = "from __future__ import annotations\n" + source.replace(right, wrong)
    exec(code, inspect.unwrap(function).__globals__, planted)
    monkeypatch.setattr(place, name, planted[name])
    with pytest.raises((AssertionError, RuntimeError, TypeError, ValueError)):
        check(case, tmp_path)
