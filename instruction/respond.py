"""Ask a fine-tuned model.

    python instruction/respond.py RUN "Name three colours."
    python instruction/respond.py RUN "Is this positive?" --input "What a day!"
    python instruction/respond.py RUN --file questions.csv --out answered.csv
    python instruction/respond.py RUN --file questions.jsonl > answers.jsonl
    python instruction/respond.py RUN                          # a conversation

    cat questions.txt | python instruction/respond.py RUN

What a run with one --instruction for all rows is asked is the text that its instruction is about.
A table (CSV, TSV, JSON Lines, Parquet, and whatever training reads) keeps its columns and gets one
more, the answer. Of any other file, and of standard input, each line is an instruction. Without
--out the answers come as JSON Lines. In a conversation Ctrl-C ends an answer and Ctrl-D the
program; each instruction stands for itself, as in training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import tiktoken
from tqdm import tqdm

from gpt2.checkpoint import Recipe
from gpt2.compiling import InferenceSettings, compile_blocks
from gpt2.generation import PromptTooLong, stream_text
from gpt2.model import GPT2
from gpt2.support.device import choose_device
from gpt2.support.errors import UserError
from gpt2.support.files import COMPRESSIONS, decode_utf8, read_text, read_utf8
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
from gpt2.tokenizer import encode_text, encode_texts
from gpt2.weights.loading import load_model
from instruction.evaluation import AnswerSettings, answer_prompts
from instruction.template import Template


@dataclass
class RespondSettings:
    """Asking"""

    input: str = flag("", "what the instruction is about, where it needs something")
    file: str = flag("", "answer every instruction of this table, or of this file of lines")
    instruction_column: str = flag(
        "", "column of the table with the instruction; left out, what the run was trained with"
    )
    input_column: str = flag(
        "", "column with what the instruction is about; left out, the run's, if it is there"
    )
    out: str = flag(
        "", "write the table with the answers to this file: .csv, .tsv, .jsonl, .json or .parquet"
    )
    overwrite: bool = flag(False, "replace the file that --out names")
    seed: int = flag(
        1, "another seed gives other answers, if --temperature is above 0; the second instruction "
        "takes the next number, and so on", at_least=0, at_most=2**32 - 1
    )  # fmt: skip
    batch_size: int = flag(16, "instructions of a file answered at once", at_least=1)


def answer(
    model: GPT2,
    recipe: Recipe,
    questions: str | Sequence[str | tuple[str, str]],
    sampling: AnswerSettings | None = None,
    batch_size: int = 16,
    precision: str = "auto",
    seed: int = 1,
) -> list[str]:
    """The answer to each of `questions`, in order. One is (instruction, input) or a text, which is
    the instruction or, for a run with one --instruction for all rows, the input to that. One text
    may be given alone. `model` must be in evaluation mode. Raises PromptTooLong."""
    questions = [questions] if isinstance(questions, str) else questions  # its items are letters
    template = Template(**recipe.settings["template"])
    prompts = [template.prompt(*as_question(recipe, asked)) for asked in questions]
    answers = answer_prompts(
        model, recipe.encoding, encode_texts(recipe.encoding, prompts),
        sampling or AnswerSettings(), batch_size, precision, seed,
    )  # fmt: skip
    return [found.text for found in answers]


def as_question(recipe: Recipe, asked: str | tuple[str, str]) -> tuple[str, str]:
    """(instruction, input) of what is asked, as in `answer`."""
    if not isinstance(asked, str):
        return asked
    constant = recipe.settings["instruction"]
    return (constant, asked) if constant else (asked, "")


@dataclass
class Questions:
    """Instructions to answer: a table, and its columns with the instruction and the input; "" if
    there is no input. Without a column for it, the instruction is `constant` for all rows."""

    table: Table
    instruction: str
    input: str
    constant: str = ""

    def of(self, part: Part, first_row: int) -> list[tuple[str, str]]:
        """(instruction, input) of each row of a part of the table. Raises UserError."""
        instructions = [self.constant] * len(part)
        if self.instruction:
            instructions = texts_of(self.table, part, self.instruction, first_row)
        inputs = [""] * len(part)
        if self.input:
            inputs = texts_of(self.table, part, self.input, first_row)
        questions = [
            (one.strip(), other.strip()) for one, other in zip(instructions, inputs, strict=True)
        ]
        for number, (instruction, text) in enumerate(questions, start=first_row):
            if not (text if self.constant else instruction):
                column = self.input if self.constant else self.instruction
                raise UserError(f"{self.table.name}: row {number} needs an '{column}' that is text")
        return questions


def read_questions(settings: RespondSettings, recipe: Recipe) -> Questions:
    """What --file or, without it, standard input asks. Raises UserError."""
    path, constant = Path(settings.file), recipe.settings["instruction"]
    if not settings.file:
        name, text = "standard input", decode_utf8("standard input", sys.stdin.buffer.read())
    elif not is_table(path):
        read = read_text if path.suffix.lower() in COMPRESSIONS else read_utf8
        name, text = settings.file, read(path)
    else:
        table = open_table(path)
        for note in table.notes:
            print(note, file=sys.stderr)  # standard output holds the answers alone
        wanted = settings.input_column or recipe.settings["input_column"]
        if settings.input_column or constant:
            require_columns(table, [wanted], "--input-column")
        if constant and not settings.instruction_column:
            return Questions(table, "", wanted, constant)
        instruction = settings.instruction_column or recipe.settings["instruction_column"]
        require_columns(table, [instruction], "--instruction-column")
        return Questions(table, instruction, wanted if wanted in table.schema else "")
    # not splitlines(), which also cuts at characters that stand inside texts, as U+2028
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if constant:
        return Questions(table_of_lines(name, "input", lines), "", "input", constant)
    return Questions(table_of_lines(name, "instruction", lines), "instruction", "")


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "run", metavar="RUN", type=Path, help="a run of instruction_finetuning.py"
        )
        parser.add_argument(
            "instruction",
            metavar="INSTRUCTION",
            nargs="?",
            help="or, of a run with one --instruction, what that is about; none: conversation",
        )

    settings, sampling, on, arguments = parse_flags(
        [RespondSettings, AnswerSettings, InferenceSettings],
        "Ask a fine-tuned model.",
        add_arguments=add_arguments,
    )
    if arguments.instruction is not None and not arguments.instruction.strip():
        raise UserError("the instruction is empty")
    _check_flags(settings, arguments.instruction)
    device = choose_device(on.device)
    model, recipe = load_model(arguments.run, "instruction")
    model.to(device)
    if on.compile:
        compile_blocks(model)
    encoding = recipe.encoding
    try:
        template = Template(**recipe.settings["template"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{arguments.run}: its checkpoint has no usable template ({error})")

    def show(asked: str | tuple[str, str], seed: int) -> None:
        prompt = encode_text(encoding, template.prompt(*as_question(recipe, asked)))
        for piece in stream_text(model, encoding, prompt, sampling, seed, on.precision):
            print(piece, end="", flush=True)
        print()

    if not (settings.file or arguments.instruction) and sys.stdin.isatty():
        converse(lambda instruction, turn: show(instruction, settings.seed + turn))
    elif arguments.instruction:
        asked, text = arguments.instruction.strip(), settings.input.strip()
        try:
            show((asked, text) if text else asked, settings.seed)
        except PromptTooLong as error:
            raise UserError(str(error)) from None
    else:
        questions = read_questions(settings, recipe)
        _check_prompts(questions, encoding, template, model.config.n_positions)
        answered = answer_all(model, recipe, questions, sampling, settings, on.precision)
        write_answers(answered, questions, Path(settings.out) if settings.out else None)


def _check_flags(settings: RespondSettings, instruction: str | None) -> None:
    if settings.file and instruction:
        raise UserError("give either an instruction or --file, not both")
    if settings.input and not instruction:
        raise UserError("--input belongs to an instruction; give one")
    if settings.file and not Path(settings.file).is_file():
        raise UserError(f"--file {settings.file}: no such file")
    for name in ("instruction_column", "input_column"):
        if getattr(settings, name) and not is_table(Path(settings.file)):
            raise UserError(
                f"--{name.replace('_', '-')} is for a table: --file with a .csv, .tsv, .jsonl, "
                ".json or .parquet file"
            )
    if settings.out and instruction:
        raise UserError("--out is for the answers to --file or standard input")
    if settings.out:
        check_new_table(Path(settings.out), settings.overwrite)
    elif settings.overwrite:
        raise UserError("--overwrite goes with --out; add it")


def _check_prompts(
    questions: Questions, encoding: tiktoken.Encoding, template: Template, context: int
) -> None:
    """Before any work: raises UserError for a row without an instruction, or with too long a
    one."""
    row = 1
    for part in questions.table.parts():
        prompts = [template.prompt(*question) for question in questions.of(part, row)]
        for number, prompt in enumerate(encode_texts(encoding, prompts), start=row):
            if len(prompt) >= context:
                raise UserError(
                    f"{questions.table.name}: instruction {number} has {len(prompt)} tokens with "
                    "the template, which leaves no room for an answer in the model's context of "
                    f"{context}"
                )
        row += len(part)


def answer_all(
    model: GPT2,
    recipe: Recipe,
    questions: Questions,
    sampling: AnswerSettings,
    settings: RespondSettings,
    precision: str,
) -> Iterator[tuple[Part, list[str]]]:
    """The table of `questions`, some rows at a time, with the answers to them."""
    # In chunks, so that what is answered is out before the end, whatever happens then; inside a
    # chunk, prompts of similar length share a batch.
    chunk, row = 8 * settings.batch_size, 0
    bar = tqdm(total=questions.table.rows, unit="answer", disable=None, dynamic_ncols=True)
    for part in questions.table.parts():
        for start in range(0, len(part), chunk):
            rows = part[start : start + chunk]
            asked = questions.of(rows, row + 1)
            seed = settings.seed + row
            yield rows, answer(model, recipe, asked, sampling, settings.batch_size, precision, seed)
            row += len(rows)
            bar.update(len(rows))
    bar.close()


def write_answers(
    answered: Iterator[tuple[Part, list[str]]], questions: Questions, out: Path | None
) -> None:
    """Write the table with one more column to `out`, or print it as JSON Lines. The column is
    `output`, or `answer` where the table has an `output`, which is somebody else's answer."""
    table = questions.table
    wanted = "answer" if "output" in table.schema else "output"
    name = new_names(table, [wanted])[wanted]
    if out is None:
        check_types(table.name, table.schema, ".jsonl")
        for rows, answers in answered:
            for line in json_lines(add_columns(rows, {name: answers})):
                tqdm.write(line)
            sys.stdout.flush()
        return
    count = 0
    with writing_table(out, table.schema | {name: pl.String()}) as write:
        for rows, answers in answered:
            write(add_columns(rows, {name: answers}))
            count += len(rows)
    print(f"{out}: {count:,} rows; the answers are in the column '{name}'")


def converse(show: Callable[[str, int], None]) -> None:
    """Read an instruction, show its answer, until Ctrl-D. Ctrl-C ends an answer, or a line that is
    being typed. `show` gets the instruction and its number in the conversation."""
    with contextlib.suppress(ImportError):  # Windows has none, and its own history
        import readline  # noqa: F401  arrow keys and history in input()

    print("Ctrl-C ends an answer, Ctrl-D the program.")
    turn = 0
    while True:
        try:
            instruction = input("\n> ").strip()
            if instruction:
                turn += 1
                show(instruction, turn - 1)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except PromptTooLong as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    run_script(main, is_filter=True)
