"""Runs with low-rank adapters, whose checkpoints hold no base: resumed, exported, gone on from."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest
import torch
from conftest import refused
from safetensors import safe_open
from test_commands import use_tiny_mini

from gpt2 import training
from gpt2.checkpoint import load_checkpoint
from gpt2.support.errors import UserError
from gpt2.support.stopping import Stopped
from gpt2.weights.loading import load_model

TRAIN = "classification/train_gpt.py"
INSTRUCT = "instruction/instruction_finetuning.py"
PRETRAIN = "pretraining/pretrain.py"
FEW = ("--max-train", 32, "--max-validation", 4, "--batch-size", 8, "--precision", "float32")
SHORT = {
    TRAIN: (*FEW, "--max-test", 4, "--max-steps", 4, "--evaluate-every", 2, "--max-length", 16),
    INSTRUCT: (*FEW, "--max-test", 4, "--max-steps", 4, "--evaluate-every", 2, "--max-length", 128,
               "--test-answers", 2, "--answer-tokens", 2),
    PRETRAIN: (*FEW, "--max-steps", 4, "--evaluate-every", 2, "--max-length", 32),
}  # fmt: skip


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """`mini`, but tiny."""
    use_tiny_mini(tmp_path / "mini", monkeypatch)
    return tmp_path / "mini"


def run(call_script, script, *flags):
    done = call_script(script, *SHORT[script], "--train", "lora", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bytes_of(folder):
    names = ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors",
             "best/config.json", "metrics.jsonl", "before.json")  # fmt: skip
    return {name: (folder / name).read_bytes() for name in names}


@contextmanager
def stopping_in_the_third_batch():
    """As SIGTERM does."""
    batches = []

    def stop():
        batches.append(1)
        if len(batches) == 3:
            raise Stopped(15, "--resume")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "stop_if_asked", stop)
        yield


@pytest.mark.parametrize("script", [TRAIN, INSTRUCT, PRETRAIN])
def test_stopped_and_resumed_a_run_has_the_bytes_of_an_unbroken_one(
    script, mini, call_script, tmp_path
):
    flags = ("--dropout", 0.1, "--lora-dropout", 0.2, "--lora-rank", 2, "--lora-on", "mlp,c_attn")
    said = run(call_script, script, *flags, "--out", "unbroken")
    assert "LoRA of rank 2 on mlp,c_attn" in said
    with stopping_in_the_third_batch():
        stopped = call_script(script, *SHORT[script], "--train", "lora", *flags, "--out", "run")
        assert stopped.returncode == 143
    resumed = call_script(script, "--resume", "run")
    assert resumed.returncode == 0 and "going on after step 2 of 4" in resumed.stdout
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "unbroken")

    with safe_open(tmp_path / "run/best/model.safetensors", "pt") as file:
        names = set(file.keys())
    ours = {f"h.{block}.{layer}.lora_{matrix}" for block in (0, 1) for matrix in "AB"
            for layer in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    assert names == ours | ({"head.score.weight"} if script == TRAIN else set())
    lora = json.loads((tmp_path / "run/best/config.json").read_text())["lora"]
    assert lora["base"] == "mini" and len(lora["base_sha256"]) == 64
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["model"]["trainable"] < results["model"]["parameters"] / 2
    refused(call_script(script, "--resume", "run", "--lora-rank", 4), "--lora-rank 4 contradicts")


def test_every_script_takes_such_a_run(mini, call_script, tmp_path):
    run(call_script, TRAIN, "--pooling", "last", "--out", "run", "--export", "exported")
    after = json.loads((tmp_path / "run/results.json").read_text())["after"]["test"]
    answer = call_script("classification/predict.py", "run", "a film", "--precision", "float32")
    assert answer.returncode == 0 and "a film" in answer.stdout, answer.stderr
    done = call_script("classification/evaluate.py", "run", "--out", "found", "--precision",
                       "float32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found/results.json").read_text())["metrics"]
    assert found["loss"] == pytest.approx(after["loss"], rel=1e-6)
    run(call_script, TRAIN, "--pooling", "last", "--out", "other", "--seed", 2)
    done = call_script("baselines/compare.py", "run", "other", "--resamples", 100)
    assert done.returncode == 0, done.stderr

    run(call_script, INSTRUCT, "--out", "ins")
    done = call_script("instruction/respond.py", "ins", "Say hello.", "--max-new-tokens", 2)
    assert done.returncode == 0, done.stderr
    done = call_script("instruction/evaluate.py", "ins", "--test-answers", 1, "--answer-tokens", 2)
    assert done.returncode == 0, done.stderr
    run(call_script, PRETRAIN, "--out", "pre")
    done = call_script("pretraining/sample.py", "pre", "A film", "--max-new-tokens", 2)
    assert done.returncode == 0, done.stderr


def test_an_export_has_the_merged_weights(mini, call_script, tmp_path):
    from transformers import AutoModelForSequenceClassification

    run(call_script, TRAIN, "--pooling", "last", "--out", "run")
    done = call_script("gpt2/weights/export.py", "run", "out")
    assert done.returncode == 0, done.stderr
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ours, _ = load_model(tmp_path / "run", "classification")
    tokens = torch.arange(24).view(2, 12)
    expected = ours(tokens, torch.tensor([12, 12]))
    assert not torch.allclose(expected, expected[:1])
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("train", ["all", "lora"])
def test_a_run_goes_on_from_merged_weights(train, mini, call_script, tmp_path):
    """With --train all the next run has a model of its own; with lora, adapters that stand on the
    run before."""
    run(call_script, TRAIN, "--pooling", "last", "--out", "first", "--lora-alpha", 64)
    said = run(call_script, TRAIN, "--model", "first", "--train", train, "--out", "second")
    assert "trunk and head of first/best (classification)" in said
    before, after = (json.loads((tmp_path / f"{name}/results.json").read_text())
                     for name in ("first", "second"))  # fmt: skip
    assert after["before"]["test"]["loss"] == pytest.approx(before["after"]["test"]["loss"])
    shutil.rmtree(tmp_path / "first/last")
    predict = ("classification/predict.py", "second", "a film")
    assert call_script(*predict).returncode == 0
    assert call_script(TRAIN, "--resume", "second", "--max-steps", 5).returncode == 0
    shutil.rmtree(tmp_path / "first")
    if train == "all":
        assert call_script(*predict).returncode == 0
    else:
        said = f"{tmp_path}/first/best: is gone", f"a link to where it is now: ln -s NEW {tmp_path}"
        refused(call_script(*predict), *said)
        refused(call_script(TRAIN, "--resume", "second", "--max-steps", 6), *said)


def test_a_base_that_moved_is_found_by_a_link(mini, call_script, tmp_path):
    done = call_script(PRETRAIN, *SHORT[PRETRAIN], "--out", "first")
    assert done.returncode == 0, done.stderr
    run(call_script, TRAIN, "--model", "first", "--out", "second")
    (tmp_path / "first").rename(tmp_path / "moved")
    refused(call_script("classification/predict.py", "second", "a film"), "is gone")
    os.symlink(tmp_path / "moved", tmp_path / "first")
    assert call_script("classification/predict.py", "second", "a film").returncode == 0
    resumed = call_script(TRAIN, "--resume", "second", "--max-steps", 5)
    assert resumed.returncode == 0, resumed.stderr


def test_another_base_is_refused(mini, call_script, tmp_path):
    run(call_script, TRAIN, "--pooling", "last", "--out", "run")
    weights = (mini / "model.safetensors").read_bytes()
    (mini / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    said = "mini: holds other weights now (SHA-256"
    for command in (
        ("classification/predict.py", "run", "a film"),
        ("classification/evaluate.py", "run"),
        ("gpt2/weights/export.py", "run", "out"),
        (TRAIN, "--resume", "run", "--max-steps", 5),
        (TRAIN, "--model", "run"),
    ):
        refused(call_script(*command), said)
    with pytest.raises(UserError, match="holds adapters, and not the weights"):
        load_checkpoint(tmp_path / "run", "classification")


def test_activation_checkpointing_changes_no_bit(mini, call_script, tmp_path):
    flags = ("--dropout", 0.1, "--lora-dropout", 0.2)
    run(call_script, TRAIN, *flags, "--out", "kept")
    run(call_script, TRAIN, *flags, "--activation-checkpointing", "--out", "again")
    assert bytes_of(tmp_path / "kept") == bytes_of(tmp_path / "again")


@pytest.mark.parametrize(
    "flags, parts",
    [
        (("--lora-on", "attn,ffn"), ["--lora-on attn,ffn: 'ffn' stands in no linear layer's name",
                                     "there are h, attn, c_attn, c_proj, mlp, c_fc"]),
        (("--init", "random"), ["--train lora: adapts weights that have learnt something"]),
        (("--model", "scratch"), ["--train lora: adapts weights that have learnt something"]),
        (("--train", "all", "--lora-rank", 4), ["--lora-rank 4 goes with --train lora"]),
        (("--lora-rank", 0), ["--lora-rank is 0"]),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_any_work(flags, parts, mini, call_script):
    refused(call_script(TRAIN, "--train", "lora", *flags), *parts)
