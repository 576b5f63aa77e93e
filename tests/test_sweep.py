"""A sweep runs what is missing, chooses on validation, and survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY, refused, wait_for_lines

from baselines import sweep
from instruction.predictions import read_row_losses

SWEEP, COMPARE = "baselines/sweep.py", "baselines/compare.py"
SHAPE = "--model scratch --n-layer 1 --n-embd 16 --n-head 1".split()
TINY = [*SHAPE, "--max-length", 32]
SHORT = [*TINY, "--max-steps", 4, "--evaluate-every", 4, "--max-train", 64, "--max-test", 30]
INSTRUCT = "instruction/instruction_finetuning.py"
ASK = [*SHAPE, "--max-steps", 2, "--max-train", 32, "--max-validation", 6, "--max-test", 5,
       "--test-answers", 2, "--answer-tokens", 2]  # fmt: skip


@pytest.fixture
def in_process(monkeypatch, call_script, tmp_path):
    """The runs of a sweep without the processes that it starts, which take seconds each."""
    started, run_outside = [], subprocess.run

    def run(words, **named):
        if words[0] != sys.executable:  # git, asked for the commit
            return run_outside(words, **named)
        script = words[1].replace(f"{REPOSITORY}/", "")
        started.append(words[2:])
        return call_script(script, *words[2:])

    monkeypatch.setattr("baselines.running.subprocess.run", run)
    return started


def test_a_sweep_runs_what_is_missing_and_tests_what_it_chose(tmp_path, call_script, in_process):
    command = [SWEEP, "--vary", "pooling=mean,last", "--seeds", 1, 2, "--out", "s"]
    done = call_script(*command, "--", *SHORT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s/sweep.json").read_text())
    losses = [np.mean(line["validation"]["loss"]) for line in found["lines"]]
    assert [line["chosen"] for line in found["lines"]] == [loss == min(losses) for loss in losses]
    assert len(found["test"]) == 2 and len(in_process) == 4 + 2
    for line in found["lines"]:
        for folder in line["folders"]:
            results = json.loads((tmp_path / folder / "results.json").read_text())
            assert "test" not in results["after"]  # read by the chosen line alone, and at the end
            assert (tmp_path / folder / "test").exists() == line["chosen"]
    # again: nothing runs twice; a run that is gone runs once
    assert call_script(*command, "--", *SHORT).returncode == 0 and len(in_process) == 6
    shutil.rmtree(tmp_path / "s/pooling=mean/seed-1")
    assert call_script(*command, "--", *SHORT).returncode == 0 and len(in_process) in (7, 8)


def test_each_fold_of_more_than_nine_has_a_folder_of_its_own(monkeypatch):
    asked = []

    def run_once(words, folder):
        asked.append((words[words.index("--fold") + 1], folder.name))
        return {"after": {"validation": {"loss": 1.0}}}

    monkeypatch.setattr(sweep, "run_once", run_once)
    settings = sweep.SweepSettings(folds=11, seeds=(4,))
    sweep.run_all(sweep.make_lines(settings, []), settings)
    assert asked == [(f"{k}/11", f"seed-4-fold-{k}") for k in range(1, 12)]


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--vary", "pooling"], ["--vary pooling", "NAME=VALUE"]),
        (["--vary", "pooling=mean,"], ["NAME=VALUE"]),
        (["--vary", "pooling=mean,max"], ["--vary pooling=mean,max", "max"]),
        (["--vary", "polling=mean"], ["--polling", "--pooling"]),
        (["--vary", "seed=1,2"], ["seed is set by the sweep"]),
        (["--vary", "pooling=mean,last,mean"], ["names a value twice"]),
        (["--vary", "learning-rate=1e-3,-1"], ["--learning-rate is -1", "above 0"]),
        (["--seeds", 1, 2, 1], ["--seeds 1 2 1", "twice"]),
        (["--seeds", -1], ["--seeds is -1"]),
        (["--folds", 1], ["--folds 1"]),
        (["--task", "instruction", "--by", "f1"], ["--by f1"]),
        (["--", "--out", "x"], ["-- --out"]),
    ],
)
def test_a_sweep_of_bad_values_runs_nothing(call_script, in_process, flags, parts):
    refused(call_script(SWEEP, *flags), *parts)
    assert in_process == []


def test_killed_in_the_middle_and_started_again_it_loses_nothing_and_runs_nothing_twice(
    script_environment, tmp_path, call_script, in_process, monkeypatch
):
    """As by a power cut: the sweep and the run at hand go at once, without a chance to save. Before
    that it is interrupted after its first run, for which no process is started."""
    flags = ["--vary", "pooling=mean,last", "--", *SHORT, "--max-steps", 160, "--log-every", 10,
             "--save-every", 40, "--evaluate-every", 80, "--epochs", 99]  # fmt: skip
    run = subprocess.run

    def run_only_one(words, **named):
        if words[0] == sys.executable and in_process:
            raise KeyboardInterrupt
        return run(words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", run_only_one)
        assert call_script(SWEEP, "--out", "s", *flags).returncode == 130
    in_process.clear()
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / SWEEP), "--out", "s", *map(str, flags)],
        cwd=tmp_path, env=script_environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first, second = (tmp_path / f"s/pooling={name}/seed-1" for name in ("mean", "last"))
    wait_for_lines(process, second / "metrics.jsonl", 6)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (first / "results.json").exists() and not (second / "results.json").exists()
    progress = json.loads((second / "last/training.json").read_text())["progress"]
    assert 40 <= progress["step"] < 160
    finished = {file: file.stat().st_mtime_ns for file in first.rglob("*")}
    (first / "test").mkdir()  # what a kill leaves that comes while the chosen line is tested
    (first / "test/predictions.parquet").write_bytes(b"PAR1")

    again = call_script(SWEEP, "--out", "s", *flags)
    assert again.returncode == 0, again.stderr
    assert len(in_process) == 2  # the second run, and the test of the chosen line
    assert [*in_process[0][-2:]] == ["--out", "s/pooling=last/seed-1"]
    resumed = json.loads((second / "config.json").read_text())["resumed"]
    assert len(resumed) == 1  # it went on, and did not begin anew
    for file, written in finished.items():
        assert file == first or file.stat().st_mtime_ns == written, file

    assert call_script(SWEEP, "--out", "whole", *flags).returncode == 0
    broken, whole = (json.loads((tmp_path / f"{out}/sweep.json").read_text())
                     for out in ("s", "whole"))  # fmt: skip
    assert broken["test"] == whole["test"]
    for one, other in zip(broken["lines"], whole["lines"], strict=True):
        for same in ("flags", "chosen", "validation"):
            assert one[same] == other[same]
    tables = [
        [line.split("|")[:-3] for line in (tmp_path / f"{out}/sweep.md").read_text().splitlines()
         if line.startswith("|")]  # all but the seconds
        for out in ("s", "whole")
    ]  # fmt: skip
    assert len(tables[0]) == 4 and tables[0] == tables[1]


def test_instructions_are_chosen_and_compared_on_validation(tmp_path, call_script, in_process):
    flags = ["--task", "instruction", "--vary", "train=head,all", "--out", "s", "--", *ASK]
    done = call_script(SWEEP, *flags)
    assert done.returncode == 0, done.stderr
    lines = json.loads((tmp_path / "s/sweep.json").read_text())["lines"]
    folders = [folder for line in lines for folder in line["folders"]]
    done = call_script(COMPARE, *folders, "--split", "validation")
    assert done.returncode == 0 and done.stdout.startswith("6 validation rows"), done.stderr
    for line in lines:
        kept = read_row_losses(tmp_path / line["folders"][0], "after", "validation")
        mean = kept.losses.sum() / kept.targets.sum()
        assert mean == pytest.approx(line["validation"]["loss"][0])
    refused(call_script(COMPARE, *folders), "no predictions.parquet", "--report-on validation")

    # a run that reports on its test rows keeps both splits
    assert call_script(INSTRUCT, *ASK, "--out", "run").returncode == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    for split, rows in (("test", 5), ("validation", 6)):
        done = call_script(COMPARE, "run", "run:before", "--split", split)
        assert done.returncode == 0 and done.stdout.startswith(f"{rows} {split} rows"), done.stderr
        kept = read_row_losses(tmp_path / "run", "after", split)
        mean = kept.losses.sum() / kept.targets.sum()
        assert mean == pytest.approx(results["after"][split]["loss"])
    table = pl.read_parquet(tmp_path / "run/validation_predictions.parquet")
    assert table.columns == ["row", "instruction", "input", "output", "targets", "before", "after"]
