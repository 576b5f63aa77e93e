"""float16 with a scaled loss: overflowing steps are skipped, counted and repeated on resume; other
arithmetic is what it was. A CPU has torch's autocast and scaler for it, too, only slowly."""

import dataclasses
import json
import math

import pytest
import torch
from many_processes import in_processes
from test_commands import use_tiny_mini
from test_resume import ACTIONS as STOPS
from test_resume import CONFIG, ENDS, at_event, datasets, in_child, run_task, what_counts
from test_training import run_training, tiny_model

from classification.evaluation import classification_loss
from gpt2 import training
from gpt2.bookkeeping import NotFinite, StepSums
from gpt2.optimization import TrainingConfig, make_optimizer
from gpt2.support.device import arithmetic, autocast, loss_scaler
from gpt2.support.distributed import full_tensor, to_device
from gpt2.training import average_and_clip

CPU = torch.device("cpu")
EACH_STEP = {"precision": "float16", "batch_size": 8, "evaluate_every": 1, "log_every": 1}


@pytest.mark.parametrize(
    "device, capability, expected",
    [
        ("cuda", (7, 0), "float16"),  # V100
        ("cuda", (7, 5), "float16"),  # T4
        ("cuda", (8, 0), "bfloat16"),  # A100
        ("cuda", (9, 0), "bfloat16"),  # H100
        ("cuda", (6, 1), "float32"),  # GTX 1080: slow in float16
        ("mps", None, "float32"),
    ],
)
def test_auto_takes_what_the_device_is_fast_at(device, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert arithmetic(torch.device(device), "auto") == expected
    assert arithmetic(torch.device(device), "float32") == "float32"


def test_products_are_in_float16_and_the_scaler_is_on_then_alone():
    for precision in ("float32", "bfloat16", "float16"):
        with autocast(CPU, precision):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert str(product.dtype) == f"torch.{precision}"
        assert loss_scaler(CPU, precision).is_enabled() == (precision == "float16")


def test_the_scale_cancels_to_the_last_bit():
    gradients = []
    for precision in ("float32", "float16"):
        model, scaler = tiny_model(), loss_scaler(CPU, precision)
        optimizer = make_optimizer(model, TrainingConfig())
        loss = model(torch.arange(12).view(2, 6), torch.tensor([6, 3])).square().sum()
        scaler.scale(loss).backward()
        gradients.append(
            (
                average_and_clip(optimizer, scaler, StepSums(loss.detach(), 2), 0.01),
                model.wte.weight.grad,
            )
        )
    assert gradients[0][0] == gradients[1][0] > 0.01  # so that it was clipped
    assert torch.equal(gradients[0][1], gradients[1][1])


def overflowing_in(*steps, factor=1e7):
    """A loss whose gradient overflows float16 in these steps, counted from 1, and no other one."""
    calls = []

    def loss(model, batch):
        calls.append(1)
        total, count = classification_loss(model, batch)
        return (total * factor if len(calls) in steps else total), count

    return loss


def test_a_step_that_overflows_is_skipped_and_counted(tmp_path):
    model, seen = tiny_model(), []

    def evaluate():
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"loss": 1.0}

    config = TrainingConfig(epochs=6, **EACH_STEP)
    _, result, log = run_training(tmp_path, config, model, evaluate, overflowing_in(2, 4, 5))
    for step in range(1, 7):
        same = all(torch.equal(seen[step][name], seen[step - 1][name]) for name in seen[0])
        assert same == (step in (2, 4, 5)), step
    steps = [record for record in log if "loss" in record]
    assert [record["skipped_steps"] for record in steps] == [0, 1, 1, 2, 3, 3]
    assert [record["loss_scale"] for record in steps] == [1024, 512, 512, 256, 128, 128]
    assert [record["gradient_norm"] is None for record in steps] == [
        step in (2, 4, 5) for step in range(1, 7)
    ]
    assert result.skipped_steps == 3
    progress = json.loads((tmp_path / "last/training.json").read_text())["progress"]
    assert (progress["scaler"]["scale"], progress["skipped_in_a_row"]) == (128, 0)


