"""Many processes do what one does: gradients, weights, metrics, batches; and all end together."""

import json
import math
import os
import signal
import time

import many_processes
import pytest
import torch
from many_processes import farthest, in_processes, run_task
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from gpt2 import bookkeeping, training
from gpt2.checkpoint import load_checkpoint
from gpt2.language_modelling import language_model_loss
from gpt2.support import distributed, script
from gpt2.support.distributed import on_rank_0, rank
from gpt2.support.errors import UserError

SHARD = torch.__version__ >= (2, 13)  # older ones shard wrongly on CPUs and are refused
TASKS = (
    ("classification", "all", False),
    ("classification", "head", SHARD),
    ("instruction", "last:1", False),
    ("instruction", "all", SHARD),
    ("classification", "lora", False),
    ("instruction", "lora", SHARD),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds in the first epoch and the first step of the second."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        (task, train): run_task(folder / f"{task}-{train}", task, train, steps=5)
        for task, train in {(task, train) for task, train, _ in TASKS}
    }


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_equal_one(count, alone, tmp_path):
    """Gradients of every step, weights, 5 test rows, answers; ragged rows, the whole model or a
    part of it trained, the model whole or sharded, and rows that do not come out even."""

    def work():
        return [run_task(tmp_path / f"{n}", task, train, shard, steps=5)
                for n, (task, train, shard) in enumerate(TASKS)]  # fmt: skip

    for results in in_processes(count, work, tmp_path / "results"):
        for (task, train, shard), found in zip(TASKS, results, strict=True):
            case = (task, train, shard)
            gradients, weights, metrics, tokens = found
            expected_gradients, expected_weights, expected_metrics, expected_tokens = alone[
                task, train
            ]
            assert len(gradients) == len(expected_gradients) == 5
            for ours, theirs in zip(gradients, expected_gradients, strict=True):
                assert farthest(ours, theirs) < 1e-6, case
            assert farthest(weights, expected_weights) < 1e-9, case
            for ours, theirs in zip(metrics, expected_metrics, strict=True):
                if isinstance(ours, dict):
                    assert ours == pytest.approx(theirs, rel=1e-7), case
                else:
                    assert ours == theirs, case
            assert tokens == expected_tokens, case
    for number, (task, train, _) in enumerate(TASKS):
        log = [json.loads(line) for line in (tmp_path / f"{number}/metrics.jsonl").open()]
        assert [record["step"] for record in log if "loss" in record] == list(range(1, 6))
        if train != "lora":  # whose checkpoint holds no base
            load_checkpoint(tmp_path / f"{number}/last", task)  # computes here what it did there


def test_gradients_are_exchanged_once_a_step(tmp_path):
    """8 steps of 2 micro-batches on each process: 8 exchanges, not 16."""

    def work():
        pieces = []

        def counted(state, bucket):
            if bucket.is_last():
                pieces.append(bucket)
            return default_hooks.allreduce_hook(None, bucket)

        def parallel_objective(model, loss):
            objective = distributed.parallel_objective(model, loss)
            objective.register_comm_hook(None, counted)
            return objective

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "parallel_objective", parallel_objective)
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


def test_a_stop_of_one_ends_all_and_any_number_of_processes_goes_on(tmp_path):
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

        run_task(run, "instruction", shard=SHARD, resume=True, at_micro_batch=(6, die))

    statuses.clear()
    started = time.monotonic()
    in_processes(3, killed, tmp_path / "killed", statuses)
    assert statuses[1] == -9 and 0 not in statuses
    assert time.monotonic() - started < 60
    step = json.loads((run / "last/training.json").read_text())["progress"]["step"]
    assert step == 3  # of the evaluation: what went on alone was not saved

    gradients, weights, *_ = run_task(run, "instruction", resume=True)
    assert len(gradients) == 5
    undisturbed = run_task(tmp_path / "undisturbed", "instruction")
    assert farthest(weights, undisturbed[1]) < 1e-9
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
            patch.setattr(many_processes, "language_model_loss", bad_on_rank_1)
            with pytest.raises(bookkeeping.NotFinite) as error:
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
        script.run_script(fail)

    def fail():
        print(f"printed by {rank()}")
        raise UserError("no such file")

    def alone():
        script.run_script(lambda: fail() if rank() == 1 else None)

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
        script.run_script(
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
