"""Chapter 5, evaluation: how good are the predicted classes?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from classification.data import IMDbDataset
from gpt2.batching import Batch, collate, sorted_batches
from gpt2.device import autocast
from gpt2.distributed import gather, share
from gpt2.stopping import stop_if_asked


def classification_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross-entropy in nats, summed over the rows of `batch`, and the number of rows."""
    logits = model(batch.tokens, batch.lengths)  # (B, num_classes)
    # a head of your own may give bfloat16, which is too coarse for a loss
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, batch.targets, reduction="sum"), len(batch.targets)


@torch.no_grad()
def predict_log_probabilities(
    model: nn.Module,
    dataset: IMDbDataset,
    batch_size: int,
    precision: str,
    progress: str = "",
    most_tokens: int = 0,
) -> np.ndarray:
    """(rows, num_classes) float32: the log-probability of each class, in the order of the rows.
    The model must be in evaluation mode. With `progress`, a bar of that name is shown. A batch has
    at most `batch_size` rows and, unless 0, `most_tokens` tokens."""
    device = next(model.parameters()).device
    batches = sorted_batches(dataset.lengths, batch_size, most_tokens)
    numbers = share(range(len(batches)))
    if progress:
        numbers = tqdm(numbers, desc=progress, unit="batch", disable=None, leave=False)
    found: dict[int, Tensor] = {}  # of each batch
    for number in numbers:
        batch = collate([dataset[row] for row in batches[number]]).to(device)
        with autocast(device, precision):
            logits = model(batch.tokens, batch.lengths)
        found[number] = logits.float().log_softmax(dim=1).cpu()
        stop_if_asked()
    found = gather(found)
    results = torch.cat([found[number] for number in range(len(batches))])
    log_probabilities = torch.empty_like(results)
    log_probabilities[[row for rows in batches for row in rows]] = results
    return log_probabilities.numpy()


def classification_metrics(log_probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Loss (nats a row), accuracy, precision, recall and F1 (shares) over all rows.

    With two classes the last three are those of the second one (`positive`, `spam`); with more,
    the unweighted mean over the classes. A class that is never predicted has precision 0.
    """
    num_classes = log_probabilities.shape[1]
    predicted = log_probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        targets,
        predicted,
        labels=range(num_classes),
        average="binary" if num_classes == 2 else "macro",
        zero_division=0,
    )
    return {
        "loss": float(-log_probabilities[np.arange(len(targets)), targets].mean()),
        "accuracy": float((predicted == targets).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def majority_log_probabilities(train_targets: np.ndarray, rows: int) -> np.ndarray:
    """What one can say without reading: the class shares of the training split, for every row."""
    counts = np.bincount(train_targets)
    return np.tile(np.log(counts / counts.sum()).astype(np.float32), (rows, 1))


def per_class_metrics(
    log_probabilities: np.ndarray, targets: np.ndarray, labels: list[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of rows of each class."""
    columns = precision_recall_fscore_support(
        targets, log_probabilities.argmax(axis=1), labels=range(len(labels)), zero_division=0
    )
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for label, p, r, f, n in zip(labels, *columns, strict=True)
    }


def confusion(log_probabilities: np.ndarray, targets: np.ndarray) -> list[list[int]]:
    """Rows: the true class. Columns: the predicted one."""
    classes = range(log_probabilities.shape[1])
    return confusion_matrix(targets, log_probabilities.argmax(axis=1), labels=classes).tolist()


def confident_mistakes(
    log_probabilities: np.ndarray,
    targets: np.ndarray,
    texts: list[str],
    labels: list[str],
    count: int = 5,
) -> list[dict[str, Any]]:
    """The wrong predictions with the highest probability, the most confident first."""
    predicted = log_probabilities.argmax(axis=1)
    confidence = np.exp(log_probabilities.max(axis=1))
    wrong = np.flatnonzero(predicted != targets)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [
        {
            "text": texts[row],
            "label": labels[targets[row]],
            "predicted": labels[predicted[row]],
            "probability": float(confidence[row]),
        }
        for row in worst
    ]
