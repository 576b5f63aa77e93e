"""Chapter 6, the comparison: results.json, report.md and the curves of one run."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from classification.data import Splits
from classification.evaluation import confident_mistakes, confusion, per_class_metrics
from gpt2.support.run_folder import RunFolder
from gpt2.support.tables import format_table, percent, plot_curves


def comparison_table(results: dict[str, Any]) -> str:
    """Majority class, bag of words, GPT before and after fine-tuning, all on the test split."""
    name = results["model"]["name"]
    name = name if "gpt2" in name else f"GPT-2 {name}"
    baseline = results["baseline"]
    contenders = [
        ("majority class", results["majority"]["test"], None),
        (f"{baseline['name']} ({baseline['features']})", baseline["test"], baseline["seconds"]),
        (f"{name} before fine-tuning", results["before"]["test"], None),
        (f"{name} after fine-tuning", results["after"]["test"], results["training"]["seconds"]),
    ]
    labels = results["data"]["labels"]
    return metrics_table(f"{results['data']['test']:,} test rows", contenders, labels)


def metrics_table(
    title: str, contenders: list[tuple[str, dict[str, float], float | None]], labels: list[str]
) -> str:
    """A line on each contender: its name, its metrics and the seconds it trained, None if it did
    not or if that is not known."""
    rows = [
        [who, *(percent(metrics[key]) for key in ("accuracy", "precision", "recall", "f1")),
         f"{metrics['loss']:.4f}", None if seconds is None else f"{seconds:.1f}"]
        for who, metrics, seconds in contenders
    ]  # fmt: skip
    of = f"of '{labels[1]}'" if len(labels) == 2 else f"averaged over {len(labels)} classes"
    header = [title, "accuracy", "precision", "recall", "F1", "loss", "training s"]
    return f"{format_table(header, rows)}\n\n(precision, recall and F1 {of})"


def write_report(
    run: RunFolder, results: dict[str, Any], splits: Splits, log_probabilities: np.ndarray
) -> None:
    """Complete `results` with what `look_closer` finds on the test split, and write results.json,
    curves.png and report.md."""
    results |= look_closer(splits.test, splits.labels, log_probabilities)
    plot_curves(run.read_log(), ("loss", "accuracy"), run.folder / "curves.png")
    report = _report(results)  # a data set's name may be that of a file that is not UTF-8
    (run.folder / "report.md").write_text(report, encoding="utf-8", errors="backslashreplace")
    run.write_json("results.json", results)  # the last one: a run that has it is complete


def look_closer(
    rows: pl.DataFrame, labels: list[str], log_probabilities: np.ndarray
) -> dict[str, Any]:
    """The confusion matrix, the figures of each class and the most confident mistakes on `rows`
    (text, label as an index into `labels`)."""
    targets = rows["label"].to_numpy()
    return {
        "confusion": {"labels": labels, "matrix": confusion(log_probabilities, targets)},
        "mistakes": confident_mistakes(log_probabilities, targets, rows["text"].to_list(), labels),
        "per_class": per_class_metrics(log_probabilities, targets, labels),
    }


def _report(results: dict[str, Any]) -> str:
    data, model, training = results["data"], results["model"], results["training"]
    removed = ", ".join(f"{reason} {count:,}" for reason, count in data["removed"].items() if count)
    parts = [
        f"# {data['name']}: {model['name']} from {model['init']} weights",
        comparison_table(results),
        f"Data: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} "
        f"test rows; removed: {removed or 'none'}. Model: {model['parameters']:,} parameters, "
        f"{model['trainable']:,} trained, pooling {model['pooling']}, {model['max_length']} tokens "
        f"a text at most ({model['truncation']}). Training: {training['steps']} steps, "
        f"{training['epochs']:g} epochs, "
        f"{training['tokens_per_second']:,.0f} tokens a second, "
        f"{percent(training['useful_token_share'])} useful tokens, seed {training['seed']}. The "
        f"weights of step {training['best_step']}, the best on validation "
        f"({percent(results['after']['validation']['accuracy'])}), were tested.",
        "## Curves\n\n![loss and accuracy over the steps](curves.png)",
        *close_look(results, "test split"),
    ]
    return "\n\n".join(parts) + "\n"


def close_look(results: dict[str, Any], rows_name: str) -> list[str]:
    """The parts of a report that show what `look_closer` found."""
    labels = results["confusion"]["labels"]
    parts = [
        f"## Confusion matrix of the {rows_name}\n\nRows: the true class. Columns: the predicted "
        "one.\n\n" + format_table(
            ["", *labels],
            [[label, *(f"{count:,}" for count in row)]
             for label, row in zip(labels, results["confusion"]["matrix"], strict=True)],
        )
    ]  # fmt: skip
    if len(labels) > 2:
        rows = [
            [label, percent(m["precision"]), percent(m["recall"]), percent(m["f1"]), m["rows"]]
            for label, m in results["per_class"].items()
        ]
        header = ["class", "precision", "recall", "F1", "rows"]
        parts.append("## Each class\n\n" + format_table(header, rows))
    parts.append("## The most confident mistakes")
    parts += [
        f"Predicted **{mistake['predicted']}** with {percent(mistake['probability'])}, is "
        f"**{mistake['label']}**:\n\n> {_shorten(mistake['text'])}"
        for mistake in results["mistakes"]
    ] or ["None: every row is right."]
    return parts


def _shorten(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."
