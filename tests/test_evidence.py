"""Every prediction kept, honest probabilities, lopsided classes, runs compared on their rows."""

import json
import math
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from conftest import refused

from classification.calibration import (
    apply_temperature,
    best_threshold,
    check_threshold,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from classification.evaluation import classification_loss, lopsided_metrics, parse_class_weights
from classification.predict import choose_label
from classification.predictions import best_weight, mix, read_predictions
from gpt2.batching import Batch
from gpt2.support.errors import UserError

TRAIN = "classification/train_gpt.py"
TINY = "--model scratch --n-layer 1 --n-embd 16 --n-head 1 --max-length 32".split()
SHORT = [*TINY, "--max-steps", 4, "--evaluate-every", 4, "--max-train", 64, "--max-test", 30]


def logs(*rows):
    return np.log(np.array(rows, dtype=np.float64))


# --- probabilities


def test_a_temperature_undoes_what_made_the_model_too_sure():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(4_000, 3))
    honest -= np.log(np.exp(honest).sum(axis=1, keepdims=True))
    targets = np.array([rng.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in honest])
    too_sure = apply_temperature(honest, 1 / 2.5)
    assert fit_temperature(too_sure, targets) == pytest.approx(2.5, rel=0.06)
    mended = apply_temperature(too_sure, 2.5)
    np.testing.assert_allclose(mended, honest, atol=1e-9)
    assert (mended.argmax(axis=1) == too_sure.argmax(axis=1)).all()
    wrong, right = (expected_calibration_error(p, targets) for p in (too_sure, mended))
    assert wrong > 0.15 and right < 0.03


def test_the_best_weights_may_be_those_with_the_lowest_calibrated_loss(tmp_path, call_script):
    """48 rows learnt by heart: the model is soon too sure, and the two losses part."""
    flags = "--max-train 48 --batch-size 16 --learning-rate 1e-2 --max-steps 40 --evaluate-every 4"
    flags = [*TINY, *flags.split(), "--max-test", 4, "--best-by", "calibrated_loss", "--out", "run"]
    done = call_script(TRAIN, *flags)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line["validation"] for line in log if line.get("validation")}
    del seen[0]
    assert all(found["calibrated_loss"] <= found["loss"] for found in seen.values())
    by = {name: min(seen, key=lambda s: seen[s][name]) for name in ("loss", "calibrated_loss")}
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["training"]["best_step"] == by["calibrated_loss"] != by["loss"]
    kept = read_predictions(tmp_path / "run", "validation")
    calibrated = apply_temperature(
        kept.log_probabilities["after"], results["calibration"]["temperature"]
    )
    loss = -calibrated[np.arange(len(kept.targets)), kept.targets].mean()
    assert loss == pytest.approx(seen[by["calibrated_loss"]]["calibrated_loss"], abs=1e-5)


def test_calibration_error_by_hand():
    """Two rows at 0.9, one right: 0.4 too sure; two at 0.6, both right: 0.4 too modest."""
    found = logs([0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6])
    targets = np.array([0, 1, 1, 1])
    assert expected_calibration_error(found, targets) == pytest.approx(0.4)
    assert [each["rows"] for each in reliability(found, targets)] == [2, 2]


def test_the_threshold_with_the_best_f1():
    probability = np.array([0.1, 0.2, 0.35, 0.4, 0.8])
    positive = np.array([False, False, True, True, True])
    assert best_threshold(probability, positive) == 0.35


def test_two_models_together_and_the_weight_that_validation_chooses():
    one, other = logs([0.5, 0.5], [0.5, 0.5]), logs([0.9, 0.1], [0.1, 0.9])
    assert best_weight(one, other, np.array([0, 1])) == 1.0
    assert best_weight(one, other, np.array([1, 0])) == 0.0
    mixed = mix(one, other, 0.5)
    odds = mixed[0, 0] - mixed[0, 1]
    assert odds == pytest.approx(0.5 * math.log(9))  # the mean of the log-odds 0 and log 9
    np.testing.assert_allclose(np.exp(mixed).sum(axis=1), 1)


