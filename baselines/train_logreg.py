"""What a bag of words achieves on the same splits: logistic regression by scikit-learn.

A neural model is worth what it adds to this. Three kinds of features:

    count   how often each word occurs
    tfidf   words and word pairs, rare ones weigh more
    nb      words, pairs and triples that occur, scaled by how much naive Bayes trusts them
            (Wang and Manning 2012, "Baselines and Bigrams")

Where the texts have no words to count, as Chinese and Japanese without spaces between them, or
emoji, it counts sequences of one to three characters instead, and its name says so.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from classification.data import describe_splits, load_splits, print_splits
from classification.evaluation import classification_metrics
from classification.predictions import Predictions, write_predictions
from classification.sources import DataSettings
from gpt2.support.files import UNSPACED
from gpt2.support.flags import flag, parse_flags
from gpt2.support.run_folder import RunFolder, RunSettings
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, percent

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

FEATURES = ("count", "tfidf", "nb")

# Inverse strength of the L2 penalty, and what counts as a word: chosen on IMDb's validation split.
_INVERSE_PENALTY = {"count": 0.1, "tfidf": 100.0, "nb": 1.0}
_WORD_OR_SIGN = r"\w+|[^\w\s]"  # "i", "!" and the "10" of "10 / 10" count as well

_WORD = re.compile(r"\w\w+")  # what CountVectorizer takes for one


def has_words(texts: Sequence[str]) -> bool:
    """Whether a bag of words can work on `texts`: at least half of them have a word, and at least
    half of their characters are of no script without spaces between words.

    >>> has_words(["A fine film", "Dull"]), has_words(["很好看的电影"]), has_words(["😀😀", "😡"])
    (True, False, False)
    """
    with_word = sum(bool(_WORD.search(text)) for text in texts)
    unspaced = sum(len(UNSPACED.findall(text)) for text in texts if not text.isascii())
    return 2 * with_word >= len(texts) and 2 * unspaced <= sum(map(len, texts))


class BagOfWords:
    """Logistic regression on one kind of features; of words or, if the texts that it is fitted to
    have none, of characters. `name` says which."""

    def __init__(self, features: str) -> None:
        if features not in FEATURES:
            raise ValueError(f"features '{features}' is not one of {', '.join(FEATURES)}")
        self.features = features

    def _make_vectorizer(self, words: bool) -> CountVectorizer:
        # here, because it takes a second that predict.py need not wait for
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

        if not words:
            how: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)}
        elif self.features == "count":
            how = {}
        else:
            longest = 2 if self.features == "tfidf" else 3
            how = {"token_pattern": _WORD_OR_SIGN, "ngram_range": (1, longest)}
        if self.features == "tfidf":
            return TfidfVectorizer(sublinear_tf=True, **how)
        if self.features == "nb":
            return CountVectorizer(binary=True, dtype=np.float32, **how)
        return CountVectorizer(**how)

    def fit(
        self,
        texts: Sequence[str],
        targets: np.ndarray,
        num_classes: int,
        class_weights: np.ndarray | None = None,
    ) -> BagOfWords:
        """Learn from `texts` and their class ids `targets` (rows,); every class must occur. With
        `class_weights` (num_classes,) a row counts as much as its class says."""
        from sklearn.linear_model import LogisticRegression

        row_weights = None if class_weights is None else class_weights[targets]
        words = has_words(texts)
        self.name = "logistic regression" if words else "logistic regression on characters"
        self.vectorizer = self._make_vectorizer(words)
        X = self.vectorizer.fit_transform(texts)  # (rows, words)
        # Two classes need one regression, more need one for each class against the rest.
        self.num_classes = num_classes
        positives = [1] if num_classes == 2 else range(num_classes)
        self.scales, self.regressions = [], []
        for positive in positives:
            is_positive = targets == positive
            scale = _naive_bayes_ratio(X, is_positive) if self.features == "nb" else None
            regression = LogisticRegression(C=_INVERSE_PENALTY[self.features], max_iter=2000)
            scaled = X if scale is None else X.multiply(scale).tocsr()
            regression.fit(scaled, is_positive, row_weights)
            self.scales.append(scale)
            self.regressions.append(regression)
        return self

    def predict_log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(rows, num_classes): the log-probability of each class."""
        X = self.vectorizer.transform(texts)
        columns = [
            regression.predict_proba(X if scale is None else X.multiply(scale).tocsr())[:, 1]
            for scale, regression in zip(self.scales, self.regressions, strict=True)
        ]
        if self.num_classes == 2:
            columns = [1 - columns[0], columns[0]]
        probabilities = np.stack(columns, axis=1).clip(1e-12)
        return np.log(probabilities / probabilities.sum(axis=1, keepdims=True))

    def telling_words(self, text: str, label: int, count: int = 8) -> list[tuple[str, float]]:
        """The words of `text` that move the log-odds of the class `label` most, and by how much:
        above 0 they speak for it."""
        row = self.vectorizer.transform([text])  # (1, words), sparse
        words = self.vectorizer.get_feature_names_out()[row.indices]
        moved = row.data * self._weights()[label][row.indices]
        order = np.argsort(-np.abs(moved), kind="stable")[:count]
        return [(str(words[place]), float(moved[place])) for place in order]

    def heaviest_words(self, count: int = 10) -> list[list[str]]:
        """For each class the words that speak for it most, the heaviest first."""
        words = self.vectorizer.get_feature_names_out()
        return [
            words[np.argsort(-weight, kind="stable")[:count]].tolist() for weight in self._weights()
        ]

    def _weights(self) -> list[np.ndarray]:
        """For each class (words,): what a word adds to its log-odds."""
        weights = [
            regression.coef_[0] * (1 if scale is None else scale)
            for scale, regression in zip(self.scales, self.regressions, strict=True)
        ]
        return [-weights[0], weights[0]] if self.num_classes == 2 else weights


