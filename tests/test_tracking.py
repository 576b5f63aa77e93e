"""--track: what tensorboard, trackio and wandb get of a run is what its metrics.jsonl holds."""

import importlib.util
import json
import signal
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY, refused, wait_for_lines

from gpt2.support.tracking import WandB, scalars

TRAIN = "classification/train_gpt.py"
INSTRUCT = "instruction/instruction_finetuning.py"
PRETRAIN = "pretraining/pretrain.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 8,
        "--max-train", 80, "--log-every", 3, "--evaluate-every", 7)  # fmt: skip
CLASSIFY = (TRAIN, *TINY, "--max-test", 16, "--max-length", 64)
FOLLOW = (INSTRUCT, *TINY, "--max-test", 8, "--test-answers", 2, "--answer-tokens", 4)
READ = (PRETRAIN, *TINY, "--max-validation", 4, "--max-length", 64)


def log_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def expected_curves(run):
    """{curve: [(step, value)]} of metrics.jsonl, and {step: samples}."""
    curves = {}
    for record in log_of(run):
        for name, value in scalars(record).items():
            curves.setdefault(name, []).append((record["step"], value))
    samples = {record["step"]: record["samples"] for record in log_of(run) if "samples" in record}
    return curves, samples


def check_tensorboard(run):
    """The event files hold each number of metrics.jsonl once, as float32, and its samples."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0}).Reload()
    curves, samples = expected_curves(run)
    assert sorted(events.Tags()["scalars"]) == sorted(curves)
    for name, points in curves.items():
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, np.float32(value)) for step, value in points]

    def texts(tag):
        found = events.Tensors(f"{tag}/text_summary")
        return {event.step: event.tensor_proto.string_val[0].decode() for event in found}

    assert '"batch_size": 8' in texts("settings")[0]
    shown = texts("samples") if samples else {}
    assert list(shown) == list(samples)
    for step, pairs in samples.items():
        assert all(f"**{prompt}**\n\n{answer}" in shown[step] for prompt, answer in pairs)
    return events


def test_killed_and_resumed_the_curves_are_those_of_the_log(
    script_environment, call_script, tmp_path
):
    pytest.importorskip("tensorboard")
    command = (*READ, "--epochs", 3, "--save-every", 8)
    assert call_script(*command, "--out", "unbroken").returncode == 0
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / PRETRAIN), *map(str, command[1:]), "--out", "run",
         "--track", "tensorboard"],
        cwd=tmp_path, env=script_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for_lines(process, run / "metrics.jsonl", 9)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "results.json").exists()
    done = call_script(PRETRAIN, "--resume", "run")
    assert done.returncode == 0 and "going on after step" in done.stdout, done.stderr
    # tracking changes nothing
    for name in ("metrics.jsonl", "best/model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    check_tensorboard(run)
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert len(expected_curves(run)[1]) > 5 and not (tmp_path / "unbroken/tensorboard").exists()


def test_tracking_may_begin_in_the_middle(call_script, tmp_path):
    pytest.importorskip("tensorboard")
    assert call_script(*FOLLOW, "--epochs", 1, "--out", "run").returncode == 0
    done = call_script(INSTRUCT, "--resume", "run", "--epochs", 2, "--track", "tensorboard")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    events = check_tensorboard(run)
    assert events.Scalars("validation/perplexity")[0].step == 0
    assert log_of(run)[0]["samples"][0][0] == "Name three colours."
    again = call_script(*FOLLOW, "--max-steps", 1, "--out", "run", "--overwrite")
    assert again.returncode == 0 and not (run / "tensorboard").exists()


def test_trackio_on_this_machine(call_script, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    first = (*FOLLOW, "--epochs", 1, "--out", "run", "--track", "trackio")
    for steps, command in ((10, first), (20, (INSTRUCT, "--resume", "run", "--epochs", 2))):
        done = call_script(*command)
        assert done.returncode == 0 and "warning" not in done.stdout, done.stdout
        (tracked,) = trackio.Api().runs("gpt2-finetuning")  # one run, also when it goes on
        assert tracked.name.startswith("run-")
        assert tracked.config["training"]["batch_size"] == 8
        curves, samples = {}, {}
        for row in SQLiteStorage.get_logs("gpt2-finetuning", tracked.name):
            for name, value in row.items():
                if name == "samples":
                    samples[row["step"]] = [list(pair.values()) for pair in value["_value"]]
                elif "/" in name:
                    curves.setdefault(name, []).append((row["step"], value))
        assert (curves, samples) == expected_curves(tmp_path / "run")
        assert curves["training/loss"][-1][0] == steps


def wandb_records(file):
    """The numbered rows in a file of wandb: LevelDB's log format, here in one block."""
    from wandb.proto import wandb_internal_pb2

    content, place, rows = file.read_bytes(), 7, []
    assert len(content) < 32_768
    while place < len(content):
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        assert kind == 1  # a whole record
        record = wandb_internal_pb2.Record.FromString(content[place + 7 : place + 7 + length])
        if record.HasField("history"):
            items = record.history.item
            rows.append(
                {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            )
        place += 7 + length
    return rows


def test_wandb_without_a_network(call_script, tmp_path, monkeypatch):
    """Offline as WANDB_MODE says, and also, with a word on it, where nobody is logged in."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # no login
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for command, mode in (
        ((*CLASSIFY, "--epochs", 1, "--out", "run", "--track", "wandb"), "offline"),
        ((TRAIN, "--resume", "run", "--epochs", 2), "online"),
    ):
        done = call_script(*command, environment={"WANDB_MODE": mode})
        wandb.teardown()  # as at the end of a process: it reads its variables anew
        assert done.returncode == 0 and "has failed" not in done.stdout, done.stdout
        assert ("stay in run/wandb for now" in done.stdout) == (mode == "online")
        (place,) = (tmp_path / "run/wandb").glob("offline-run-*")  # it has all that the log has
        assert place.name.endswith(json.loads((tmp_path / "run/config.json").read_text())["id"])
        (file,) = place.glob("*.wandb")
        curves = {}
        for row in wandb_records(file):
            for name, value in row.items():
                if "/" in name:
                    curves.setdefault(name, []).append((row["step"], value))
        assert curves == expected_curves(tmp_path / "run")[0]


def test_wandb_is_not_sent_again_what_it_has(monkeypatch, tmp_path):
    """It cannot take back or mend what it has, and warns of each record that comes again."""
    sent = []
    online = SimpleNamespace(
        step=2, define_metric=lambda *given, **named: None,
        log=lambda content, step: sent.append((step, content)),
    )  # fmt: skip
    stub = SimpleNamespace(
        init=lambda **settings: online, Settings=dict, Table=dict, Error=RuntimeError
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    curves = WandB(tmp_path, {"id": "x", "settings": {}})
    for step in range(4):
        curves.log({"step": 10 * step, "loss": 1.0})
    assert sent == [(n, {"training/loss": 1.0, "step": 10 * n}) for n in (2, 3)]


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_package_that_is_missing_is_named_before_any_work(
    name, call_script, tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = call_script(*CLASSIFY, "--out", "run", "--track", name)
    refused(done, f"--track {name}", f"pip install {name}")
    assert not (tmp_path / "run").exists() and not done.stdout


@pytest.mark.parametrize("fails", ["at the start", "later", "at the end"])
def test_a_tracker_that_fails_ends_nothing_but_itself(call_script, tmp_path, monkeypatch, fails):
    pytest.importorskip("tensorboard")

    def full_disk(*given, **named):
        raise OSError(28, "No space left on device")

    name = {"at the start": "add_text", "later": "flush", "at the end": "close"}[fails]
    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{name}", full_disk)
    done = call_script(*CLASSIFY, "--epochs", 1, "--out", "run", "--track", "tensorboard")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: --track tensorboard has failed") == 1
    assert "No space left on device" in done.stdout
    assert [record["step"] for record in log_of(tmp_path / "run")] == [0, 3, 6, 7, 9, 10, 10]
    assert (tmp_path / "run/report.md").exists()
