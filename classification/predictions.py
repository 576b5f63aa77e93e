"""Chapter 5, every prediction kept: predictions.parquet has a row for each row of the test split.

    row           its number in the split, from 0
    text, label   as they were read by the models; the label by its name
    majority, baseline, zero_shot, before, after, together
                  the probability of each class by each contender: a struct with one field a class

Comparisons, the report's mistakes and anybody's own analysis start from here:

    pl.read_parquet("runs/x/predictions.parquet").select("label", pl.col("after").struct.unnest())
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from classification.data import Splits
from classification.evaluation import classification_metrics, majority_log_probabilities
from gpt2.support.errors import UserError

# Comparisons on validation make choices without looking at the test split.
FILES = {"test": "predictions.parquet", "validation": "validation_predictions.parquet"}


@dataclass
class Predictions:
    """What contenders say of the same rows.

    targets            (rows,) int64, indices into `labels`
    log_probabilities  of each contender, by name: (rows, num_classes) float32
    """

    texts: list[str]
    labels: list[str]
    targets: np.ndarray
    log_probabilities: dict[str, np.ndarray]

    def right(self, contender: str) -> np.ndarray:
        """(rows,) bool: which rows the contender labels rightly."""
        return self.log_probabilities[contender].argmax(axis=1) == self.targets


def gather_predictions(
    splits: Splits,
    reported: str,
    bag: dict[str, np.ndarray],
    before: dict[str, Any],
    after: dict[str, np.ndarray],
) -> tuple[dict[str, Predictions], float]:
    """What all contenders say of the validation split and of the `reported` one, and the weight of
    GPT-2 in `together`, which is chosen on validation. `bag` and `after` hold log-probabilities on
    these; `before` is what before.json holds, of the reported split alone."""
    targets = {split: frame["label"].to_numpy() for split, frame in splits.items()}
    weight = best_weight(bag["validation"], after["validation"], targets["validation"])
    gathered = {}
    for split, frame in splits.only("validation", reported):
        found = {
            "majority": majority_log_probabilities(targets["train"], len(frame)),
            "baseline": bag[split],
        }
        if split == reported and "zero_shot" in before:
            found["zero_shot"] = np.array(before["zero_shot"])
        if split == reported and "log_probabilities" in before:  # older runs kept none
            found["before"] = np.array(before["log_probabilities"])
        found["after"] = after[split]
        found["together"] = mix(bag[split], after[split], weight)
        texts = frame["text"].to_list()
        gathered[split] = Predictions(texts, splits.labels, targets[split], found)
    return gathered, weight


def measure_contenders(
    predictions: dict[str, Predictions], reported: str
) -> dict[str, dict[str, Any]]:
    """For results.json: {contender: {split: metrics}}, of `after` on validation too."""
    measured: dict[str, dict[str, Any]] = {}
    for split, kept in predictions.items():
        for contender, found in kept.log_probabilities.items():
            if split == reported or contender == "after":
                metrics = classification_metrics(found, kept.targets)
                measured.setdefault(contender, {})[split] = metrics
    return measured


def write_predictions(folder: Path, predictions: Predictions, split: str) -> None:
    """Write the file of `split`, "test" or "validation", into a run folder."""
    labels = predictions.labels
    columns = {
        "row": pl.Series(range(len(predictions.texts)), dtype=pl.Int64),
        "text": pl.Series(predictions.texts, dtype=pl.String),
        "label": pl.Series([labels[target] for target in predictions.targets], dtype=pl.String),
    }
    for contender, log_probabilities in predictions.log_probabilities.items():
        of_class = dict(zip(labels, np.exp(log_probabilities).astype(np.float32).T, strict=True))
        columns[contender] = pl.DataFrame(of_class).to_struct(contender)
    pl.DataFrame(columns).write_parquet(folder / FILES[split])


def read_predictions(folder: Path, split: str = "test") -> Predictions:
    """The predictions of the finished run in `folder`. Raises UserError if it has none."""
    file = folder / FILES[split]
    if not file.is_file():
        raise UserError(
            f"{folder}: has no {file.name}, which a run by older code, or with --report-on "
            "validation, does not write"
        )
    try:
        table = pl.read_parquet(file)
        contenders = [name for name, dtype in table.schema.items() if dtype == pl.Struct]
        labels = [field.name for field in table.schema[contenders[0]].fields]
        numbers = {label: number for number, label in enumerate(labels)}
        return Predictions(
            table["text"].to_list(),
            labels,
            np.array([numbers[label] for label in table["label"]], dtype=np.int64),
            {name: _log(table[name].struct.unnest().to_numpy()) for name in contenders},
        )
    # polars raises its own types, OSError and, on damage that it does not expect, Rust panics
    except (Exception, pl.exceptions.PanicException) as error:
        raise UserError(f"{file}: is not a run's ({type(error).__name__})") from None


def _log(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms that stay finite where a probability was too small for float32."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def mix(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """Log-probabilities of two models together: the weighted mean of both, which for two classes is
    the mean of log-odds; `weight` is that of `second`, 0 to 1."""
    mixed = (1 - weight) * first + weight * second
    return mixed - _log_sum(mixed)


def _log_sum(values: np.ndarray) -> np.ndarray:
    largest = values.max(axis=1, keepdims=True)
    return largest + np.log(np.exp(values - largest).sum(axis=1, keepdims=True))


def best_weight(first: np.ndarray, second: np.ndarray, targets: np.ndarray) -> float:
    """The weight of `second` in `mix`, of 0, 0.05 ... 1, with the lowest loss on these rows."""
    weights = np.linspace(0, 1, 21)
    rows = np.arange(len(targets))
    losses = [-mix(first, second, weight)[rows, targets].mean() for weight in weights]
    return float(weights[int(np.argmin(losses))])


def describe_together(predictions: Predictions, weight: float) -> dict[str, float]:
    """The part of results.json on GPT-2 and the bag of words together: the `weight` of GPT-2 in it,
    and how often the two agree. They make different mistakes (Mesnil et al. 2014, "Ensemble of
    Generative and Discriminative Techniques for Sentiment Analysis of Movie Reviews")."""
    both = [predictions.log_probabilities[name].argmax(axis=1) for name in ("baseline", "after")]
    return {"weight": weight, "agreement": float((both[0] == both[1]).mean())}
