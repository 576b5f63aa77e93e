"""Chapter 6, the comparison: results.json, report.md and the pictures of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from classification.calibration import apply_temperature, plot_reliability, reliability
from classification.data import is_lopsided
from classification.evaluation import (
    confident_mistakes,
    confusion,
    lopsided_metrics,
    per_class_metrics,
)
from classification.evidence import say_difference
from classification.predictions import Predictions
from gpt2.support.intervals import wilson_interval
from gpt2.support.run_folder import RunFolder
from gpt2.support.tables import format_table, percent, plot_curves


def contender_names(results: dict[str, Any]) -> dict[str, str]:
    """How the table calls each contender of results.json."""
    name, family = results["model"]["name"], results["model"]["family"]
    name = name if family == "GPT-2" and "gpt2" in name else f"{family} {name}"
    baseline = results["baseline"]
    return {
        "majority": "majority class",
        "baseline": f"{baseline['name']} ({baseline['features']})",
        "zero_shot": f"{name} zero-shot",
        "before": f"{name} before fine-tuning",
        "after": f"{name} after fine-tuning",
        "together": "both together",
    }


def comparison_table(results: dict[str, Any]) -> str:
    """Majority class, bag of words, the model before and after fine-tuning, the latter and the bag
    of words together, and the runs that --beside names, all on the reported split; where a class is
    common, the figures that it cannot carry alone; then what the rows can tell of the differences.
    """
    seconds = {"baseline": results["baseline"], "after": results["training"]}
    reported = results["data"]["reported"]
    contenders = [
        (name, results[key][reported], seconds[key]["seconds"] if key in seconds else None)
        for key, name in contender_names(results).items()
        if key in results
    ]
    contenders += [
        (name, found[reported], found["seconds"])
        for name, found in results.get("beside", {}).items()
    ]
    data = results["data"]
    parts = [metrics_table(data[reported], f"{reported} rows", contenders, data["labels"])]
    if _has_common_class(results):
        parts.append(_lopsided(results))
    parts.append("\n".join(f"- {sentence}" for sentence in describe_evidence(results)))
    return "\n\n".join(parts)


def metrics_table(
    rows: int,
    of: str,
    contenders: list[tuple[str, dict[str, float], float | None]],
    labels: list[str],
) -> str:
    """A line on each contender: its name, its metrics on so many `rows` with the 95 % interval of
    the accuracy, and the seconds it trained, None if it did not or if that is not known."""
    lines = []
    for name, metrics, seconds in contenders:
        low, high = wilson_interval(round(metrics["accuracy"] * rows), rows)
        shares = [percent(metrics[key]) for key in ("precision", "recall", "f1")]
        lines.append(
            [name, percent(metrics["accuracy"]), f"{100 * low:.1f} to {100 * high:.1f}", *shares,
             f"{metrics['loss']:.4f}", None if seconds is None else f"{seconds:.1f}"]
        )  # fmt: skip
    averaged = f"of '{labels[1]}'" if len(labels) == 2 else f"averaged over {len(labels)} classes"
    header = [f"{rows:,} {of}", "accuracy", "95 %", "precision", "recall", "F1", "loss",
              "seconds"]  # fmt: skip
    return f"{format_table(header, lines)}\n\n(precision, recall and F1 {averaged})"


def describe_evidence(results: dict[str, Any]) -> list[str]:
    """A sentence on each difference that was tested."""
    names = contender_names(results)
    short = {"before": "before", "after": "after fine-tuning", "together": "both together"}
    return [
        say_difference(
            found,
            *(short.get(key, names.get(key, key)) for key in (found["first"], found["second"])),
            results["data"][results["data"]["reported"]],
        )
        for found in results["evidence"]["differences"]
    ]


def write_report(run: RunFolder, results: dict[str, Any], predictions: Predictions) -> None:
    """Complete `results` with what `look_closer` finds on the reported split, and write
    results.json, the pictures and report.md."""
    found, targets = predictions.log_probabilities["after"], predictions.targets
    results |= look_closer(predictions.texts, targets, predictions.labels, found)
    results["lopsided"] = {
        name: lopsided_metrics(values, targets)
        for name, values in predictions.log_probabilities.items()
    }
    plot_curves(run.read_log(), ("loss", "accuracy"), run.folder / "curves.png")
    calibrated = apply_temperature(found, results["calibration"]["temperature"])
    bins = {"raw": reliability(found, targets), "calibrated": reliability(calibrated, targets)}
    plot_reliability(bins, run.folder / "reliability.png")
    coloured = (run.folder / "mistakes.html").is_file()
    report = _report(results, coloured)  # a data set's name may be that of a file that is not UTF-8
    (run.folder / "report.md").write_text(report, encoding="utf-8", errors="backslashreplace")
    run.write_json("results.json", results)  # the last one: a run that has it is complete


def look_closer(
    texts: Sequence[str], targets: np.ndarray, labels: list[str], log_probabilities: np.ndarray
) -> dict[str, Any]:
    """The confusion matrix, the figures of each class and the most confident mistakes on rows with
    these `texts` and `targets`, indices into `labels`."""
    return {
        "confusion": {"labels": labels, "matrix": confusion(log_probabilities, targets)},
        "mistakes": confident_mistakes(log_probabilities, targets, texts, labels),
        "per_class": per_class_metrics(log_probabilities, targets, labels),
    }


def _report(results: dict[str, Any], coloured: bool) -> str:
    data, model = results["data"], results["model"]
    misled = "In [mistakes.html](mistakes.html), the words that misled the model are coloured."
    parts = [
        f"# {data['name']}: {model['name']} from {model['init']} weights",
        comparison_table(results),
        _describe_run(results),
        "## Curves\n\n![loss and accuracy over the steps](curves.png)",
        _probabilities(results),
        *close_look(results, f"{data['reported']} split"),
        *([misled] if coloured and results["mistakes"] else []),
    ]
    if not _has_common_class(results):  # then they stand under the first table
        parts.append(
            "## Balanced accuracy, Matthews, ROC AUC\n\nThey tell more than accuracy where one "
            "class is common.\n\n" + _lopsided(results)
        )
    return "\n\n".join(parts) + "\n"


def close_look(results: dict[str, Any], rows_name: str) -> list[str]:
    """The parts of a report that show what `look_closer` found."""
    labels = results["confusion"]["labels"]
    matrix = [
        [label, *(f"{count:,}" for count in row)]
        for label, row in zip(labels, results["confusion"]["matrix"], strict=True)
    ]
    classes = [
        [label, percent(m["precision"]), percent(m["recall"]), percent(m["f1"]), f"{m['rows']:,}"]
        for label, m in results["per_class"].items()
    ]
    mistakes = [
        f"Predicted **{mistake['predicted']}** with {percent(mistake['probability'])}, is "
        f"**{mistake['label']}**:\n\n> {_shorten(mistake['text'])}"
        for mistake in results["mistakes"]
    ]
    return [
        f"## Confusion matrix of the {rows_name}\n\nRows: the true class. Columns: the predicted "
        "one.\n\n" + format_table(["", *labels], matrix),
        "## Each class\n\n" + format_table(["class", "precision", "recall", "F1", "rows"], classes),
        "## The most confident mistakes",
        *(mistakes or ["None: every row is right."]),
    ]


def _describe_run(results: dict[str, Any]) -> str:
    data, model, training = results["data"], results["model"], results["training"]
    removed = ", ".join(f"{reason} {count:,}" for reason, count in data["removed"].items() if count)
    together = results["together"]
    return (
        f"Data: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} "
        f"test rows; removed: {removed or 'none'}. Model: {model['parameters']:,} parameters, "
        f"{model['trainable']:,} trained, {_head(model['head'])}, {model['max_length']} tokens "
        f"a text at most ({model['truncation']}). Training: {training['steps']} steps, "
        f"{training['epochs']:g} epochs, "
        f"{training['tokens_per_second']:,.0f} tokens a second, "
        f"{percent(training['useful_token_share'])} useful tokens, seed {training['seed']}. The "
        f"weights of step {training['best_step']}, the best on validation "
        f"({percent(results['after']['validation']['accuracy'])}), were tested. Intervals are "
        "95 % (Wilson); differences have the 95 % interval of the paired bootstrap over the "
        'rows and the exact p of McNemar\'s test. "Both together" is the weighted mean of the '
        f"log-probabilities of bag of words and {model['family']} ({together['weight']:.2f} for "
        f"the latter, chosen on validation); the two agree on "
        f"{percent(together['agreement'])} of the rows."
    )


def _head(description: dict[str, Any]) -> str:
    """ "pooling mean", or the class of a head of one's own."""
    return f"pooling {description['pooling']}" if "pooling" in description else description["kind"]


