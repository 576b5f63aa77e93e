"""Metrics by hand, and the same at every batch size."""

import math

import numpy as np
import pytest
import torch

from classification.data import IMDbDataset
from classification.evaluation import (
    classification_metrics,
    confident_mistakes,
    confusion,
    majority_log_probabilities,
    per_class_metrics,
    predict_log_probabilities,
)
from gpt2.heads import ClassificationHead
from gpt2.model import GPT2, GPT2Config
from gpt2.support.tables import format_table
from gpt2.tokenizer import get_encoding


def logs(*rows):
    return np.log(np.array(rows, dtype=np.float64))


def test_binary_metrics_by_hand():
    """Predicted 1, 1, 0, 1; true 1, 0, 1, 1: two of three found, two of three right."""
    log_probabilities = logs([0.1, 0.9], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6])
    metrics = classification_metrics(log_probabilities, np.array([1, 0, 1, 1]))
    assert metrics["accuracy"] == 0.5
    assert metrics["precision"] == metrics["recall"] == metrics["f1"] == pytest.approx(2 / 3)
    expected = -(math.log(0.9) + math.log(0.2) + math.log(0.4) + math.log(0.6)) / 4
    assert metrics["loss"] == pytest.approx(expected)


def test_three_classes_are_averaged_and_listed():
    log_probabilities = logs([0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8])
    targets = np.array([0, 1, 2])
    metrics = classification_metrics(log_probabilities, targets)
    assert metrics["recall"] == pytest.approx(2 / 3)
    assert metrics["precision"] == pytest.approx((0.5 + 0 + 1) / 3)
    each = per_class_metrics(log_probabilities, targets, ["a", "b", "c"])
    assert each["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "rows": 1}
    assert confusion(log_probabilities, targets) == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_the_majority_class():
    metrics = classification_metrics(
        majority_log_probabilities(np.array([0, 0, 0, 1]), 4), np.array([0, 1, 1, 0])
    )
    assert metrics["accuracy"] == 0.5 and metrics["f1"] == 0
    assert metrics["loss"] == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_mistakes_come_most_confident_first():
    log_probabilities = logs([0.1, 0.9], [0.01, 0.99], [0.3, 0.7])
    mistakes = confident_mistakes(
        log_probabilities, np.array([0, 0, 1]), ["x", "y", "z"], ["bad", "good"]
    )
    assert [m["text"] for m in mistakes] == ["y", "x"]
    assert mistakes[0]["label"] == "bad" and mistakes[0]["predicted"] == "good"
    assert mistakes[0]["probability"] == pytest.approx(0.99)


def test_whole_split_and_the_same_at_batch_size_1_7_and_32():
    torch.manual_seed(0)
    config = GPT2Config(2, 2, 16, 64, 8192)
    model = GPT2(config, ClassificationHead(config, 3, "mean")).eval()
    texts = [f"row {i} " + "word " * (i % 11) for i in range(40)]
    dataset = IMDbDataset(texts, [i % 3 for i in range(40)], get_encoding("mini"), 64)
    results = [predict_log_probabilities(model, dataset, size, "float32") for size in (1, 7, 32)]
    for result in results:
        assert result.shape == (40, 3)
        np.testing.assert_allclose(result, results[0], atol=1e-5)
    metrics = [classification_metrics(result, dataset.labels.numpy()) for result in results]
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"] == metrics[2]["accuracy"]
    with torch.no_grad():  # in the order of the rows
        tokens, _ = dataset[17]
        alone = model(tokens[None], torch.tensor([len(tokens)])).log_softmax(1)[0]
    np.testing.assert_allclose(results[2][17], alone.numpy(), atol=1e-5)


def test_tables_are_aligned():
    table = format_table(["a", "b"], [["long name", 1.5], ["x", None]])
    assert len({len(line) for line in table.splitlines()}) == 1


def test_bfloat16_tells_rows_apart_that_differ_little():
    """One bfloat16 logit of 1.0 stands for everything from 0.998 to 1.004."""
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=4, vocab_size=11)
    head = ClassificationHead(config, num_classes=2, pooling="mean")
    head.score.weight.data.copy_(torch.eye(2, 8))
    hidden = torch.ones(3, 1, 8)
    hidden[1, 0, 0], hidden[2, 0, 0] = 1.001, 1.002
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(hidden, torch.ones(3, dtype=torch.int64))
    assert logits.dtype == torch.float32
    assert logits[:, 0].tolist() == pytest.approx([1, 1.001, 1.002], abs=1e-6)
