"""A run that is stopped and resumed ends with the bytes of one that never was."""

import json
import os
import random
import shutil
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from classification.data import IMDbDataset
from classification.evaluation import (
    classification_loss,
    classification_metrics,
    predict_log_probabilities,
)
from gpt2 import batching, training
from gpt2.checkpoint import Recipe
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig
from gpt2.support import durable, stopping
from gpt2.support.errors import UserError
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from gpt2.training import train
from instruction.data import InstructionDataset
from instruction.template import Template

WORDS = ["good", "bad", "film", "story", "dull", "fine", "great", "what", "a", "scene"]
ENCODING = get_encoding("mini")
# What is saved beside the weights: to write thousands of tokens each time takes a third of a run.
SAVED_ENCODING = tiktoken.Encoding(
    "bytes", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
)
CONFIG = TrainingConfig(epochs=3, batch_size=4, micro_batch_size=3, evaluate_every=3, log_every=2,
                        save_every="2", precision="float32", learning_rate=3e-3,
                        layer_decay=0.8)  # fmt: skip


def sentences(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


def datasets(task):
    """Training rows and validation rows."""
    if task == "classification":
        return [
            IMDbDataset(sentences(count, count), [i % 2 for i in range(count)], ENCODING, 64)
            for count in (14, 6)
        ]
    return [
        InstructionDataset([(text, "", text[::-1]) for text in sentences(count, count)],
                           Template(), ENCODING, 64, False)
        for count in (14, 6)
    ]  # fmt: skip


def run_task(task, data, folder, resume, config=CONFIG):
    """The run of a script, but small: 12 steps with dropout, accumulation and evaluation."""
    torch.manual_seed(0)
    make_head = (lambda c: ClassificationHead(c, 2)) if task == "classification" else (
        LanguageModelHead)  # fmt: skip
    gpt2_config = GPT2Config(2, 2, 16, 64, 8192, 0.1)
    model = GPT2(gpt2_config, make_head(gpt2_config))
    training_rows, validation_rows = data
    settings = {"labels": ["bad", "good"], "template": {}, "max_length": 64}
    if task == "classification":
        loss = classification_loss
        targets = np.asarray(validation_rows.labels)

        def evaluate():
            return classification_metrics(
                predict_log_probabilities(model, validation_rows, 2, "float32"), targets
            )
    else:
        loss = language_model_loss

        def evaluate():
            return evaluate_loss(model, validation_rows, 2, "float32")

    run = RunFolder(folder, resume=resume)
    run.start({"training": config}, "cpu")
    try:
        return train(model, training_rows, loss, evaluate, config, 1, run,
                     Recipe(task, SAVED_ENCODING, settings))  # fmt: skip
    finally:
        stopping.release_signals()


def in_child(work):
    """The exit status of `work` in a forked process; -9 for SIGKILL."""
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: None  # slow, and no kill of a process needs it
        status = 1
        try:
            work()
            status = 0
        except stopping.Stopped as stop:
            status = stop.exit_status
        except UserError:
            status = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_event(kind, number, action):
    """Have `action` called at the event of this kind and number, counted from 1. A "loop" event is
    the end of a micro-batch or of an evaluation batch, a "save" event each touch of the disk.
    Returns the counts of both."""
    counts = {"loop": 0, "save": 0}

    def counting(original, counted):
        def called(*arguments, **named):
            counts[counted] += 1
            if (counted, counts[counted]) == (kind, number):
                action()
            return original(*arguments, **named)

        return called

    for place in (training, batching):
        place.stop_if_asked = counting(place.stop_if_asked, "loop")
    for place, name in (
        (durable, "_flush"), (durable, "_sha256"), (shutil, "rmtree"), (Path, "rename"),
    ):  # fmt: skip
        setattr(place, name, counting(getattr(place, name), "save"))
    return counts


def fail():
    raise RuntimeError("injected")


ACTIONS = {
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exception": fail,
}
ENDS = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9, "exception": 1}


def what_counts(folder):
    """All bytes of a run that must not depend on whether it was stopped."""
    names = ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors",
             "best/config.json", "metrics.jsonl")  # fmt: skip
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(params=["classification", "instruction"])
def task(request):
    return request.param


def test_a_second_ctrl_c_ends_at_once():
    """Even inside a batch, where nothing asks whether to stop."""

    def interrupted_twice():
        stopping.catch_signals("")
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping._asked == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)

    assert in_child(interrupted_twice) == -signal.SIGINT


def test_a_changed_label_is_refused(tmp_path):
    """It changes no length of any row."""
    data = datasets("classification")
    run_task("classification", data, tmp_path / "run", resume=False)
    data[0].labels[3] = 1 - data[0].labels[3]
    with pytest.raises(UserError, match="training rows are not those"):
        run_task("classification", data, tmp_path / "run", resume=True)


def test_stopped_at_10_places_and_resumed_the_bytes_are_those_of_an_unbroken_run(task, tmp_path):
    data = datasets(task)
    events = tmp_path / "events"

    def count_events():
        counts = at_event("none", 0, None)
        run_task(task, data, tmp_path / "counted", resume=False)
        events.write_text(json.dumps(counts))

    run_task(task, data, tmp_path / "unbroken", resume=False)
    assert in_child(count_events) == 0
    expected, totals = what_counts(tmp_path / "unbroken"), json.loads(events.read_text())
    draw = random.Random(task)
    places = [
        (kind, place)
        for kind in ("loop", "save")
        for place in draw.sample(range(1, totals[kind] + 1), 5)
    ]
    for number, (kind, place) in enumerate(places):
        action = list(ACTIONS)[number % len(ACTIONS)]
        folder = tmp_path / str(number)

        def stopped(kind=kind, place=place, action=action, folder=folder):
            at_event(kind, place, ACTIONS[action])
            run_task(task, data, folder, resume=False)

        # a signal during the last save comes too late to stop anything
        end = in_child(stopped)
        too_late = end == 0 and kind == "save" and action in ("SIGTERM", "SIGINT")
        assert end == ENDS[action] or too_late, (kind, place, action)
        assert in_child(lambda folder=folder: run_task(task, data, folder, resume=True)) == 0
        assert what_counts(folder) == expected, f"{action} at {kind} event {place}"
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        assert len({(r["step"], "loss" in r) for r in steps}) == len(steps)