def test_figures_that_a_large_class_cannot_carry():
    always = logs([0.9, 0.1]).repeat(10, axis=0)
    found = lopsided_metrics(always, np.array([0] * 9 + [1]))
    assert found == {"balanced_accuracy": 0.5, "matthews": 0.0, "roc_auc": 0.5}
    perfect = lopsided_metrics(logs([0.9, 0.1], [0.2, 0.8]), np.array([0, 1]))
    assert set(perfect.values()) == {1.0}
    assert "roc_auc" not in lopsided_metrics(always, np.zeros(10, dtype=int))


def test_a_threshold_for_two_classes():
    answer = {"ham": 0.6, "spam": 0.4}
    assert choose_label(answer, None) == "ham"
    assert choose_label(answer, 0.3) == "spam" and choose_label(answer, 0.5) == "ham"
    assert choose_label(None, 0.3) is None
    for text, classes in (("0", 2), ("1", 2), ("x", 2), ("0.5", 3), ("f1", 3)):
        with pytest.raises(UserError, match="--threshold"):
            check_threshold(text, classes)
    check_threshold("", 3), check_threshold("f1", 2), check_threshold("0.3", 2)


# --- lopsided classes


def test_a_weighted_loss_is_a_sum_and_the_sum_of_weights():
    class Fixed(torch.nn.Module):
        def forward(self, tokens, lengths):
            return torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])

    batch = Batch(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3), torch.tensor([0, 1, 1]))
    total, count = classification_loss(Fixed(), batch, torch.tensor([1.0, 3.0]))
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))]
    assert total.item() == pytest.approx(losses[0] + 3 * losses[1] + 3 * losses[2], rel=1e-6)
    assert count.item() == 7
    assert classification_loss(Fixed(), batch)[1] == 3


def test_class_weights_by_name_and_what_is_refused():
    labels, counts = ["ham", "a=b"], np.array([90, 10])
    assert parse_class_weights("none", labels, counts) is None
    assert parse_class_weights("a=b=3", labels, counts).tolist() == [1, 3]
    for text in ("spam=2", "ham", "ham=x", "ham=0", "ham=-1", "ham=inf", "balance",
                 "ham=1,ham=2"):  # fmt: skip
        with pytest.raises(UserError, match="--class-weights"):
            parse_class_weights(text, labels, counts)


def test_balanced_weights_raise_macro_f1_of_both_models(tmp_path, call_script):
    """90, 8 and 2 % of the rows; what tells the classes apart is one word among common ones."""
    rng = np.random.default_rng(4)
    labels = rng.choice(["news", "offer", "alarm"], 600, p=[0.9, 0.08, 0.02])
    words = ["the", "house", "green", "slowly", "music", "table", "winter", "letter"]
    sign = {"news": "music", "offer": "cheap", "alarm": "smoke"}
    texts = [
        " ".join([*rng.choice(words, 3), sign[label], *rng.choice(words, 3)]) for label in labels
    ]
    pl.DataFrame({"text": texts, "label": labels}).unique("text", maintain_order=True).write_csv(
        tmp_path / "lopsided.csv"
    )
    found = {}
    for weights in ("none", "balanced"):
        flags = ["--data", "lopsided.csv", "--class-weights", weights, "--out", weights]
        done = call_script(TRAIN, *flags, "--max-steps", 16, "--train", "last:2")
        assert done.returncode == 0, done.stderr
        assert "| balanced accuracy | Matthews |" in done.stdout
        results = json.loads((tmp_path / weights / "results.json").read_text())
        found[weights] = results["after"]["test"]["f1"], results["baseline"]["test"]["f1"]
    print(found)
    assert found["balanced"][0] > found["none"][0] + 0.1
    assert found["balanced"][1] > found["none"][1] + 0.1


# --- runs


