"""Fine-tune GPT-2 to classify texts, and compare it with what came before.

The whole path in six chapters, top to bottom: data, model, tokens, fine-tuning, evaluation,
comparison. Without any flag it runs on the 720 built-in film reviews, offline, in about a minute.

    python classification/train_gpt.py
    python classification/train_gpt.py --data imdb --epochs 3
    python classification/train_gpt.py --data mine.csv --text-column body --label-column topic
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from baselines.train_logreg import FEATURES, fit_baseline
from classification.data import (
    TRUNCATIONS,
    IMDbDataset,
    describe_splits,
    load_splits,
    print_summary,
)
from classification.evaluation import (
    classification_loss,
    classification_metrics,
    majority_log_probabilities,
    predict_log_probabilities,
)
from classification.report import comparison_table, write_report
from classification.sources import DataSettings, source_name
from gpt2.batching import check_batch_size
from gpt2.building import (
    ModelSettings,
    build_model,
    check_max_length,
    check_not_overwritten,
    choose_config,
    choose_pooling,
    count_parameters,
    describe_parameters,
    initial_weights,
    model_name,
    starting_point,
)
from gpt2.checkpoint import Checkpoint, load_weights
from gpt2.command_line import flag, parse_flags, run_script
from gpt2.device import arithmetic, choose_device
from gpt2.distributed import init_processes, on_rank_0, rank, to_device
from gpt2.export import check_export, export
from gpt2.heads import POOLINGS, ClassificationHead
from gpt2.optimization import TrainingConfig
from gpt2.reporting import describe_training, explain_not_finite
from gpt2.run_folder import RunFolder, RunSettings
from gpt2.training import NotFinite, train


@dataclass
class ClassificationSettings:
    """Classification"""

    pooling: str = flag(
        "", "how the tokens of a text become one vector: the mean; the last token, as --export "
        "needs it; attention, a mean with learned weights; the first token, for comparison only. "
        "Left out, mean, or what the run has that --model names", choices=tuple(POOLINGS),
    )  # fmt: skip
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


def main() -> None:
    data, model_settings, head, config, run_settings = parse_flags(
        [DataSettings, ModelSettings, ClassificationSettings, TrainingConfig, RunSettings],
        "Fine-tune GPT-2 to classify texts, and compare it with a bag of words.",
    )
    device = init_processes(choose_device(run_settings.device))
    seed = run_settings.seed
    run = RunFolder.choose(
        run_settings, f"classification-{source_name(data.data)}-{model_name(model_settings)}"
    )

    # ---- before any work: can what the flags ask for be done?
    check_not_overwritten(model_settings, run.folder)
    start = starting_point(model_settings, run)
    gpt2_config, encoding = choose_config(start)
    check_max_length(head.max_length, gpt2_config)
    head.pooling = choose_pooling(start, head.pooling)
    if run_settings.export:
        check_export(Path(run_settings.export), head.pooling)

    # ---- chapter 1: data
    splits = load_splits(data, data.split_seed)
    check_batch_size(data.data, len(splits.train), config.batch_size)

    # ---- chapter 2: model
    model, origin = build_model(
        start,
        gpt2_config,
        lambda c: ClassificationHead(c, len(splits.labels), head.pooling),
        config.train,
        seed,
        splits.labels,
    )
    to_device(model, device, config.shard)

    # ---- chapter 3: tokens
    datasets = {
        split: IMDbDataset(
            frame["text"], frame["label"], encoding, head.max_length, head.truncation
        )
        for split, frame in splits.items()
    }
    print_summary(splits, datasets["train"])

    # The baseline of chapter 6 comes first: it takes seconds, and data that it cannot read is a
    # mistake.
    baseline, baseline_seconds = on_rank_0(lambda: fit_baseline(splits, head.features)[1:])
    parameters, trainable = count_parameters(model)
    print(
        f"model: {model_name(model_settings)}, {origin}, "
        f"{describe_parameters(model, config.weight_decay)}; pooling {head.pooling}; "
        f"{arithmetic(device, config.precision)} on {device}"
    )
    run.start(
        {"data": data, "model": model_settings, "head": head, "training": config,
         "run": run_settings},
        str(device),
    )  # fmt: skip
    print(f"run folder: {run.folder}\n")

    # ---- chapter 4: fine-tuning, between two looks at the test split
    targets = {split: frame["label"].to_numpy() for split, frame in splits.items()}

    def log_probabilities(split: str, progress: str = "") -> np.ndarray:
        return predict_log_probabilities(
            model,
            datasets[split],
            config.rows_at_once,
            config.precision,
            progress,
            config.micro_batch_tokens,
        )

    def metrics(split: str, progress: str = "") -> dict[str, float]:
        return classification_metrics(log_probabilities(split, progress), targets[split])

    model.eval()
    before = run.once(
        "before.json", lambda: {"origin": origin, "test": metrics("test", "test split, before")}
    )
    checkpoint = Checkpoint(
        "classification",
        encoding,
        {
            "labels": splits.labels,
            "max_length": head.max_length,
            "truncation": head.truncation,
            "data": splits.name,
        },
    )
    try:
        result = train(
            model,
            datasets["train"],
            classification_loss,
            lambda: metrics("validation"),
            config,
            seed,
            run,
            checkpoint,
        )
    except NotFinite as error:
        raise explain_not_finite(error, splits.train["text"]) from None

    # ---- chapter 5: evaluation of the weights that did best on validation
    load_weights(run.folder / "best", model)
    model.eval()
    test_log_probabilities = log_probabilities("test", "test split, after")
    after = {
        "validation": metrics("validation"),
        "test": classification_metrics(test_log_probabilities, targets["test"]),
    }

    # ---- chapter 6: comparison
    if rank() > 0:
        return
    results = {
        "task": "classification",
        "data": describe_splits(splits),
        "model": {
            "name": model_name(model_settings),
            "init": initial_weights(model_settings),
            "origin": before["origin"],
            "pooling": head.pooling,
            "max_length": head.max_length,
            "truncation": head.truncation,
            "parameters": parameters,
            "trainable": trainable,
        },
        "majority": {
            "test": classification_metrics(
                majority_log_probabilities(targets["train"], len(splits.test)),
                targets["test"],
            )
        },
        "baseline": {
            "name": "logistic regression",
            "features": head.features,
            "seconds": baseline_seconds,
        }
        | baseline,
        "before": {"test": before["test"]},
        "after": after,
        "training": dataclasses.asdict(result)
        | {"tokens_per_second": result.tokens / result.seconds, "seed": seed},
    }
    write_report(run, results, splits, test_log_probabilities)
    print(f"\n{comparison_table(results)}\n")
    print(describe_training(results["training"]))
    print(f"everything of this run: {run.folder / 'report.md'}")
    if run_settings.export:
        export(run.folder, Path(run_settings.export))
    predict = f"python {_beside('predict.py')} {shlex.quote(str(run.folder))}"
    print(f'\nnext, ask the model yourself:\n  {predict} "A dull start, but what an ending!"')


def _beside(script: str) -> str:
    """How to call another script of this folder from where the user stands."""
    return os.path.relpath(os.path.join(os.path.dirname(__file__), script))


if __name__ == "__main__":
    run_script(main)