def _probabilities(results: dict[str, Any]) -> str:
    """How honest the probabilities are, before and after calibration."""
    calibration = results["calibration"]
    rows = [
        [name, f"{found['loss']:.4f}", percent(found["calibration_error"])]
        for name, found in (("raw", calibration["raw"]), ("calibrated", calibration["calibrated"]))
    ]
    text = (
        "## Honest probabilities\n\n"
        + format_table(["probabilities", "log loss", "calibration error"], rows)
        + "\n\nPrediction divides the logits by the temperature "
        f"{calibration['temperature']:.2f}, fitted on validation (`--raw` does not). The "
        "calibration error is the mean distance between the probability of the predicted class and "
        "the share that is right, over 15 bins (Guo et al. 2017).\n\n"
        "![probability against share that is right](reliability.png)"
    )
    if calibration["threshold"] is not None:
        at = calibration["at_threshold"]
        label = results["data"]["labels"][1]
        text += (
            f"\n\nWith '{label}' from a probability of {calibration['threshold']:.3f} on: accuracy "
            f"{percent(at['accuracy'])}, precision {percent(at['precision'])}, recall "
            f"{percent(at['recall'])}, F1 {percent(at['f1'])}."
        )
    return text


def _has_common_class(results: dict[str, Any]) -> bool:
    return is_lopsided([found["rows"] for found in results["per_class"].values()])


def _lopsided(results: dict[str, Any]) -> str:
    names = contender_names(results)
    rows = [
        [names[name], percent(found["balanced_accuracy"]), f"{found['matthews']:.3f}",
         f"{found['roc_auc']:.3f}" if "roc_auc" in found else None]
        for name, found in results["lopsided"].items()
    ]  # fmt: skip
    return format_table(["contender", "balanced accuracy", "Matthews", "ROC AUC"], rows)


def _shorten(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."
