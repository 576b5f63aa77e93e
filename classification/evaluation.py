"""Chapter 5, evaluation: how good are the predicted classes?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classification.data import IMDbDataset
from gpt2.batching import Batch, collate, map_batches, sorted_batches
from gpt2.support.device import autocast
from gpt2.support.errors import UserError


def classification_loss(
    model: nn.Module,
    batch: Batch,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, int | Tensor]:
    """Cross-entropy in nats, summed over the rows of `batch`, and the number of rows; with
    `class_weights` (num_classes,) the weighted sum, and the sum of the rows' weights."""
    logits = model(batch.tokens, batch.lengths)  # (B, num_classes)
    # a head of your own may give bfloat16, which is too coarse for a loss
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(
        logits, batch.targets, class_weights, reduction="sum", label_smoothing=label_smoothing
    )
    if class_weights is None:
        return total, len(batch.targets)
    return total, class_weights[batch.targets].sum()


def parse_class_weights(text: str, labels: list[str], counts: np.ndarray) -> np.ndarray | None:
    """What --class-weights means: (num_classes,) float32, or None where all weigh the same.

    none        None
    balanced    as much weight for each class as if all had equally many of the `counts` rows
    NAME=WEIGHT,...  these, and 1 for the others

    Raises UserError for anything else.

    >>> parse_class_weights("balanced", ["ham", "spam"], np.array([90, 10])).tolist()
    [0.5555555820465088, 5.0]
    """
    if text == "none":
        return None
    if text == "balanced":
        return (counts.sum() / (len(counts) * counts)).astype(np.float32)
    weights, named = np.ones(len(labels), dtype=np.float32), set()
    for part in text.split(","):
        name, equals, value = part.strip().rpartition("=")
        if name in named:
            raise UserError(f"--class-weights {text}: names '{name}' twice")
        named.add(name)
        if not equals or name not in labels:
            raise UserError(
                f"--class-weights {text}: '{part}' must be none, balanced or NAME=WEIGHT with a "
                f"class of the data ({', '.join(labels[:8])})"
            )
        try:
            weights[labels.index(name)] = float(value)
        except ValueError:
            raise UserError(f"--class-weights {text}: '{value}' is no number") from None
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(f"--class-weights {text}: weights must be above 0")
    return weights


@torch.no_grad()
def predict_log_probabilities(
    model: nn.Module,
    dataset: IMDbDataset,
    batch_size: int,
    precision: str,
    desc: str = "",
    max_tokens: int = 0,
) -> np.ndarray:
    """(rows, num_classes) float32: the log-probability of each class, in the order of the rows.
    The model must be in evaluation mode. A batch has at most `batch_size` rows and, unless 0,
    `max_tokens` tokens. `desc` names the bar."""
    device = next(model.parameters()).device
    batches = sorted_batches(dataset.lengths, batch_size, max_tokens)

    def log_probabilities_of(rows: list[int]) -> Tensor:
        batch = collate([dataset[row] for row in rows]).to(device)
        with autocast(device, precision):
            logits = model(batch.tokens, batch.lengths)  # (B, num_classes)
        return logits.float().log_softmax(dim=1).cpu()

    found = torch.cat(map_batches(log_probabilities_of, batches, desc))
    log_probabilities = torch.empty_like(found)
    log_probabilities[[row for rows in batches for row in rows]] = (
        found  # back into the order of the rows
    )
    return log_probabilities.numpy()


def classification_metrics(log_probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Loss (nats a row), accuracy, precision, recall and F1 (shares) over all rows.

    With two classes the last three are those of the second one (`positive`, `spam`); with more,
    the unweighted mean over the classes. A class that is never predicted has precision 0.
    """
    loss = float(-log_probabilities[np.arange(len(targets)), targets].mean())
    num_classes = log_probabilities.shape[1]
    return {"loss": loss} | label_metrics(log_probabilities.argmax(axis=1), targets, num_classes)


def label_metrics(predicted: np.ndarray, targets: np.ndarray, num_classes: int) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of predicted class ids (rows,), as in
    `classification_metrics`."""
    # scikit-learn takes a second to import, which predict.py need not wait for
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        targets,
        predicted,
        labels=range(num_classes),
        average="binary" if num_classes == 2 else "macro",
        zero_division=0,
    )
    return {
        "accuracy": float((predicted == targets).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def lopsided_metrics(log_probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Figures that a large class cannot carry alone: balanced accuracy (the mean of the recalls),
    Matthews correlation (0 is guessing, 1 perfect) and ROC AUC (how likely a row of a class gets a
    higher probability of it than a row of another), the mean over classes where these are more
    than two. AUC is left out if a class has no row."""
    from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef, roc_auc_score

    predicted = log_probabilities.argmax(axis=1)
    found = {
        "balanced_accuracy": float(balanced_accuracy_score(targets, predicted)),
        "matthews": float(matthews_corrcoef(targets, predicted)),
    }
    num_classes = log_probabilities.shape[1]
    if len(np.unique(targets)) == num_classes:
        probabilities = np.exp(log_probabilities.astype(np.float64))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        scores = probabilities[:, 1] if num_classes == 2 else probabilities
        found["roc_auc"] = float(roc_auc_score(targets, scores, multi_class="ovr"))
    return found


def majority_log_probabilities(train_targets: np.ndarray, rows: int) -> np.ndarray:
    """What one can say without reading: the class shares of the training split, for every row."""
    counts = np.bincount(train_targets)
    return np.tile(np.log(counts / counts.sum()).astype(np.float32), (rows, 1))


def per_class_metrics(
    log_probabilities: np.ndarray, targets: np.ndarray, labels: list[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of rows of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        targets, log_probabilities.argmax(axis=1), labels=range(len(labels)), zero_division=0
    )
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for label, p, r, f, n in zip(labels, *columns, strict=True)
    }


def confusion(log_probabilities: np.ndarray, targets: np.ndarray) -> list[list[int]]:
    """Rows: the true class. Columns: the predicted one."""
    from sklearn.metrics import confusion_matrix

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
