"""Labels for new texts, by a fine-tuned model.

    python classification/predict.py RUN "A dull start, but what an ending!"
    python classification/predict.py RUN --file reviews.txt --json > labels.jsonl
    cat reviews.txt | python classification/predict.py RUN

From a file and from standard input each line is one text. Answers come in the order of the input,
one line each, while the input is still being read: a file of any size fits in memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from classification.data import IMDbDataset
from classification.evaluation import predict_log_probabilities
from gpt2.checkpoint import Recipe, load_checkpoint
from gpt2.model import GPT2
from gpt2.support.device import DeviceSettings, autocast, choose_device
from gpt2.support.errors import UserError
from gpt2.support.files import clean_text
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import shorten

_CHUNK = 4096  # texts in memory at once; sorted by length inside a chunk, so little is padded


@dataclass
class PredictSettings:
    """Prediction"""

    file: str = flag("", "read texts from this file, one a line")
    json: bool = flag(False, "one JSON object a line, with the probability of every class")
    batch_size: int = flag(32, "texts at once; less if memory runs out", at_least=1)


def predict(
    model: GPT2,
    recipe: Recipe,
    texts: Iterable[str],
    batch_size: int = 32,
    precision: str = "auto",
) -> Iterator[tuple[str, dict[str, float] | None]]:
    """Each text, in order, with the probability of each label; None for a text without content.
    `model` must be in evaluation mode; no more than 4,096 texts are held at once."""
    labels, max_length = recipe.settings["labels"], recipe.settings["max_length"]
    truncation = recipe.settings["truncation"]
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, _CHUNK)):
        cleaned = [clean_text(text) for text in chunk]
        places = [place for place, text in enumerate(cleaned) if text]
        answers: list[dict[str, float] | None] = [None] * len(chunk)
        if places:
            rows = [cleaned[place] for place in places]
            dataset = IMDbDataset(rows, [0] * len(rows), recipe.encoding, max_length, truncation)
            # Around all batches: inside one autocast the weights are cast once. (Not in training's
            # evaluations: of a model in parts, each process would then keep the whole.)
            with autocast(model.wte.weight.device, precision):
                found = predict_log_probabilities(model, dataset, batch_size, precision)
            for place, row in zip(places, np.exp(found).tolist(), strict=True):
                answers[place] = dict(zip(labels, row, strict=True))
        yield from zip(chunk, answers, strict=True)


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", type=Path, help="a run folder of train_gpt.py")
        parser.add_argument("texts", metavar="TEXT", nargs="*", help="none: read standard input")

    settings, on, arguments = parse_flags(
        [PredictSettings, DeviceSettings],
        "Labels for new texts, by a fine-tuned model.",
        add_arguments=add_arguments,
    )
    if settings.file and arguments.texts:
        raise UserError("give either texts or --file, not both")
    if Path(settings.file).suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".parquet"):
        raise UserError(f"--file {settings.file}: is a table; give a file with one text a line")
    if settings.file and not Path(settings.file).is_file():
        raise UserError(f"--file {settings.file}: no such file")
    device = choose_device(on.device)
    model, recipe = load_checkpoint(arguments.run, "classification")
    labels = recipe.settings["labels"]

    if settings.file:
        source = open(settings.file, encoding="utf-8-sig", newline="\n")
    else:
        if not arguments.texts:
            if sys.stdin.isatty():
                print("one text a line; Ctrl-D ends the input", file=sys.stderr)
            sys.stdin.reconfigure(encoding="utf-8-sig", newline="\n")
        source = nullcontext(sys.stdin)
    with source as lines:
        answers = predict(
            model.to(device),
            recipe,
            arguments.texts or _lines(lines, settings.file or "standard input"),
            settings.batch_size,
            on.precision,
        )
        if not settings.json:
            width = max(map(len, [*labels, "label"]))
            print(f"{'label':<{width}}  probability  text")
        for text, probabilities in answers:
            if settings.json:
                label = max(probabilities, key=probabilities.get) if probabilities else None
                answer = {"text": text, "label": label, "probabilities": probabilities}
                print(json.dumps(answer, ensure_ascii=False))
            elif probabilities is None:
                print(f"{'-':<{width}}  {'-':>11}  (empty)")
            else:
                label = max(probabilities, key=probabilities.get)
                print(f"{label:<{width}}  {probabilities[label]:>11.1%}  {shorten(text, 80)}")


def _lines(file: Iterable[str], name: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(file, start=1):  # noqa: B007
            yield line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{name}: not UTF-8 after line {number}; convert it first") from None


if __name__ == "__main__":
    run_script(main, is_filter=True)