def test_too_many_in_a_row_end_the_run_as_a_loss_that_is_not_finite_does(tmp_path):
    config = TrainingConfig(epochs=50, **EACH_STEP)
    always = overflowing_in(*range(3, 51), factor=1e30)
    with pytest.raises(NotFinite, match=r"step 33: loss .*, gradient norm (inf|nan)"):
        run_training(tmp_path / "gradient", config, loss=always)
    progress = json.loads((tmp_path / "gradient/last/training.json").read_text())["progress"]
    assert progress["step"] == 32 and progress["skipped_in_a_row"] == 30

    with pytest.raises(NotFinite, match="step 3: loss inf"):  # no scale mends that
        run_training(tmp_path / "loss", config, loss=overflowing_in(3, factor=math.inf))


@pytest.mark.parametrize("task", ["classification", "instruction"])
def test_resumed_with_skipped_steps_on_the_way_the_bytes_are_the_same(task, tmp_path, monkeypatch):
    def large_and_growing(*given):
        return torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=2)

    monkeypatch.setattr(training, "loss_scaler", large_and_growing)
    config, data = dataclasses.replace(CONFIG, precision="float16"), datasets(task)
    run_task(task, data, tmp_path / "unbroken", resume=False, config=config)
    log = [json.loads(line) for line in (tmp_path / "unbroken/metrics.jsonl").open()]
    skipped = [record["skipped_steps"] for record in log if "loss" in record]
    assert 0 < skipped[-1] < 12, skipped  # some steps were taken, and some were not
    for number, place in enumerate((3, 9, 14)):

        def stopped(number=number, place=place):
            at_event("loop", place, STOPS["SIGTERM"])
            run_task(task, data, tmp_path / str(number), resume=False, config=config)

        assert in_child(stopped) == ENDS["SIGTERM"]
        run_task(task, data, tmp_path / str(number), resume=True, config=config)
        assert what_counts(tmp_path / str(number)) == what_counts(tmp_path / "unbroken")


def test_other_arithmetic_logs_what_it_always_did(tmp_path):
    for precision in ("float32", "bfloat16"):
        config = TrainingConfig(epochs=1, log_every=1, precision=precision)
        _, result, log = run_training(tmp_path / precision, config)
        record = next(record for record in log if "loss" in record)
        assert list(record) == ["step", "epoch", "loss", "learning_rate", "gradient_norm"]
        assert result.skipped_steps == 0


def test_scripts_train_evaluate_predict_and_answer_in_float16(tmp_path, call_script, monkeypatch):
    use_tiny_mini(tmp_path / "mini", monkeypatch)
    few = ("--max-train", 8, "--max-validation", 4, "--max-test", 4, "--batch-size", 4,
           "--max-steps", 2, "--precision", "float16")  # fmt: skip
    done = call_script("classification/train_gpt.py", *few, "--max-length", 16, "--out", "run")
    assert done.returncode == 0 and "float16 on cpu" in done.stdout, done.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["training"]["skipped_steps"] == 0
    for command in (("predict.py", "run", "a film"), ("evaluate.py", "run")):
        done = call_script("classification/" + command[0], *command[1:], "--precision", "float16")
        assert done.returncode == 0, done.stderr
    done = call_script("instruction/instruction_finetuning.py", *few, "--max-length", 128,
                       "--test-answers", 1, "--answer-tokens", 2, "--out", "ins")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = call_script("instruction/respond.py", "ins", "Say hello.", "--max-new-tokens", 2,
                       "--precision", "float16")  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="older ones shard wrongly on CPUs")
def test_many_processes_skip_together(tmp_path):
    """Of a sharded gradient one process alone holds the number that has overflowed."""

    def work():
        model, scaler = to_device(tiny_model(), CPU, shard=True), loss_scaler(CPU, "float16")
        optimizer = make_optimizer(model, TrainingConfig())
        before = full_tensor(model.ln_f.weight.detach()).clone()
        loss = model(torch.arange(12).view(2, 6), torch.tensor([6, 3])).sum()
        scaler.scale(loss).backward()
        own = model.ln_f.weight.grad.to_local()
        if torch.distributed.get_rank() == 0:
            own[0] = math.inf
        norm = average_and_clip(optimizer, scaler, StepSums(loss.detach(), 2), 1.0)
        scaler.step(optimizer)
        scaler.update()
        same = torch.equal(full_tensor(model.ln_f.weight.detach()), before)
        return math.isfinite(norm), same, scaler.get_scale()

    assert in_processes(2, work, tmp_path / "results") == [(False, True, 512)] * 2
