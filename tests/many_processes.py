"""A small run in several forked processes, or in one, and what it finds."""

import os
import pickle
import signal
import socket
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch

from classification.data import IMDbDataset
from classification.evaluation import (
    classification_loss,
    classification_metrics,
    predict_log_probabilities,
)
from gpt2 import training
from gpt2.checkpoint import Recipe
from gpt2.generation import SamplingSettings
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.lora import LoRA, add_adapters
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig, choose_trainable
from gpt2.support import distributed, stopping
from gpt2.support.distributed import full_tensor, init_processes, to_device
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from instruction.data import InstructionDataset
from instruction.evaluation import answer_prompts
from instruction.template import Template

ENCODING = get_encoding("mini")
WORDS = "good bad film story dull fine great what a scene".split()
# 14 rows of 1 to 12 words: the last batch of an epoch has 2, fewer than 3 processes need
TEXTS = [" ".join(WORDS[(i * j) % 10] for j in range(1, 2 + (i * 5) % 12)) for i in range(14)]
CPU = torch.device("cpu")


def in_processes(count, work, folder, statuses=None):
    """What `work()` returns in each of `count` forked processes that have met. With `statuses`, a
    list, exit statuses are put there; without, all must be 0. Forked, because starting Python with
    torch takes seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(120)  # or a collective that one does not reach would hang the tests
            try:
                os.environ |= {
                    "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }  # fmt: skip
                os.fsync = lambda descriptor: None
                init_processes(CPU)
                (folder / f"result-{number}").write_bytes(pickle.dumps(work()))
                status = 0
            except stopping.Stopped as stop:
                status = stop.exit_status
            except SystemExit as end:
                status = end.code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if statuses is not None:
        statuses += found
        return None
    assert found == [0] * count, found
    return [pickle.loads((folder / f"result-{number}").read_bytes()) for number in range(count)]


CONFIG = TrainingConfig(epochs=2, batch_size=4, micro_batch_size=1, evaluate_every=3, log_every=1,
                        clip=0.1, precision="float32", learning_rate=3e-3)  # fmt: skip


def run_task(
    folder, task, train="all", shard=False, dropout=0.0, resume=False, at_micro_batch=None, steps=8
):
    """A small run in float64, 4 steps an epoch. Returns the gradients of each step as AdamW gets
    them, the last weights, and what is evaluated at the end over 5 rows."""
    torch.manual_seed(0)
    config = GPT2Config(2, 2, 16, 64, 8192, dropout)
    if task == "classification":
        head, loss = ClassificationHead(config, 2), classification_loss
        rows, test = (
            IMDbDataset(texts, [i % 2 for i in range(len(texts))], ENCODING, 64)
            for texts in (TEXTS, TEXTS[3:8])
        )
    else:
        head, loss = LanguageModelHead(config), language_model_loss
        rows, test = (
            InstructionDataset([(text, "", text[::-1]) for text in texts], Template(), ENCODING,
                               64, False)
            for texts in (TEXTS, TEXTS[3:8])
        )  # fmt: skip
    model = GPT2(config, head).double()
    if train == "lora":
        add_adapters(model, LoRA(rank=2))
    else:
        choose_trainable(model, train)
    to_device(model, CPU, shard)

    def evaluate():
        if task == "classification":
            log_probabilities = predict_log_probabilities(model, test, 2, "float32")
            return classification_metrics(log_probabilities, np.asarray(test.labels))
        return evaluate_loss(model, test, 2, "float32")

    gradients, original = [], torch.optim.AdamW.step

    def step(optimizer, closure=None):
        gradients.append(
            {
                name: full_tensor(p.grad).clone()
                for name, p in model.named_parameters()
                if p.requires_grad
            }
        )
        return original(optimizer)

    counted = [0]

    def counting():
        counted[0] += 1
        if at_micro_batch and counted[0] == at_micro_batch[0]:
            at_micro_batch[1]()
        stopping.stop_if_asked()

    run = RunFolder(folder, resume=resume)
    settings = {"labels": ["bad", "good"], "template": {}, "max_length": 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        patch.setattr(training, "stop_if_asked", counting)
        training_config = replace(CONFIG, max_steps=steps)
        run.start({"training": training_config}, "cpu")
        try:
            model.eval()
            metrics = [evaluate()]  # a sharded model computes before it is trained
            result = training.train(model, rows, loss, evaluate, training_config, 1, run,
                                    Recipe(task, ENCODING, settings))  # fmt: skip
        finally:
            stopping.release_signals()
    model.eval()
    metrics.append(evaluate())
    if task == "instruction":
        prompts = [[5, 6, 7], [8] * 4, [9], [3, 4], [11, 12]]
        settings = SamplingSettings(max_new_tokens=4)
        metrics.append(answer_prompts(model, ENCODING, prompts, settings, 2, "float32"))
    distributed.reshard(model)
    weights = {name: full_tensor(p.detach()).clone() for name, p in model.named_parameters()}
    return gradients, weights, metrics, (result.tokens, result.useful_token_share)


def farthest(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)
