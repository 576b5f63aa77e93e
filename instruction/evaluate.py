"""How good is a finished run on other instructions with answers?

    python instruction/evaluate.py RUN --data rows.json
    python instruction/evaluate.py RUN --data alpaca --test-answers 200 --out evaluations/alpaca

It reads what instruction_finetuning.py reads, with the columns and the template that the run was
trained with: loss and perplexity over the answers of all rows, and how good the model's own answers
to some of them are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import dataclasses
from dataclasses import dataclass

import numpy as np
import polars as pl

from gpt2.checkpoint import Recipe
from gpt2.compiling import InferenceSettings, compile_blocks
from gpt2.language_modelling import evaluate_loss
from gpt2.support.device import choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.results_folder import (
    ResultsSettings,
    check_results_folder,
    read_settings,
    show_results,
    warn_of_training_rows,
)
from gpt2.support.script import run_script
from gpt2.support.splits import counts_in_words, data_name
from gpt2.weights.loading import load_model
from instruction.data import InstructionDataset, load_splits, read_clean, with_room
from instruction.evaluation import (
    Answer,
    AnswerSettings,
    answer_metrics,
    answer_prompts,
    first_sentences,
    rouge,
)
from instruction.report import how_answered, metrics_table, question, side_by_side
from instruction.sources import BUILT_IN, DataSettings
from instruction.template import Template

_SHOWN = 20  # answers in the report


@dataclass
class EvaluationSettings:
    """Evaluation"""

    data: str = flag(
        "",
        "rows with answers: whatever instruction_finetuning.py takes as --data; left out, the "
        "run's own test split",
    )
    revision: str = flag("", "commit, branch or tag of a data set of the hub; left out, the newest")
    turns: str = flag(
        "",
        "of conversations: the first answer, or all of them; left out, what the run learnt",
        choices=("first", "all"),
    )
    instruction_column: str = flag(
        "", "column with the instruction; left out, what the run was trained with"
    )
    input_column: str = flag("", "column with what it is about; left out, the run's")
    output_column: str = flag("", "column with the answer; left out, the run's")
    test_answers: int = flag(
        100, "rows that the model answers; more take longer and make the shares surer", at_least=1
    )
    answer_tokens: int = flag(96, "tokens of each of these answers at most", at_least=1)
    repetition_penalty: float = flag(
        AnswerSettings.repetition_penalty, "above 1, tokens that stand in one of these answers "
        "already become less likely, as in respond.py; 1 is none",
        at_least=0.01, at_most=100,
    )  # fmt: skip
    split_seed: int = flag(1, "which rows are answered", at_least=0, at_most=2**32 - 1)
    batch_size: int = flag(16, "rows at once; less if memory runs out", at_least=1)


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "run", metavar="RUN", type=Path, help="a run of instruction_finetuning.py"
        )

    settings, output, on, arguments = parse_flags(
        [EvaluationSettings, ResultsSettings, InferenceSettings],
        "How good is a finished run on other instructions with answers?",
        add_arguments=add_arguments,
    )
    check_results_folder(output)
    device = choose_device(on.device)
    model, recipe = load_model(arguments.run, "instruction")
    model.to(device)
    if on.compile:
        compile_blocks(model)
    template, max_length = Template(**recipe.settings["template"]), recipe.settings["max_length"]

    notes: list[str] = []
    if settings.data:
        rows, removed, revision, split = read_rows(settings, recipe, template, notes)
        if split == "all":
            warn_of_training_rows(arguments.run, settings.data)
    else:
        own = read_settings(arguments.run, DataSettings)
        splits = load_splits(own, template, recipe.encoding, own.split_seed)
        rows, removed, revision = splits.test, splits.removed, splits.revision
        rows, settings.data = rows.with_row_index("row", offset=1), own.data
    dataset = InstructionDataset(
        rows.select("instruction", "input", "output").rows(), template, recipe.encoding, max_length
    )
    name = data_name(settings.data, BUILT_IN)
    print(f"data: {name}: {len(rows):,} rows, {dataset.truncated:,} responses truncated")
    print(f"  rows removed:   {counts_in_words(removed) or 'none'}")
    for note in notes:
        print(f"  {note}")
    print()

    metrics = evaluate_loss(model, dataset, settings.batch_size, on.precision, "loss")
    choice = np.random.default_rng(settings.split_seed).permutation(len(rows))
    answered = choice[: settings.test_answers]
    sampling = AnswerSettings(
        settings.answer_tokens, repetition_penalty=settings.repetition_penalty
    )
    answers = answer_prompts(
        model, recipe.encoding, [dataset.prompt(row) for row in answered], sampling,
        settings.batch_size, on.precision, desc="answers",
    )  # fmt: skip
    predictions = prediction_table(rows[answered], answers)
    metrics |= answer_metrics(answers, predictions["reference"].to_list(), template)

    results = {
        "task": "instruction",
        "run": str(arguments.run),
        "data": {"name": name, "source": settings.data, "revision": revision,
                 "rows": len(rows), "removed": removed, "notes": notes,
                 "truncated": dataset.truncated, "answered": len(answers)},
        "answering": dataclasses.asdict(sampling),
        "metrics": metrics,
    }  # fmt: skip
    header, columns = [f"{len(rows):,} rows of {name}", str(arguments.run)], [metrics]
    if recipe.settings["instruction"]:
        copied = [first_sentences(text) for text in predictions["input"]]
        if found := rouge(copied, predictions["reference"].to_list()):
            results["first_sentences"] = found
            header, columns = [*header, "first 3 sentences"], [metrics, found]
    table = metrics_table(header, columns)
    report = "\n\n".join(
        [
            f"# {name}: evaluation of {arguments.run}",
            table,
            f"The loss is over all rows, shares over {len(answers):,} of them, "
            f"{how_answered(results['answering'])}.",
            "## Answers, good and bad, as they are",
            side_by_side(
                ["instruction", "reference", "answer"],
                [[question(row), row["reference"], row["answer"]]
                 for row in predictions[:_SHOWN].to_dicts()],
            ),
        ]
    )  # fmt: skip
    if output.out:
        print(f"{table}\n")
    show_results(output, results, report + "\n", predictions)


def read_rows(
    settings: EvaluationSettings, recipe: Recipe, template: Template, notes: list[str]
) -> tuple[pl.DataFrame, dict[str, int], str, str]:
    """The rows to evaluate on: `row` (its number after cleaning, from 1), `instruction`, `input`
    and `output`; {reason: rows removed}; the commit of a data set of the hub; and "test", or "all"
    if the data has no test split. Which files were read is told in `notes`. Raises UserError."""
    columns = {}
    for column in ("instruction_column", "input_column", "output_column"):
        # built-in data have columns of their own, whatever the run was trained with
        default = getattr(DataSettings(), column)
        of_run = default if settings.data in BUILT_IN else recipe.settings[column]
        columns[column] = getattr(settings, column) or of_run
    own_instructions = settings.instruction_column or settings.data in BUILT_IN
    given = DataSettings(
        data=settings.data,
        instruction="" if own_instructions else recipe.settings["instruction"],
        revision=settings.revision,
        turns=settings.turns or recipe.settings["turns"],
        **columns,
    )
    cleaned, removed, found = read_clean(given, notes)
    split = "test" if "test" in cleaned["split"] else "all"
    if split == "test":
        cleaned = cleaned.filter(pl.col("split") == "test")
    cleaned = cleaned.select("instruction", "input", "output")
    cleaned = cleaned.with_row_index("row", offset=1)
    rows = with_room(cleaned, template, recipe.encoding, recipe.settings["max_length"])
    removed["no room for a response"] = len(cleaned) - len(rows)
    if rows.is_empty():
        raise UserError(f"{settings.data}: no rows with an instruction and an answer are left")
    return rows, removed, found.revision, split


def prediction_table(rows: pl.DataFrame, answers: list[Answer]) -> pl.DataFrame:
    """row, instruction, input, reference, the model's answer and whether it ended by itself."""
    return rows.rename({"output": "reference"}).with_columns(
        pl.Series("answer", [answer.text for answer in answers], dtype=pl.String),
        pl.Series("ended", [answer.ended for answer in answers], dtype=pl.Boolean),
    )


if __name__ == "__main__":
    run_script(main)
