"""Fine-tune GPT-2 to classify texts, and compare it with what came before.

The whole path in six chapters, top to bottom: data, model, tokens, fine-tuning, evaluation,
comparison. Without any flag it runs on the 720 built-in film reviews, offline, in about a minute.

    python classification/train_gpt.py
    python classification/train_gpt.py --data imdb --epochs 3
    python classification/train_gpt.py --data mine.csv --text-column body --label-column topic
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baselines.finished_runs import read_beside
from baselines.train_logreg import FEATURES, measure_baseline
from classification.calibration import calibrate, calibrated_loss, check_threshold
from classification.data import (
    TRUNCATIONS,
    IMDbDataset,
    Splits,
    describe_splits,
    load_splits,
    print_summary,
)
from classification.evaluation import (
    classification_loss,
    classification_metrics,
    parse_class_weights,
    predict_log_probabilities,
)
from classification.evidence import weigh_evidence
from classification.explain import classifier, write_mistakes
from classification.predictions import (
    describe_together,
    gather_predictions,
    measure_contenders,
    write_predictions,
)
from classification.report import comparison_table, write_report
from classification.sources import BUILT_IN, DataSettings
from classification.zero_shot import check_zero_shot, zero_shot_log_probabilities
from gpt2.batching import Batch, check_batch_size
from gpt2.checkpoint import Recipe, change_settings, load_weights
from gpt2.heads import POOLINGS, ClassificationHead, Head
from gpt2.model import GPT2Config
from gpt2.one_run import OneRun, begin, explaining_not_finite
from gpt2.optimization import TrainingConfig
from gpt2.support.distributed import on_rank_0, rank
from gpt2.support.flags import flag, parse_flags
from gpt2.support.run_folder import RunSettings
from gpt2.support.script import beside, run_script
from gpt2.support.splits import data_name, short_text
from gpt2.support.tables import describe_training
from gpt2.training import train
from gpt2.weights.building import ModelSettings, check_max_length, choose_pooling
from gpt2.weights.licences import licences


@dataclass
class HeadSettings:
    """Head"""

    pooling: str = flag(
        "", "how the tokens of a text become one vector: the mean; the last token, as --export "
        "needs it; attention, a mean with learned weights; the first token, for comparison only. "
        "Left out, mean, or what the run has that --model names", choices=tuple(POOLINGS),
    )  # fmt: skip
    zero_shot: str = flag(
        "", "a row for what the language model knows without fine-tuning: a text around {text}, "
        'after which the likelier of --label-words is its answer: "{text} In short, it was"',
    )  # fmt: skip
    label_words: tuple[str, ...] = flag(
        (), "for --zero-shot a word or two for each class, in the order of the labels: bad good"
    )


@dataclass
class ClassificationSettings:
    """Classification"""

    max_length: int = flag(
        512, "tokens kept of each text; longer rows cost time and memory", at_least=1
    )
    truncation: str = flag(
        "head", "which tokens of a longer text are kept: the first, the last, or a quarter from "
        "its beginning and the rest from its end", choices=TRUNCATIONS,
    )  # fmt: skip
    features: str = flag(
        "count", "what the bag of words counts: count, words; tfidf, weighted words and pairs; nb, "
        "up to triples, the strongest on IMDb", choices=FEATURES,
    )  # fmt: skip
    class_weights: str = flag(
        "none", "how much the loss of a row counts: none, all the same; balanced, rare classes as "
        "much as common ones; or NAME=WEIGHT,NAME=WEIGHT; the bag of words gets the same",
    )  # fmt: skip
    label_smoothing: float = flag(
        0.0, "share of each label's probability spread over all classes; 0.1 makes a model less "
        "sure of itself", at_least=0, at_most=0.9,
    )  # fmt: skip
    best_by: str = flag(
        "loss", "keep the weights with the lowest validation loss as it is, or after temperature "
        "scaling, so that it does not rise for being too sure alone: better with few labels",
        choices=("loss", "calibrated_loss"),
    )  # fmt: skip
    report_on: str = flag(
        "test", "split that the table, the report and predictions are about; validation leaves the "
        "test split unread, for a choice among settings", choices=("test", "validation"),
    )  # fmt: skip
    threshold: str = flag(
        "", "with two classes: predict the second one from this probability on, as 0.3, or f1 for "
        "the one with the best F1 on validation; left out, the likelier class",
    )  # fmt: skip
    beside: tuple[str, ...] = flag(
        (), "finished runs on the same rows, RUN or RUN:baseline, that stand in the table too, "
        "each with the difference from this one", names=(), may_change=True,
    )  # fmt: skip


# The script's flags; a sweep checks its own with them.
SETTINGS = [
    DataSettings, ModelSettings, HeadSettings, ClassificationSettings, TrainingConfig, RunSettings,
]  # fmt: skip


def main() -> None:
    data, model_settings, head, task, config, run_settings = parse_flags(
        SETTINGS,
        "Fine-tune GPT-2 to classify texts, and compare it with a bag of words.",
    )
    name = f"classification-{data_name(data.data, BUILT_IN)}"
    run = begin(name, model_settings, config, run_settings)
    check_max_length(task.max_length, run.config)
    head.pooling = choose_pooling(run.start, head.pooling)

    # ---- chapter 1: data
    splits = load_splits(data, data.split_seed)
    data.revision = splits.revision  # recorded, so that a resumed run reads the same rows
    check_batch_size(data.data, len(splits.train), config.batch_size)
    check_threshold(task.threshold, len(splits.labels))
    check_zero_shot(head.zero_shot, head.label_words, splits.labels)

    # ---- chapter 2: model
    def make_head(gpt2_config: GPT2Config) -> Head:
        return ClassificationHead(gpt2_config, len(splits.labels), head.pooling)  # or one of yours

    model, origin = run.build_model(make_head, splits.labels)

    def zero_shot(texts: Sequence[str]) -> np.ndarray:
        return zero_shot_log_probabilities(
            model, run.encoding, texts, head.zero_shot, head.label_words, config.rows_at_once,
            config.precision, f"{task.report_on} split, zero-shot",
        )  # fmt: skip

    # ---- chapters 3 to 6, which an encoder goes through as well
    settings = {"data": data, "model": model_settings, "head": head, "task": task,
                "training": config, "run": run_settings}  # fmt: skip
    trained_on = licences(run.start, [data.data], data.revision)
    fine_tune(
        run, splits, model, origin, settings, trained_on, zero_shot if head.zero_shot else None
    )


def fine_tune(
    run: OneRun,
    splits: Splits,
    model: nn.Module,
    origin: str,
    settings: dict[str, Any],
    trained_on: list[str],
    zero_shot: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> None:
    """Teach `model` the training split, test it, and compare it with what came before.

    model       on its device; GPT-2 or whatever keeps the contract of gpt2/encoder.py
    origin      where its weights come from, in words
    settings    all settings by name, for config.json
    trained_on  what it will have learnt from, with the licences
    zero_shot   texts -> (rows, num_classes) log-probabilities of the model before any training
    """
    data, task, config = settings["data"], settings["task"], run.training
    finished_runs = read_beside(task.beside, splits, task.report_on)

    # ---- chapter 3: tokens
    datasets = {
        split: IMDbDataset(
            frame["text"], frame["label"], run.encoding, task.max_length, task.truncation
        )
        for split, frame in splits.items()
    }
    print_summary(splits, datasets["train"])

    # The baseline of chapter 6 comes first: it takes seconds.
    counts = np.bincount(splits.train["label"].to_numpy(), minlength=len(splits.labels))
    weights = parse_class_weights(task.class_weights, splits.labels, counts)
    measured = splits.only("train", "validation", task.report_on)
    baseline, bag = on_rank_0(lambda: measure_baseline(measured, task.features, weights))
    run.start_writing(model, origin, settings)

    # ---- chapter 4: fine-tuning, between two looks at the split that the report is about
    targets = {split: frame["label"].to_numpy() for split, frame in splits.items()}

    def log_probabilities(split: str, desc: str = "") -> np.ndarray:
        return predict_log_probabilities(
            model, datasets[split], config.rows_at_once, config.precision, desc,
            config.micro_batch_tokens,
        )  # fmt: skip

    def look_before() -> dict[str, Any]:
        found = log_probabilities(task.report_on, f"{task.report_on} split, before")
        metrics = classification_metrics(found, targets[task.report_on])
        kept = {"origin": origin, task.report_on: metrics, "log_probabilities": found.tolist()}
        if zero_shot:
            kept["zero_shot"] = zero_shot(dict(splits.items())[task.report_on]["text"]).tolist()
        return kept

    def evaluate() -> dict[str, float]:
        found = log_probabilities("validation")
        metrics = classification_metrics(found, targets["validation"])
        if task.best_by == "calibrated_loss":
            metrics["calibrated_loss"] = calibrated_loss(found, targets["validation"])
        return metrics

    model.eval()
    before = run.measure_before(look_before, splits.items())
    recipe = make_recipe(run, splits.labels, task, data, trained_on)
    with explaining_not_finite(splits.train["text"]):
        result = train(
            model, datasets["train"], make_loss(task, weights, run.device), evaluate, config,
            run.settings.seed, run.folder, recipe, best_by=task.best_by,
        )  # fmt: skip

    # ---- chapter 5: evaluation of the weights that did best on validation
    best = run.folder.folder / "best"
    load_weights(best, model)
    model.eval()
    after = {
        split: log_probabilities(split, f"{split} split, after")
        for split in ("validation", task.report_on)
    }
    calibration = calibrate(after, targets, task.report_on, task.threshold)
    fitted = {name: calibration[name] for name in ("temperature", "threshold")}
    change_settings(best, fitted)
    recipe.settings |= fitted

    # ---- chapter 6: comparison
    if rank() > 0:
        return
    predictions, weight = gather_predictions(splits, task.report_on, bag, before, after)
    example = short_text(splits.validation["text"])
    results = {
        "task": "classification",
        "data": describe_splits(splits) | {"example": example, "reported": task.report_on},
        "model": run.describe_model(model, before["origin"])
        | {"max_length": task.max_length, "truncation": task.truncation},
        **measure_contenders(predictions, task.report_on),
        "calibration": calibration,
        "training": run.describe_training(result),
    }
    results["baseline"] |= baseline
    results["together"] |= describe_together(predictions[task.report_on], weight)
    results["beside"] = {
        name: {task.report_on: other.metrics, "seconds": other.seconds}
        for name, other in finished_runs.items()
    }
    others = {name: other.right for name, other in finished_runs.items()}
    results["evidence"] = weigh_evidence(predictions[task.report_on], others)
    for split, kept in predictions.items():
        write_predictions(run.folder.folder, kept, split)
    if not config.shard:  # the other processes would have to compute their parts of the model
        classify = classifier(model, recipe, config.rows_at_once, config.precision)
        write_mistakes(run.folder.folder, predictions[task.report_on], classify)
    write_report(run.folder, results, predictions[task.report_on])
    predict = f"python {beside(__file__, 'predict.py')} {shlex.quote(str(run.folder.folder))}"
    run.end(
        comparison_table(results),
        describe_training(results["training"]),
        f"ask the model yourself:\n  {predict} {shlex.quote(example)}",
    )


def make_loss(
    task: ClassificationSettings, weights: np.ndarray | None, device: torch.device
) -> Callable[[nn.Module, Batch], tuple[Tensor, int | Tensor]]:
    """The loss that the loop is given: cross-entropy, as --class-weights and --label-smoothing
    ask. One of your own takes (model, batch) and returns the sum over the rows, and how many."""
    class_weights = None if weights is None else torch.from_numpy(weights).to(device)
    return partial(
        classification_loss, class_weights=class_weights, label_smoothing=task.label_smoothing
    )


def make_recipe(
    run: OneRun,
    labels: list[str],
    task: ClassificationSettings,
    data: DataSettings,
    trained_on: list[str],
) -> Recipe:
    """What prediction needs beside the weights."""
    settings = {
        "labels": labels,
        "max_length": task.max_length,
        "truncation": task.truncation,
        "temperature": 1.0,  # fitted on validation after training
        "threshold": None,
        "text_column": data.text_column,
        "label_column": data.label_column,
        "trained_on": trained_on,
    }
    return Recipe("classification", run.encoding, settings)


if __name__ == "__main__":
    run_script(main)
