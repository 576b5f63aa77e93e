"""How good is a finished run on other labelled rows?

    python classification/evaluate.py RUN                      # on its own test split
    python classification/evaluate.py RUN --data labelled.csv
    python classification/evaluate.py RUN --data imdb --out evaluations/imdb

It reads what train_gpt.py reads, with the columns that the run was trained with, cleans the texts
as training does, and says what the report of a run says: metrics, confusion matrix, each class, the
most confident mistakes; and with --out every prediction.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from classification.cleaning import clean
from classification.data import IMDbDataset, load_splits
from classification.evaluation import classification_metrics, predict_log_probabilities
from classification.report import close_look, look_closer, metrics_table
from classification.sources import BUILT_IN, DataSettings, read_source
from gpt2.checkpoint import Recipe
from gpt2.compiling import InferenceSettings, compile_blocks
from gpt2.support.cells import same_numbers
from gpt2.support.device import choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.hub_datasets import pin_revision
from gpt2.support.results_folder import (
    ResultsSettings,
    check_results_folder,
    read_settings,
    show_results,
    warn_of_training_rows,
)
from gpt2.support.script import run_script
from gpt2.support.splits import counts_in_words
from gpt2.weights.loading import load_model


@dataclass
class EvaluationSettings:
    """Evaluation"""

    data: str = flag(
        "", "labelled rows: whatever train_gpt.py takes as --data. The test split where the data "
        "has one, else all rows; left out, the run's own test split"
    )  # fmt: skip
    revision: str = flag("", "commit, branch or tag of a data set of the hub; left out, the newest")
    text_column: str = flag(
        "", "column with the text; several, joined: title,body; left out, what the run was "
        "trained with"
    )  # fmt: skip
    label_column: str = flag("", "column with the class; left out, what the run was trained with")
    split_column: str = flag("", "column that says train, validation or test, if there is one")
    columns: str = flag("", "names for the columns of a file without a header line: label,text")
    batch_size: int = flag(32, "texts at once; less if memory runs out", at_least=1)


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", type=Path, help="a run folder of train_gpt.py")

    settings, output, on, arguments = parse_flags(
        [EvaluationSettings, ResultsSettings, InferenceSettings],
        "How good is a finished run on other labelled rows?",
        add_arguments=add_arguments,
    )
    check_results_folder(output)
    device = choose_device(on.device)
    model, recipe = load_model(arguments.run, "classification")
    labels = recipe.settings["labels"]

    if settings.data:
        rows, description = read_labelled(settings, recipe)
    else:
        rows, description = read_own_test_split(arguments.run)
    print_summary(description, rows, labels)
    if description["split"] == "all":
        warn_of_training_rows(arguments.run, settings.data)
    max_length, truncation = recipe.settings["max_length"], recipe.settings["truncation"]
    dataset = IMDbDataset(rows["text"], rows["label"], recipe.encoding, max_length, truncation)
    model.to(device)
    if on.compile:
        compile_blocks(model)
    log_probabilities = predict_log_probabilities(
        model, dataset, settings.batch_size, on.precision, "rows"
    )

    metrics = classification_metrics(log_probabilities, rows["label"].to_numpy())
    results = {
        "task": "classification",
        "run": str(arguments.run),
        "data": description,
        "metrics": metrics,
        **look_closer(rows["text"].to_list(), rows["label"].to_numpy(), labels, log_probabilities),
    }
    of = f"rows of {description['name']}"
    table = metrics_table(len(rows), of, [(str(arguments.run), metrics, None)], labels)
    parts = [f"# {description['name']}: evaluation of {arguments.run}", table]
    report = "\n\n".join([*parts, *close_look(results, "evaluated rows")]) + "\n"
    print()
    if output.out:
        print(f"{table}\n")
    show_results(output, results, report, prediction_table(rows, labels, log_probabilities))


def read_own_test_split(run: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The test split that the run itself has, as in `read_labelled`."""
    data = read_settings(run, DataSettings)
    splits = load_splits(data, data.split_seed)
    rows = splits.test.with_row_index("row", offset=1)
    return rows, {"name": splits.name, "split": "test", "rows": len(rows),
                  "labels": splits.labels, "removed": splits.removed, "cleaned": splits.cleaned,
                  "notes": splits.notes, "source": data.data,
                  "revision": splits.revision}  # fmt: skip


