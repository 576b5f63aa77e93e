"""Exports as users make them: at the end of training, by command, and to go on from."""

import json

import pytest
import torch
from test_pretrained import LABELS, SMALL, save_ours

from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.support.errors import UserError
from gpt2.weights.building import ModelSettings, build_model, choose_config
from gpt2.weights.export import export

TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--max-steps", 1,
        "--max-length", 64)  # fmt: skip
TRAIN = "classification/train_gpt.py"
INSTRUCT = "instruction/instruction_finetuning.py"
FEW_ANSWERS = ("--test-answers", 2, "--answer-tokens", 2, "--max-test", 4, "--max-validation", 4)


def test_export_at_the_end_of_training_and_by_command(call_script, tmp_path):
    done = call_script(TRAIN, *TINY, "--pooling", "last", "--out", "run", "--export", "one")
    assert done.returncode == 0 and "exported to one" in done.stdout, done.stderr
    assert "with weight decay 0.1" in done.stdout
    done = call_script("gpt2/weights/export.py", "run", "two")
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "one").iterdir():
        same = file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
        assert same or file.name == "README.md"  # it has the folder's name
    done = call_script("gpt2/weights/export.py", "--help")
    assert done.returncode == 0 and "RUN" in done.stdout and "--dtype" in done.stdout


def test_a_run_goes_on_on_the_same_and_on_the_other_task(call_script, tmp_path):
    """Classifier -> classifier takes the head along; -> instructions the trunk alone; and back."""
    first = call_script(TRAIN, *TINY, "--pooling", "last", "--out", "first")
    assert first.returncode == 0, first.stderr
    few = ("--max-steps", 1, "--max-length", 64)
    same = call_script(TRAIN, "--model", "first", *few, "--out", "same")
    assert "model: first, trunk and head of first/best (classification)" in same.stdout, same.stderr
    assert "pooling last" in same.stdout
    before, after = (json.loads((tmp_path / f"{n}/results.json").read_text())
                     for n in ("first", "same"))  # fmt: skip
    assert after["before"]["test"]["loss"] == pytest.approx(before["after"]["test"]["loss"])
    assert after["model"]["init"] == "pretrained"

    done = call_script(TRAIN, "--model", "first", "--pooling", "mean", "--max-steps", 1)
    assert "trunk, new head (the old one's pooling was last)," in done.stdout, done.stderr
    (tmp_path / "other.csv").write_text(
        "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(80))
    )
    done = call_script(TRAIN, "--model", "first/last", "--max-steps", 1, "--data", "other.csv")
    assert "new head (the old one's labels were negative, positive)," in done.stdout, done.stderr

    done = call_script(INSTRUCT, "--model", "first", "--max-steps", 1, *FEW_ANSWERS, "--out", "ins")
    assert "trunk, new head (the old one was a classification head), of first/best" in done.stdout
    # transformers' own penalty would be another one than that which the run answered with
    export(tmp_path / "ins", tmp_path / "out")
    assert "repetition_penalty" not in (tmp_path / "out/generation_config.json").read_text()
    assert "repetition penalty of 1.2 that counts" in (tmp_path / "out/README.md").read_text()
    done = call_script(INSTRUCT, "--model", "ins", "--max-steps", 1, *FEW_ANSWERS)
    assert "trunk and head of ins/best (instruction)" in done.stdout, done.stderr
    done = call_script(TRAIN, "--model", "ins", "--max-steps", 1)
    assert "trunk, new head (the old one was a language model head), of ins/best" in done.stdout


def test_a_pre_trained_model_goes_out_and_on(tmp_path, capsys):
    """A run of pretrain.py has neither labels nor a template."""
    from transformers import AutoModelForCausalLM

    ours = save_ours(tmp_path / "best", SMALL, LanguageModelHead(SMALL), {"max_length": 64})
    export(tmp_path, tmp_path / "out")
    assert "It continues texts." in (tmp_path / "out/README.md").read_text()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(20).view(2, 10)
    logits = ours(tokens, torch.tensor([10, 10]))
    torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)
    settings = ModelSettings(model=str(tmp_path))
    config, _ = choose_config(settings)
    model, origin = build_model(settings, config, LanguageModelHead, "all", 1)
    assert origin == f"trunk and head of {tmp_path / 'best'} (pretraining)"
    assert torch.equal(model.eval()(tokens, torch.tensor([10, 10])), logits)


def test_a_pooling_that_transformers_lacks_is_refused(tmp_path):
    head = ClassificationHead(SMALL, 3, "mean")
    save_ours(tmp_path / "best", SMALL, head, {"labels": LABELS, "max_length": 48})
    with pytest.raises(UserError, match="pooling mean cannot be exported"):
        export(tmp_path / "best", tmp_path / "out")
    assert not (tmp_path / "out").exists()