@pytest.fixture
def runs(tmp_path, call_script):
    """Two seeds of the same settings, and another pooling."""
    for name, flags in {"a-1": ("--seed", 1), "a-2": ("--seed", 2),
                        "last": ("--pooling", "last")}.items():  # fmt: skip
        done = call_script(TRAIN, *SHORT, *flags, "--out", name)
        assert done.returncode == 0, done.stderr
    return tmp_path


def test_predictions_are_kept_and_runs_compared(runs, call_script):
    table = pl.read_parquet(runs / "a-1/predictions.parquet")
    assert table["row"].to_list() == list(range(30))
    results = json.loads((runs / "a-1/results.json").read_text())
    kept = read_predictions(runs / "a-1")
    assert list(kept.log_probabilities) == ["majority", "baseline", "before", "after", "together"]
    for name in kept.log_probabilities:
        accuracy = results[name]["test"]["accuracy"]
        assert kept.right(name).mean() == pytest.approx(accuracy)
        np.testing.assert_allclose(np.exp(kept.log_probabilities[name]).sum(axis=1), 1, atol=1e-5)
    assert len(read_predictions(runs / "a-1", "validation").texts) == results["data"]["validation"]
    settings = json.loads((runs / "a-1/best/config.json").read_text())["settings"]
    assert settings["temperature"] == results["calibration"]["temperature"] != 1

    done = call_script("classification/predict.py", "a-1", "a fine film", "--json")
    calibrated = json.loads(done.stdout)["probabilities"]
    raw = json.loads(
        call_script("classification/predict.py", "a-1", "a fine film", "--json", "--raw").stdout
    )["probabilities"]
    odds, raw_odds = (math.log(p["positive"] / p["negative"]) for p in (calibrated, raw))
    assert odds == pytest.approx(raw_odds / settings["temperature"], rel=1e-3)

    done = call_script("baselines/compare.py", "a-1", "a-2", "last", "a-1:baseline")
    assert done.returncode == 0, done.stderr
    assert "a-1 and 1 more" in done.stdout and max(map(len, done.stdout.splitlines())) <= 110
    for line, name in (("mean/seed-1", "a-1"), ("mean/seed-2", "a-2"), ("last/seed-1", "last")):
        shutil.copytree(runs / name, runs / "lines" / line)  # as a sweep leaves them
    folders = sorted(str(run) for run in (runs / "lines").glob("*/*"))
    lines = call_script("baselines/compare.py", *folders, "--out", "lines/compare").stdout
    assert "\n| mean " in lines and "| mean - last" in lines, lines
    compared = json.loads((runs / "runs/compare/compare.json").read_text())
    assert [len(group["values"]) for group in compared["groups"]] == [2, 1, 1]
    single = next(d for d in compared["differences"] if (d["first"], d["second"]) ==
                  ("last", "a-1:baseline"))  # fmt: skip
    last, bag = (read_predictions(runs / "last").right("after"), kept.right("baseline"))
    assert single["only_first"] == (last & ~bag).sum()
    assert single["difference"] == pytest.approx(bag.mean() - last.mean())
    assert "Right only in" in (runs / "runs/compare/compare.md").read_text()

    (runs / "other").mkdir()
    (runs / "damaged").mkdir()
    for name in ("results.json", "config.json"):
        (runs / "damaged" / name).write_bytes((runs / "last" / name).read_bytes())
    (runs / "damaged/predictions.parquet").write_bytes(b"PAR1")
    call_script(TRAIN, *SHORT, "--max-test", 20, "--out", "fewer")
    for arguments, parts in (
        (["a-1"], ["two runs"]),
        (["a-1", "a-1"], ["named twice"]),
        (["a-1", "nothing"], ["nothing", "no such run"]),
        (["a-1", "other"], ["other", "not a finished run"]),
        (["a-1", "damaged"], ["predictions.parquet", "not a run's"]),
        (["a-1", "last:teacher"], ["no 'teacher'", "baseline"]),
        (["a-1", "fewer"], ["fewer", "20 rows, not 30"]),
        (["a-1", "last", "--out", "a-2"], ["--out a-2", "is a run"]),
    ):
        refused(call_script("baselines/compare.py", *arguments), *parts)
