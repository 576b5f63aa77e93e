"""Labels for new texts, by a fine-tuned model.

    python classification/predict.py RUN "A dull start, but what an ending!"
    python classification/predict.py RUN --file new.csv --out labelled.csv
    python classification/predict.py RUN --file new.csv --text-column title,body --json
    cat reviews.txt | python classification/predict.py RUN

A table (CSV, TSV, JSON Lines, Parquet, and whatever training reads) keeps its columns and gets two
more, the label and its probability. Of any other file, and of standard input, each line is a text.
Answers come in the order of the input, while it is still being read: a table of any size fits in
memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import collections
import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from classification.calibration import apply_temperature
from classification.data import IMDbDataset
from classification.evaluation import predict_log_probabilities
from gpt2.checkpoint import Recipe
from gpt2.compiling import InferenceSettings, compile_blocks
from gpt2.model import GPT2
from gpt2.support.device import autocast, choose_device
from gpt2.support.errors import UserError
from gpt2.support.files import COMPRESSIONS, clean_text, read_text, table_suffix
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.streaming import (
    Part,
    Table,
    add_columns,
    is_table,
    new_names,
    open_table,
    require_columns,
    table_of_lines,
    texts_of,
)
from gpt2.support.table_output import check_new_table, check_types, json_lines, writing_table
from gpt2.support.tables import percent, shorten
from gpt2.weights.loading import load_model

Answer = dict[str, float] | None  # the probability of each label; None for an empty text

_CHUNK = 4096  # texts in memory at once; sorted by length inside a chunk, so little is padded


@dataclass
class PredictSettings:
    """Prediction"""

    file: str = flag("", "a table, or a file with one text a line")
    text_column: str = flag(
        "", "column of the table with the text; several, joined: title,body; left out, what the "
        "run was trained with"
    )  # fmt: skip
    columns: str = flag("", "names for the columns of a table without a header line: id,text")
    out: str = flag(
        "", "write the table with label and probability to this file: .csv, .tsv, .jsonl, .json or "
        ".parquet"
    )  # fmt: skip
    overwrite: bool = flag(False, "replace the file that --out names")
    probabilities: bool = flag(
        False, "with --out, a column for each class too, probability_CLASS; JSON has them anyway"
    )
    json: bool = flag(
        False, "print one JSON object a line, with the columns of the table and the probability of "
        "every class"
    )  # fmt: skip
    raw: bool = flag(
        False, "the model's own probabilities and likelier class, without the temperature and the "
        "threshold that were fitted on validation"
    )  # fmt: skip
    batch_size: int = flag(32, "texts at once; less if memory runs out", at_least=1)


def predict(
    model: GPT2,
    recipe: Recipe,
    texts: str | Iterable[str],
    batch_size: int = 32,
    precision: str = "auto",
) -> Iterator[tuple[str, Answer]]:
    """Each text, in order, with the probability of each label, calibrated by the temperature of
    `recipe`; None for a text without content. One text may be given alone. `model` must be in
    evaluation mode; no more than 4,096 texts are held at once."""
    labels, max_length = recipe.settings["labels"], recipe.settings["max_length"]
    truncation = recipe.settings["truncation"]
    texts = iter([texts] if isinstance(texts, str) else texts)  # a string's items are letters
    while chunk := list(itertools.islice(texts, _CHUNK)):
        cleaned = [clean_text(text) for text in chunk]
        places = [place for place, text in enumerate(cleaned) if text]
        answers: list[Answer] = [None] * len(chunk)
        if places:
            rows = [cleaned[place] for place in places]
            dataset = IMDbDataset(rows, [0] * len(rows), recipe.encoding, max_length, truncation)
            # Around all batches: inside one autocast the weights are cast once (frozen ones under
            # adapters each time). Not in training's evaluations: of a model in parts, each process
            # would then keep the whole.
            with autocast(next(model.parameters()).device, precision):
                found = predict_log_probabilities(model, dataset, batch_size, precision)
            found = apply_temperature(found, recipe.settings["temperature"])
            for place, row in zip(places, np.exp(found).tolist(), strict=True):
                answers[place] = dict(zip(labels, row, strict=True))
        yield from zip(chunk, answers, strict=True)


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", type=Path, help="a run folder of train_gpt.py")
        parser.add_argument("texts", metavar="TEXT", nargs="*", help="none: read standard input")

    settings, on, arguments = parse_flags(
        [PredictSettings, InferenceSettings],
        "Labels for new texts, by a fine-tuned model.",
        add_arguments=add_arguments,
    )
    _check_flags(settings, arguments.texts)
    device = choose_device(on.device)
    model, recipe = load_model(arguments.run, "classification")
    model.to(device)
    if on.compile:
        compile_blocks(model)
    if settings.raw:
        recipe.settings |= {"temperature": 1.0, "threshold": None}
    threshold = recipe.settings["threshold"]
    with _open(settings, arguments.texts) as table:
        columns = _text_columns(settings, recipe, table)
        if settings.file and is_table(Path(settings.file)):
            if table_suffix(Path(settings.file)) not in (
                ".csv",
                ".tsv",
            ):  # there all cells are text
                _check_texts(table, columns)
        parts = _answer(model, recipe, table, columns, settings.batch_size, on.precision)
        labels = recipe.settings["labels"]
        if settings.out:
            _write(parts, table, settings, labels, threshold)
        elif settings.json:
            _print_json(parts, table, threshold)
        else:
            _print(parts, labels, threshold)


def _check_flags(settings: PredictSettings, texts: list[str]) -> None:
    if settings.file and texts:
        raise UserError("give either texts or --file, not both")
    if settings.file and not Path(settings.file).is_file():
        raise UserError(f"--file {settings.file}: no such file")
    for name in ("text_column", "columns"):
        if getattr(settings, name) and not is_table(Path(settings.file)):
            raise UserError(
                f"--{name.replace('_', '-')} is for a table: --file with a .csv, .tsv, .jsonl, "
                ".json or .parquet file"
            )
    if settings.out:
        check_new_table(Path(settings.out), settings.overwrite)
        if settings.json:
            raise UserError("--json is for standard output; for JSON in a file: --out FILE.jsonl")
    elif settings.overwrite or settings.probabilities:
        raise UserError("--overwrite and --probabilities go with --out; add it")


@contextmanager
def _open(settings: PredictSettings, texts: list[str]) -> Iterator[Table]:
    """The table that the texts stand in: the one of the file, or one made of lines."""
    file = Path(settings.file)
    if settings.file and is_table(file):
        names = [name.strip() for name in settings.columns.split(",")] if settings.columns else None
        table = open_table(file, names)
        for note in table.notes:
            print(note, file=sys.stderr)  # standard output holds the answers alone
        yield table
        return
    if settings.file:
        packed = file.suffix.lower() in COMPRESSIONS
        source = (
            io.StringIO(read_text(file), newline="\n")
            if packed
            else open(file, encoding="utf-8-sig", newline="\n")
        )
    else:
        if not texts:
            if sys.stdin.isatty():
                print("one text a line; Ctrl-D ends the input", file=sys.stderr)
            sys.stdin.reconfigure(encoding="utf-8-sig", newline="\n")
        source = nullcontext(sys.stdin)
    with source as lines:
        name = settings.file or "standard input"
        yield table_of_lines(name, "text", texts or _lines(lines, name))


def _lines(file: Iterable[str], name: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(file, start=1):  # noqa: B007
            yield line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{name}: not UTF-8 after line {number}; convert it first") from None


def _text_columns(settings: PredictSettings, recipe: Recipe, table: Table) -> list[str]:
    if not (settings.file and is_table(Path(settings.file))):
        return ["text"]
    given = settings.text_column or recipe.settings["text_column"]
    columns = [name.strip() for name in given.split(",")]
    whose = "--text-column" if settings.text_column else "the run's --text-column; give another"
    require_columns(table, columns, whose)
    return columns


def _check_texts(table: Table, columns: list[str]) -> None:
    """Raises UserError, before any work, for a row whose text is none."""
    row = 1
    for part in table.parts():
        for column in columns:
            texts_of(table, part, column, row)
        row += len(part)


def _answer(
    model: GPT2, recipe: Recipe, table: Table, columns: list[str], batch_size: int, precision: str
) -> Iterator[tuple[Part, list[str], list[Answer]]]:
    """Each part of the table with its texts and the answers to them."""
    row = 1
    for part in table.parts():
        pieces = [texts_of(table, part, column, row) for column in columns]
        texts = [" ".join(of_row) for of_row in zip(*pieces, strict=True)]
        found = predict(model, recipe, texts, batch_size, precision)
        yield part, texts, [answer for _, answer in found]
        row += len(part)


def choose_label(answer: Answer, threshold: float | None) -> str | None:
    """The likeliest label; with a `threshold`, for two classes, the second one from that
    probability on."""
    if answer is None:
        return None
    if threshold is None:
        return max(answer, key=answer.get)
    first, second = answer
    return second if answer[second] >= threshold else first


def new_columns(
    answers: list[Answer], shown: Iterable[str], threshold: float | None
) -> dict[str, list[Any]]:
    """The columns that the table gets, of which `shown` are in it: label, probability and those of
    the classes, all in one or one by one."""
    labels = [choose_label(answer, threshold) for answer in answers]
    new: dict[str, list[Any]] = {
        "label": labels,
        "probability": [
            answer[label] if answer else None for answer, label in zip(answers, labels, strict=True)
        ],
        "probabilities": answers,
    }
    for name in shown:
        if name not in new:
            label = name.removeprefix("probability_")
            new[name] = [answer[label] if answer else None for answer in answers]
    return {name: new[name] for name in shown}


def _write(
    parts: Iterable[tuple[Part, list[str], list[Answer]]],
    table: Table,
    settings: PredictSettings,
    labels: list[str],
    threshold: float | None,
) -> None:
    """Write the table with its new columns to --out, and say what came of it."""
    out = Path(settings.out)
    types: dict[str, pl.DataType] = {"label": pl.String(), "probability": pl.Float64()}
    if out.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        types["probabilities"] = pl.Struct({label: pl.Float64() for label in labels})
    elif settings.probabilities:
        types |= {f"probability_{label}": pl.Float64() for label in labels}
    names = new_names(table, types)
    schema = table.schema | {names[name]: kind for name, kind in types.items()}
    counts: collections.Counter[str | None] = collections.Counter()
    with (
        writing_table(out, schema) as write,
        tqdm(total=table.rows, unit="row", disable=None, dynamic_ncols=True) as bar,
    ):
        for part, _, answers in parts:
            new = new_columns(answers, names, threshold)
            write(add_columns(part, {names[name]: values for name, values in new.items()}))
            counts.update(new["label"])
            bar.update(len(part))
    shown = [f"{label} {counts[label]:,}" for label in labels if counts[label]]
    if counts[None]:
        shown.append(f"without a label, because without text, {counts[None]:,}")
    print(f"{out}: {sum(counts.values()):,} rows; {', '.join(shown)}")


def _print_json(
    parts: Iterable[tuple[Part, list[str], list[Answer]]], table: Table, threshold: float | None
) -> None:
    check_types(table.name, table.schema, ".jsonl")
    names = new_names(table, ["label", "probability", "probabilities"])
    for part, _, answers in parts:
        new = new_columns(answers, names, threshold)
        labelled = add_columns(part, {names[name]: values for name, values in new.items()})
        for line in json_lines(labelled):
            print(line)


def _print(
    parts: Iterable[tuple[Part, list[str], list[Answer]]],
    labels: list[str],
    threshold: float | None,
) -> None:
    width = max(map(len, [*labels, "label"]))
    print(f"{'label':<{width}}  probability  text")
    for _, texts, answers in parts:
        for text, answer in zip(texts, answers, strict=True):
            if answer is None:
                print(f"{'-':<{width}}  {'-':>11}  (empty)")
            else:
                label = choose_label(answer, threshold)
                print(f"{label:<{width}}  {percent(answer[label]):>11}  {shorten(text, 80)}")


if __name__ == "__main__":
    run_script(main, is_filter=True)
