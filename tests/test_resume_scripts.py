"""--resume, --save-every, Ctrl-C and SIGTERM, as a user meets them."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, wait_for_lines

from gpt2 import training
from gpt2.support import stopping

TRAIN = "classification/train_gpt.py"
INSTRUCT = "instruction/instruction_finetuning.py"
PRETRAIN = "pretraining/pretrain.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--dropout", 0.1,
        "--epochs", 2, "--batch-size", 8, "--micro-batch-size", 5, "--log-every", 3,
        "--precision", "float32")  # fmt: skip
CLASSIFY = (TRAIN, *TINY, "--max-train", 80, "--max-test", 16, "--max-length", 64,
            "--evaluate-every", 7)  # fmt: skip
FOLLOW = (INSTRUCT, *TINY, "--max-train", 80, "--max-test", 8, "--test-answers", 2,
          "--answer-tokens", 4, "--evaluate-every", 7)  # fmt: skip
READ = (PRETRAIN, *TINY, "--max-train", 80, "--max-validation", 4, "--max-length", 64,
        "--evaluate-every", 7, "--optimizer", "muon" if hasattr(torch.optim, "Muon") else "adamw",
        )  # fmt: skip


def start(script_environment, folder, script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-u", str(REPOSITORY / script), *map(str, arguments)],
        cwd=folder, env=script_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@contextmanager
def sending_itself(number, metrics, lines):
    """This process gets the signal `number` in the first batch after `metrics` has as many lines.
    What the signal's handler says past Python's streams goes into the file that is yielded."""

    def stop_if_asked():
        if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
            os.kill(os.getpid(), number)
        stopping.stop_if_asked()

    with pytest.MonkeyPatch.context() as patch, open(metrics.parent.parent / "said", "w") as said:
        patch.setattr(sys, "__stderr__", said)
        patch.setattr(training, "stop_if_asked", stop_if_asked)
        yield said


def what_counts(folder):
    """All that must not depend on whether the run was stopped."""
    results = json.loads((folder / "results.json").read_text())
    for changing in ("seconds", "tokens_per_second", "peak_memory"):
        del results["training"][changing]
    results.get("baseline", {}).pop("seconds", None)
    bytes_of = {name: (folder / name).read_bytes() for name in (
        "metrics.jsonl", "best/model.safetensors", "last/model.safetensors",
        "last/optimizer.safetensors", "before.json")}  # fmt: skip
    return results, bytes_of


@pytest.mark.parametrize(
    "command", [CLASSIFY, FOLLOW, READ], ids=["classification", "instruction", "pre-training"]
)
def test_stopped_by_signals_and_resumed_a_run_ends_as_an_unbroken_one(
    command, script_environment, call_script, tmp_path
):
    """The first time, pre-training, which starts fastest, is a process of its own."""
    command = (*command, "--epochs", 4)  # long enough not to end before a late signal
    unbroken = call_script(*command, "--out", "unbroken")
    assert unbroken.returncode == 0, unbroken.stderr

    run = tmp_path / "run"
    for number, name, arguments, lines in (
        (signal.SIGTERM, "SIGTERM", (*command, "--out", "run"), 2),
        (signal.SIGINT, "Ctrl-C", (command[0], "--resume", "run"), 7),
    ):
        if number == signal.SIGTERM and command[0] == PRETRAIN:
            process = start(script_environment, tmp_path, *arguments)
            wait_for_lines(process, run / "metrics.jsonl", lines)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            status = process.returncode
        else:
            with sending_itself(number, run / "metrics.jsonl", lines) as by_handler:
                stopped = call_script(*arguments)
            said = Path(by_handler.name).read_text() + stopped.stderr
            status = stopped.returncode
        assert status == 128 + number, said
        assert f"{name}: stopping after this batch" in said
        assert f"stopped by {name}; go on with: python" in said.splitlines()[-1]
        assert said.splitlines()[-1].endswith(f"{command[0]} --resume run")
        assert "Traceback" not in said
        assert not (run / "results.json").exists()
        progress = json.loads((run / "last/training.json").read_text())["progress"]
        assert progress["step"] >= 3 * (lines // 2)  # saved where it stood, not where it began
    resumed = call_script(command[0], "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step" in resumed.stdout
    assert what_counts(run) == what_counts(tmp_path / "unbroken")
    config = json.loads((run / "config.json").read_text())
    assert len(config["resumed"]) == 2 and config["settings"]["training"]["epochs"] == 4


def test_contradictions_completion_and_more_epochs(call_script, tmp_path):
    def refused(*arguments):
        ended = call_script(TRAIN, *arguments)
        assert ended.returncode == 2 and ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        return ended.stderr

    assert "no config.json" in refused("--resume", "nothing")
    assert "needs --out" in refused("--resume", "auto")
    assert call_script(*CLASSIFY, "--resume", "auto", "--out", "run").returncode == 0  # starts it
    for flag, value, then in (
        ("--seed", 2, 1),
        ("--learning-rate", 0.1, 0.0006),
        ("--text-column", "body", "text"),
        ("--epochs", 0, None),
    ):
        said = refused("--resume", "run", flag, value)
        assert flag in said and str(value) in said
        assert then is None or f"which has {then}" in said
    assert "gpt2.weights.export run out" in refused("--resume", "run", "--export", "out")
    # a run of older code, which did not have this flag, did as its default does
    config = (tmp_path / "run/config.json").read_text()
    older = json.loads(config)
    del older["settings"]["training"]["layer_decay"]
    (tmp_path / "run/config.json").write_text(json.dumps(older))
    assert "which has 1.0" in refused("--resume", "run", "--layer-decay", 0.5)
    (tmp_path / "run/config.json").write_text(config)
    assert "--overwrite" in refused("--resume", "run", "--overwrite")
    assert "stays in its folder" in refused("--resume", "run", "--out", "other")
    assert "--save-every 3h: must be steps" in refused("--resume", "run", "--epochs", 3,
                                                       "--save-every", "3h")  # fmt: skip
    ended = call_script(INSTRUCT, "--resume", "run")
    assert ended.returncode == 2 and "is a run of train_gpt.py" in ended.stderr

    before = (tmp_path / "run/report.md").read_bytes()
    for arguments in (("--resume", "run"), ("--resume", "auto", "--out", "run", *CLASSIFY[1:])):
        complete = call_script(TRAIN, *arguments)
        assert complete.returncode == 0 and "this run is complete" in complete.stdout
    assert (tmp_path / "run/report.md").read_bytes() == before

    kept = {name: (tmp_path / "run" / name).read_bytes() for name in ("config.json",
            "results.json", "metrics.jsonl")}  # fmt: skip
    fewer = call_script(TRAIN, "--resume", "run", "--epochs", 1)
    assert fewer.returncode == 2 and "has 20 steps already" in fewer.stderr
    for name, content in kept.items():
        assert (tmp_path / "run" / name).read_bytes() == content, f"{name} of a refused resume"
    more = call_script(TRAIN, "--resume", "run", "--epochs", 3, "--log-every", 5)
    assert more.returncode == 0, more.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["training"]["steps"], results["training"]["epochs"]) == (30, 3)
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    steps = [record["step"] for record in log if "loss" in record]
    assert steps == [3, 6, 9, 12, 15, 18, 20, 25, 30]


def test_ctrl_c_that_ends_tee_as_well_loses_nothing(script_environment, tmp_path):
    """`train_gpt.py 2>&1 | tee log`: at Ctrl-C nobody reads what the run has to say."""
    process = start(script_environment, tmp_path, *CLASSIFY, "--epochs", 300, "--evaluate-every",
                    10_000, "--out", "run")  # fmt: skip
    wait_for_lines(process, tmp_path / "run/metrics.jsonl", 2)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    progress = json.loads((tmp_path / "run/last/training.json").read_text())["progress"]
    assert progress["step"] >= 3


def test_a_damaged_run_folder_is_named_or_mended(call_script, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert call_script(*CLASSIFY, "--out", "run").returncode == 0
    (run / "results.json").unlink()

    for name, damage in (("before.json", "{"), ("metrics.jsonl", "{\n" * 20)):
        content = (run / name).read_bytes()
        (run / name).write_text(damage)
        ended = call_script(TRAIN, "--resume", "run")
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
        assert f"{name}: " in ended.stderr and "is damaged" in ended.stderr
        (run / name).write_bytes(content)

    def full_disk(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "curves.png")

    with monkeypatch.context() as patch:
        patch.setattr("classification.report.plot_curves", full_disk)
        ended = call_script(TRAIN, "--resume", "run")
    assert ended.returncode == 2 and "No space left on device" in ended.stderr
    (run / "report.md").unlink()
    assert call_script(TRAIN, "--resume", "run").returncode == 0  # it was not complete
    assert (run / "report.md").exists() and (run / "results.json").exists()

    shutil.rmtree(run / "best")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-2]))
    ended = call_script(TRAIN, "--resume", "run", "--max-steps", 22, "--epochs", 3)
    assert ended.returncode == 0, ended.stderr
    assert "saves best/ anew" in ended.stdout and "2 of 11 lines are gone" in ended.stdout
    assert "best step 21" in ended.stdout or "best step 22" in ended.stdout


def test_a_start_that_a_kill_has_cut_short_can_be_repeated(call_script, tmp_path, monkeypatch):
    def killed(self, name, content):
        (self.folder / f"{name}.new").touch()
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr("gpt2.support.run_folder.RunFolder.write_json", killed)
        assert call_script(*CLASSIFY, "--out", "run").returncode == 137
    again = call_script(*CLASSIFY, "--max-steps", 1, "--resume", "auto", "--out", "run")
    assert again.returncode == 0, again.stderr


def test_a_run_stopped_before_its_first_save_starts_again(call_script, tmp_path):
    assert call_script(*CLASSIFY, "--out", "run").returncode == 0
    expected = what_counts(tmp_path / "run")
    for name in ("results.json", "before.json", "report.md"):
        (tmp_path / "run" / name).unlink()
    for name in ("best", "last"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    assert call_script(TRAIN, "--resume", "run").returncode == 0
    assert what_counts(tmp_path / "run") == expected


def test_a_resumed_run_needs_no_longer_what_it_began_with(call_script, tmp_path):
    """The folder that --model named may be gone, or hold another model."""
    short = CLASSIFY[CLASSIFY.index("--epochs") :]
    assert call_script(*CLASSIFY, "--out", "first").returncode == 0
    began = call_script(TRAIN, *short, "--model", "first", "--seed", 2, "--out", "run")
    assert began.returncode == 0, began.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["model"]["origin"].startswith("trunk and head of first")
    expected = what_counts(tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    (tmp_path / "first").rename(tmp_path / "gone")
    resumed = call_script(TRAIN, "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert what_counts(tmp_path / "run") == expected