def _naive_bayes_ratio(X: csr_matrix, is_positive: np.ndarray) -> np.ndarray:
    """(words,): the log of how much more often a word stands in rows of the class than in others,
    with one added to every count."""
    inside = X[is_positive].sum(axis=0).A1 + 1
    outside = X[~is_positive].sum(axis=0).A1 + 1
    return np.log(inside / inside.sum()) - np.log(outside / outside.sum())


def measure_baseline(
    splits: list[tuple[str, pl.DataFrame]], features: str, class_weights: np.ndarray | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The part of results.json on a bag of words that has learnt from the first of the `splits`
    (name; features; seconds; metrics of the other splits; the words that speak for each class), and
    its log-probabilities on the others, (rows, num_classes) each."""
    (_, train), *others = splits
    targets = train["label"].to_numpy()
    started = time.perf_counter()
    model = BagOfWords(features).fit(train["text"], targets, targets.max() + 1, class_weights)
    found = {
        "name": model.name,
        "features": features,
        "seconds": time.perf_counter() - started,
        "heaviest_words": model.heaviest_words(),
    }
    log_probabilities = {}
    for split, frame in others:
        log_probabilities[split] = model.predict_log_probabilities(frame["text"])
        found[split] = classification_metrics(log_probabilities[split], frame["label"].to_numpy())
    return found, log_probabilities


@dataclass
class BaselineSettings:
    """Baseline"""

    features: str = flag(
        "count", "what a text is turned into: count, words; tfidf, weighted words and pairs; nb, "
        "up to triples, the strongest on IMDb", choices=FEATURES,
    )  # fmt: skip
    report_on: str = flag(
        "test",
        "split that is measured beside validation; validation leaves the test split unread",
        choices=("test", "validation"),
    )
    out: str = flag("", "run folder for config.json and results.json; left out, nothing is written")
    overwrite: bool = flag(False, "replace the run that lies in --out")


def main() -> None:
    data, settings = parse_flags([DataSettings, BaselineSettings], __doc__.splitlines()[0])
    run = None
    if settings.out:
        run = RunFolder.choose(
            RunSettings(out=settings.out, overwrite=settings.overwrite), "baseline"
        )
    splits = load_splits(data, data.split_seed)
    data.revision = splits.revision
    print_splits(splits)

    measured = splits.only("train", "validation", settings.report_on)
    baseline, found = measure_baseline(measured, settings.features)
    seconds = baseline["seconds"]
    print(f"\n{baseline['name']}, {settings.features} features, {seconds:.1f} s of training\n")
    rows = [
        [split, *(percent(baseline[split][k]) for k in ("accuracy", "precision", "recall", "f1")),
         f"{baseline[split]['loss']:.4f}"]
        for split in found
    ]  # fmt: skip
    print(format_table(["split", "accuracy", "precision", "recall", "F1", "loss"], rows))
    print()
    for label, words in zip(splits.labels, baseline["heaviest_words"], strict=True):
        print(f"speaks for '{label}': {', '.join(words)}")
    if run:
        run.start({"data": data, "baseline": settings}, device="cpu")
        for split, log_probabilities in found.items():
            frame = dict(splits.items())[split]
            texts, targets = frame["text"].to_list(), frame["label"].to_numpy()
            kept = Predictions(texts, splits.labels, targets, {"baseline": log_probabilities})
            write_predictions(run.folder, kept, split)
        run.write_json(
            "results.json",
            {"task": "classification", "data": describe_splits(splits), "baseline": baseline},
        )
        print(f"everything of this run: {run.folder}")


if __name__ == "__main__":
    run_script(main)
