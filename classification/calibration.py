"""Chapter 5, honest probabilities: of the texts that a model calls positive with 80 %, are 80 %
positive? Fine-tuned models are too sure of themselves; one number mends most of it.

Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from classification.evaluation import label_metrics
from gpt2.support.errors import UserError
from gpt2.support.tables import save_picture

BINS = 15


def fit_temperature(log_probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature that gives the rows (rows, num_classes) the lowest loss, between 0.05 and 20:
    above 1 the model was too sure. Fit it on validation; labels do not change (section 4.2)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(log_probabilities, float(np.exp(log_temperature)))
        return -float(scaled[rows, targets].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(log_probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities (rows, num_classes) after dividing the logits by `temperature`."""
    scaled = log_probabilities.astype(np.float64) / temperature
    largest = scaled.max(axis=1, keepdims=True)
    return scaled - largest - np.log(np.exp(scaled - largest).sum(axis=1, keepdims=True))


def calibrated_loss(log_probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Loss (nats a row) at the temperature that fits these rows. With few labels a model is soon
    too sure of itself, and its loss rises though it still gets better at telling the classes apart
    (Guo et al. 2017, section 3): this one does not rise for that alone."""
    temperature = fit_temperature(log_probabilities, targets)
    calibrated = apply_temperature(log_probabilities, temperature)
    return -float(calibrated[np.arange(len(targets)), targets].mean())


def calibrate(
    log_probabilities: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
    reported: str,
    threshold: str = "",
) -> dict[str, Any]:
    """The part of results.json on honest probabilities: the `temperature` and, if asked for, the
    `threshold`, both from the validation split, and what they make of the `reported` split."""
    temperature = fit_temperature(log_probabilities["validation"], targets["validation"])
    calibrated = {
        s: apply_temperature(found, temperature) for s, found in log_probabilities.items()
    }
    found: dict[str, Any] = {
        "temperature": temperature,
        "threshold": choose_threshold(threshold, calibrated["validation"], targets["validation"]),
        "raw": describe_probabilities(log_probabilities[reported], targets[reported]),
        "calibrated": describe_probabilities(calibrated[reported], targets[reported]),
    }
    if found["threshold"] is not None:
        at = above_threshold(calibrated[reported], found["threshold"])
        found["at_threshold"] = label_metrics(at, targets[reported], num_classes=2)
    return found


def describe_probabilities(log_probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Log loss (nats), expected calibration error and the bins of a reliability diagram."""
    rows = np.arange(len(targets))
    return {
        "loss": float(-log_probabilities[rows, targets].mean()),
        "calibration_error": expected_calibration_error(log_probabilities, targets),
        "reliability": reliability(log_probabilities, targets),
    }


def choose_threshold(
    threshold: str, log_probabilities: np.ndarray, targets: np.ndarray
) -> float | None:
    """What --threshold means on validation: "" none, a number itself, "f1" the best one."""
    if not threshold:
        return None
    if threshold == "f1":
        return best_threshold(np.exp(log_probabilities[:, 1]), targets == 1)
    return float(threshold)


def check_threshold(threshold: str, num_classes: int) -> None:
    """Raises UserError unless `threshold` is "", "f1" or a number between 0 and 1, or if it is for
    more than two classes."""
    if not threshold:
        return
    if num_classes != 2:
        raise UserError(f"--threshold {threshold}: is for two classes, and there are {num_classes}")
    try:
        fits = threshold == "f1" or 0 < float(threshold) < 1
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"--threshold {threshold}: must be f1, or a number between 0 and 1")


def above_threshold(log_probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """(rows,) int64: class 1 where its probability is at least `threshold`, else class 0."""
    return (np.exp(log_probabilities[:, 1]) >= threshold).astype(np.int64)


def reliability(log_probabilities: np.ndarray, targets: np.ndarray) -> list[dict[str, float]]:
    """For each of 15 equally wide bins of the predicted class's probability that has rows: `rows`,
    mean `confidence`, and `accuracy`."""
    confidence = np.exp(log_probabilities.max(axis=1))
    right = log_probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "rows": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(right[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def expected_calibration_error(log_probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The mean distance of confidence from accuracy over the bins, weighted by their rows; 0 is
    perfect (section 2)."""
    bins = reliability(log_probabilities, targets)
    distances = [each["rows"] * abs(each["confidence"] - each["accuracy"]) for each in bins]
    return sum(distances) / len(targets)


def best_threshold(probability: np.ndarray, is_positive: np.ndarray) -> float:
    """The threshold on the probability (rows,) of the second class with the highest F1."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(is_positive, probability)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])


def plot_reliability(bins: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Draw confidence against accuracy, one line for each name in `bins` (of `reliability`)."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="grey", linestyle=":", label="honest")
        for name, found in bins.items():
            confidence, accuracy = (
                [each[key] for each in found] for key in ("confidence", "accuracy")
            )
            axis.plot(confidence, accuracy, marker="o", label=name)
        axis.set(xlabel="probability of the predicted class", ylabel="share that is right")
        axis.grid(alpha=0.3)
        axis.legend()

    save_picture(file, (4.4, 4), draw)