def read_labelled(
    settings: EvaluationSettings, recipe: Recipe
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The rows to evaluate on: `row` (its number in the data or its split, from 1), `text` and
    `label` (Int64, an index into the labels of the run); and what was done to get them.

    Raises UserError for data that cannot be used, with labels that the model does not know.
    """
    path = Path(settings.data)
    # the built-in data and the two layouts of IMDb, which train_gpt.py reads without --text-column
    own = (
        settings.data in BUILT_IN or (path / "plain_text").is_dir() or (path / "train/pos").is_dir()
    )
    default = DataSettings()
    text_column = default.text_column if own else recipe.settings["text_column"]
    label_column = default.label_column if own else recipe.settings["label_column"]
    notes: list[str] = []
    revision = pin_revision(settings.data, settings.revision)
    name, parts = read_source(
        DataSettings(
            data=settings.data,
            text_column=settings.text_column or text_column,
            label_column=settings.label_column or label_column,
            split_column=settings.split_column,
            columns=settings.columns,
            revision=revision,
        ),
        notes,
    )
    split = "test" if "test" in parts else "all"
    frame = parts["test"] if split == "test" else pl.concat(parts.values())
    frame = frame.with_row_index("row", offset=1)
    # as a test split: copies stay, only what no prediction could get right goes
    clean_parts, cleaned, removed = clean({"train": frame.clear(), "test": frame}, notes)
    rows = clean_parts["test"]
    if rows.is_empty():
        raise UserError(f"{settings.data}: no rows with a text and a label are left")
    labels = recipe.settings["labels"]
    same = same_numbers({*labels, *rows["label"]})  # 1.0 where the model knows 1
    rows = rows.with_columns(pl.col("label").replace(same))
    unknown = rows.filter(~pl.col("label").is_in(labels))["label"].value_counts(sort=True)
    if len(unknown):
        named = ", ".join(f"'{label}' ({count:,} rows)" for label, count in unknown.rows()[:8])
        if len(unknown) > 8:
            named += f" and {len(unknown) - 8} more"
        known = ", ".join(f"'{label}'" for label in labels)
        raise UserError(
            f"{settings.data}: the model does not know the labels {named}; it knows {known}. "
            "Rename them, or name another --label-column"
        )
    rows = rows.select("row", "text", pl.col("label").replace_strict(labels, range(len(labels))))
    return rows, {"name": name, "split": split, "rows": len(rows), "labels": labels,
                  "removed": removed, "cleaned": cleaned, "notes": notes,
                  "source": settings.data, "revision": revision}  # fmt: skip


def print_summary(description: dict[str, Any], rows: pl.DataFrame, labels: list[str]) -> None:
    """What is evaluated on, before any time is spent on it."""
    of = "its test split" if description["split"] == "test" else "all rows"
    print(f"data: {description['name']}, {of}: {len(rows):,} rows")
    for note in description["notes"]:
        print(f"  {note}")
    counts = np.bincount(rows["label"].to_numpy(), minlength=len(labels))
    shown = [f"{label} {count:,}" for label, count in zip(labels, counts, strict=True)]
    more = f", and {len(shown) - 8} more classes" if len(shown) > 8 else ""
    print(f"  labels:         {', '.join(shown[:8])}{more}")
    print(f"  texts changed:  {counts_in_words(description['cleaned']) or 'none'}")
    print(f"  rows removed:   {counts_in_words(description['removed']) or 'none'}")


def prediction_table(
    rows: pl.DataFrame, labels: list[str], log_probabilities: np.ndarray
) -> pl.DataFrame:
    """row, text, label, predicted, and a column `probability_CLASS` for each class."""
    names = np.array(labels, dtype=object)
    probabilities = np.exp(log_probabilities)
    return rows.select(
        "row",
        "text",
        pl.Series("label", names[rows["label"].to_numpy()].tolist(), dtype=pl.String),
        pl.Series("predicted", names[log_probabilities.argmax(axis=1)].tolist(), dtype=pl.String),
        *(
            pl.Series(f"probability_{label}", probabilities[:, number])
            for number, label in enumerate(labels)
        ),
    )


if __name__ == "__main__":
    run_script(main)
