"""Many processes do what one does: gradients, weights, metrics, batches; and all end together."""

import json
import math
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from conftest import refused as refused_with
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from classification.data import IMDbDataset
from classification.evaluation import (
    classification_loss,
    classification_metrics,
    predict_log_probabilities,
)
from gpt2 import command_line, distributed, stopping, training
from gpt2.checkpoint import Checkpoint
from gpt2.command_line import UserError
from gpt2.distributed import meet, on_rank_0, place, rank, whole
from gpt2.generation import SamplingSettings
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.model import GPT2, GPT2Config, choose_trainable
from gpt2.optimization import TrainingConfig
from gpt2.run_folder import RunFolder
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
                torch.set_num_threads(1)  # the threads of the parent do not exist here
                os.fsync = lambda descriptor: None
                meet(CPU)
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
    assert found == [0] * count
    return [pickle.loads((folder / f"result-{number}").read_bytes()) for number in range(count)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CONFIG = TrainingConfig(epochs=2, batch_size=4, micro_batch_size=1, evaluate_every=3, log_every=1,
                        clip=0.1, precision="float32", learning_rate=3e-3)  # fmt: skip


def run_task(
    folder, task, train="all", shard=False, dropout=0.0, resume=False, at_micro_batch=None
):
    """A small run of 8 steps in float64. Returns the gradients of each step as AdamW gets them, the
    last weights, and what is evaluated at the end over 5 rows."""
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
    choose_trainable(model, train)
    place(model, CPU, shard)

    def evaluate():
        if task == "classification":
            log_probabilities = predict_log_probabilities(model, test, 2, "float32")
            return classification_metrics(log_probabilities, np.asarray(test.labels))
        return evaluate_loss(model, test, 2, "float32")

    gradients, original = [], torch.optim.AdamW.step

    def step(optimizer, closure=None):
        gradients.append(
            {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.requires_grad}
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
        run.start({"training": CONFIG}, "cpu")
        try:
            model.eval()
            metrics = [evaluate()]  # a sharded model computes before it is trained
            result = training.train(model, rows, loss, evaluate, CONFIG, 1, run,
                                    Checkpoint(task, ENCODING, settings))  # fmt: skip
        finally:
            stopping.release_signals()
    model.eval()
    metrics.append(evaluate())
    if task == "instruction":
        prompts = [[5, 6, 7], [8] * 4, [9], [3, 4], [11, 12]]
        settings = SamplingSettings(max_new_tokens=4)
        metrics.append(answer_prompts(model, ENCODING, prompts, settings, 2, "float32"))
    distributed.take_apart(model)
    weights = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    return gradients, weights, metrics, (result.tokens, result.useful_token_share)


def farthest(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


TASKS = (
    ("classification", "all", False),
    ("classification", "head", True),
    ("instruction", "last:1", False),
    ("instruction", "all", True),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    found = {
        (task, train): run_task(folder / f"{task}-{train}", task, train)
        for task, train in {(task, train) for task, train, _ in TASKS}
    }
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_equal_one(count, alone, tmp_path):
    """Gradients of every step, weights, 5 test rows, answers; ragged rows, the whole model or a
    part of it trained, the model whole or sharded, and rows that do not come out even."""

    def work():
        return [run_task(tmp_path / f"{n}", task, train, shard)
                for n, (task, train, shard) in enumerate(TASKS)]  # fmt: skip

    for results in in_processes(count, work, tmp_path / "results"):
        for (task, train, shard), found in zip(TASKS, results, strict=True):
            case = (task, train, shard)
            gradients, weights, metrics, tokens = found
            expected_gradients, expected_weights, expected_metrics, expected_tokens = alone[
                task, train
            ]
            assert len(gradients) == len(expected_gradients) == 8
            for ours, theirs in zip(gradients, expected_gradients, strict=True):
                assert farthest(ours, theirs) < 1e-6, case
            assert farthest(weights, expected_weights) < 1e-9, case
            for ours, theirs in zip(metrics, expected_metrics, strict=True):
                if isinstance(ours, dict):
                    assert ours == pytest.approx(theirs, rel=1e-7), case
                else:
                    assert ours == theirs, case
            assert tokens == expected_tokens, case
    for number in range(len(TASKS)):
        log = [json.loads(line) for line in (tmp_path / f"{number}/metrics.jsonl").open()]
        assert [record["step"] for record in log if "loss" in record] == list(range(1, 9))


def test_gradients_are_exchanged_once_a_step(tmp_path):
    """8 steps of 2 micro-batches on each process: 8 exchanges, not 16."""

    def work():
        pieces = []

        def counted(state, bucket):
            if bucket.is_last():
                pieces.append(bucket)
            return default_hooks.allreduce_hook(None, bucket)

        def exchanging(model, loss):
            objective = distributed.exchanging(model, loss)
            objective.register_comm_hook(None, counted)
            return objective

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "exchanging", exchanging)
            run_task(tmp_path / "run", "classification")
        return len(pieces)

    assert in_processes(2, work, tmp_path / "results") == [8, 8]


@pytest.mark.parametrize("count", range(1, 6))
def test_every_row_is_counted_once_and_all_have_equally_many_micro_batches(count, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: count)

    def of_each(work):
        for number in range(count):
            monkeypatch.setattr(distributed, "rank", lambda number=number: number)
            yield work()

    def cut(rows):
        return [rows[start : start + 2] for start in range(0, len(rows), 2)]

    for rows in range(1, 12):
        parts = list(of_each(lambda: distributed.micro_batches(list(range(rows)), cut)))  # noqa: B023
        assert len({len(part) for part in parts}) == 1
        counted = [row for part in parts for batch, counts in part for row in batch * counts]
        assert sorted(counted) == list(range(rows))
        assert all(batch for part in parts for batch, _ in part)
        shares = list(of_each(lambda: distributed.share(range(rows))))  # noqa: B023
        assert {len(share) for share in shares} == {math.ceil(rows / count)}
        assert {row for share in shares for row in share} == set(range(rows))


def test_a_stop_of_one_ends_all_and_any_number_of_processes_goes_on(alone, tmp_path):
    """2 processes, the second is told to stop in the second step; then 3 with a sharded model,
    until rank 1 dies in the second epoch; then 1. The weights are those of one process undisturbed,
    which they could not be after other batches."""
    run, statuses = tmp_path / "run", []

    def stopped():
        def tell():
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        run_task(run, "instruction", at_micro_batch=(3, tell))

    in_processes(2, stopped, tmp_path / "stopped", statuses)
    assert statuses == [143, 143]
    assert json.loads((run / "last/training.json").read_text())["progress"]["step"] == 1

    def killed():
        def die():
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        run_task(run, "instruction", shard=True, resume=True, at_micro_batch=(6, die))

    statuses.clear()
    started = time.monotonic()
    in_processes(3, killed, tmp_path / "killed", statuses)
    assert statuses[1] == -9 and 0 not in statuses
    assert time.monotonic() - started < 60
    step = json.loads((run / "last/training.json").read_text())["progress"]["step"]
    assert step == 3  # of the evaluation: what went on alone was not saved

    gradients, weights, *_ = run_task(run, "instruction", resume=True)
    assert len(gradients) == 5
    assert farthest(weights, alone["instruction", "all"][1]) < 1e-9
    log = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [record["step"] for record in log if "loss" in record] == list(range(1, 9))


def test_resumed_by_as_many_the_bytes_are_the_same_with_dropout_too(tmp_path):
    def tell():
        os.kill(os.getpid(), signal.SIGINT)

    def unbroken():
        return run_task(tmp_path / "unbroken", "classification", dropout=0.3)[0]

    def stopped():
        run_task(tmp_path / "run", "classification", dropout=0.3, at_micro_batch=(8, tell))

    def resumed():
        run_task(tmp_path / "run", "classification", dropout=0.3, resume=True)

    first, second = in_processes(2, unbroken, tmp_path / "results")
    assert farthest(first[0], second[0]) == 0
    statuses = []
    in_processes(2, stopped, tmp_path / "results", statuses)
    assert statuses == [130, 130]
    in_processes(2, resumed, tmp_path / "results")
    for name in ("last/model.safetensors", "last/optimizer.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_what_goes_wrong_goes_wrong_for_all(tmp_path):
    """A row that makes the loss NaN on one process, other files on another machine, a full disk
    under rank 0."""

    def work():
        said = []
        loss = language_model_loss

        def bad_on_rank_1(model, batch):
            total, count = loss(model, batch)
            return (total * math.nan if rank() == 1 else total), count

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[__name__], "language_model_loss", bad_on_rank_1)
            with pytest.raises(training.NotFinite) as error:
                run_task(tmp_path / "nan", "instruction")
            said.append(str(error.value))
        with pytest.raises(UserError) as error:
            distributed.check_alike("the training rows", str(rank()))
        said.append(str(error.value))

        def full():
            assert rank() == 0
            raise UserError("the disk is full")

        with pytest.raises(UserError) as error:
            on_rank_0(full)
        return [*said, str(error.value)]

    first, second = in_processes(2, work, tmp_path / "results")
    assert first == second
    assert "step 1: loss nan" in first[0] and first[0].count(",") >= 4  # all rows of the step
    assert first[1] == "the training rows of process 1 are not those of process 0"
    assert first[2] == "the disk is full"


def test_an_error_is_said_once_and_one_of_a_single_process_names_it(tmp_path, capfd):
    def of_all():
        """As under torchrun: it ends the others when the first has ended."""
        command_line.run_script(fail)

    def fail():
        print(f"printed by {rank()}")
        raise UserError("no such file")

    def alone():
        command_line.run_script(lambda: fail() if rank() == 1 else None)

    def ended_by_torchrun(seconds):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", ended_by_torchrun)
        statuses = []
        in_processes(2, of_all, tmp_path / "results", statuses)
    assert statuses == [2, -signal.SIGTERM]
    printed = capfd.readouterr()
    assert printed.out == "printed by 0\n"
    assert printed.err.count("no such file") == 1 and "process" not in printed.err

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        statuses = []
        in_processes(2, alone, tmp_path / "results", statuses)
    assert statuses[1] == 2
    assert "process 1: no such file" in capfd.readouterr().err


def test_out_of_memory_on_one_ends_all(tmp_path, capfd):
    def exhausted():
        if rank() == 1:
            raise MemoryError

    def work():
        command_line.run_script(
            lambda: run_task(tmp_path / "run", "classification", at_micro_batch=(4, exhausted))
        )

    statuses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        in_processes(2, work, tmp_path / "results", statuses)
    assert statuses == [1, 2]
    said = capfd.readouterr().err
    assert "process 1: out of memory in step 2, with 1 rows at once" in said
    assert "another process of this run has ended" in said and "--resume" in said


def test_shard_needs_torchrun(call_script, tmp_path):
    ended = call_script("classification/train_gpt.py", "--shard", "--max-train", 24, "--out", "run")
    refused_with(ended, "--shard", "torchrun")
    assert not (tmp_path / "run").exists()


# --- as a user meets it

TRAIN = "classification/train_gpt.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 8,
        "--max-train", 40, "--max-test", 8, "--max-validation", 8, "--max-length", 32,
        "--precision", "float32", "--log-every", 3, "--save-every", "3")  # fmt: skip


def wait_for_lines(process, file, count):
    for _ in range(12_000):
        if file.exists() and len(file.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{file} has no {count} lines after two minutes")


def process_of_rank(launcher, number):
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            environment = (status.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if parent == launcher.pid and f"RANK={number}".encode() in environment:
            return int(status.parent.name)
    raise AssertionError(f"no rank {number}")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a process by /proc")
def test_a_killed_process_ends_the_run_and_a_signal_stops_it(start_torchrun, call_script, tmp_path):
    run = tmp_path / "run"
    process = start_torchrun(2, TRAIN, *TINY, "--epochs", 400, "--out", "run",
                       "--evaluate-every", 5000)  # fmt: skip
    wait_for_lines(process, run / "metrics.jsonl", 3)
    os.kill(process_of_rank(process, 1), signal.SIGKILL)
    out, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another process of this run has ended" in said
    assert (
        f"go on with: torchrun --standalone --nproc-per-node=2 {REPOSITORY / TRAIN}"
        in said.replace(os.path.relpath(REPOSITORY / TRAIN, tmp_path), str(REPOSITORY / TRAIN))
    )
    assert out.count("run folder: run") == 1  # one process prints
    assert not (run / "results.json").exists()

    before = len((run / "metrics.jsonl").read_text().splitlines())
    process = start_torchrun(2, TRAIN, "--resume", "run")
    wait_for_lines(process, run / "metrics.jsonl", before + 3)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "going on after step" in out
    assert said.count("stopped by SIGTERM; go on with: torchrun") == 1
    step = json.loads((run / "last/training.json").read_text())["progress"]["step"]
    assert step >= 3 * (before + 1)

    done = call_script(TRAIN, "--resume", "run", "--max-steps", step + 2)
    assert done.returncode == 0, done.stderr
    config = json.loads((run / "config.json").read_text())
    assert [start["processes"] for start in config["resumed"]] == [2, 1]
