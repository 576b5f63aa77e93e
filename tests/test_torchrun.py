"""Many processes as a user starts and ends them."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, refused, wait_for_lines

TRAIN = "classification/train_gpt.py"
PRETRAIN = "pretraining/pretrain.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 8,
        "--max-train", 40, "--max-test", 8, "--max-validation", 8, "--max-length", 32,
        "--precision", "float32", "--log-every", 3, "--save-every", "3")  # fmt: skip


def test_shard_needs_torchrun(call_script, tmp_path):
    ended = call_script("classification/train_gpt.py", "--shard", "--max-train", 24, "--out", "run")
    refused(ended, "--shard", "torchrun")
    assert not (tmp_path / "run").exists()


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


def test_pretraining_by_two_processes_is_that_by_one(start_torchrun, call_script, tmp_path):
    """Each with its part of the weights, where this torch can do that on a CPU."""
    flags = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16,
             "--max-length", 64, "--max-train", 40, "--max-validation", 3, "--max-steps", 4,
             "--log-every", 1, "--precision", "float32")  # fmt: skip
    shard = ["--shard"] if torch.__version__ >= (2, 13) else []
    process = start_torchrun(2, PRETRAIN, *flags, *shard, "--out", "two")
    assert call_script(PRETRAIN, *flags, "--out", "one").returncode == 0
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [record["step"] for record in one] == [0, 1, 2, 3, 4, 4]
    for ours, theirs in zip(one, two, strict=True):
        for metrics in (ours, theirs):
            metrics |= metrics.pop("validation", {})
            metrics.pop("samples", None)
        assert ours == pytest.approx(theirs, rel=1e-4)
