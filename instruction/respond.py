"""Ask a fine-tuned model.

    python instruction/respond.py RUN "Name three colours."
    python instruction/respond.py RUN "Is this positive?" --input "What a day!"
    python instruction/respond.py RUN --file questions.jsonl > answers.jsonl
    python instruction/respond.py RUN                          # a conversation

    cat questions.txt | python instruction/respond.py RUN

A file holds one instruction a line, or rows with `instruction` and `input` as JSONL, JSON, CSV,
TSV or Parquet; a pipe holds lines. The answers come as JSONL, in that order. In a conversation
Ctrl-C ends an answer and Ctrl-D the program; each instruction stands for itself, as in training.
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
import json
from collections.abc import Callable
from dataclasses import dataclass

import tiktoken
from tqdm import tqdm

from gpt2.checkpoint import load_checkpoint
from gpt2.generation import PromptTooLong, SamplingSettings, stream_text
from gpt2.model import GPT2
from gpt2.support.device import DeviceSettings, choose_device
from gpt2.support.errors import UserError
from gpt2.support.files import decode_utf8, read_rows, read_utf8
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from instruction.evaluation import answer_prompts
from instruction.template import Template


@dataclass
class RespondSettings:
    """Asking"""

    input: str = flag("", "what the instruction is about, where it needs something")
    file: str = flag("", "answer every instruction of this file, as JSONL on standard output")
    seed: int = flag(
        1, "another seed gives other answers, if --temperature is above 0; the second instruction "
        "takes the next number, and so on", at_least=0, at_most=2**32 - 1
    )  # fmt: skip
    batch_size: int = flag(16, "instructions of a file answered at once", at_least=1)


def read_instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, input) of each row of a table, or of each line of any other file."""
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"):
        if not path.is_file():
            raise UserError(f"--file {path}: no such file")
        return instruction_lines(read_utf8(path))
    questions = []
    for number, row in enumerate(read_rows(path), start=1):
        instruction, text = row.get("instruction"), row.get("input") or ""
        if not isinstance(instruction, str) or not isinstance(text, str):
            raise UserError(f"{path}: row {number} needs an 'instruction' that is text")
        questions.append((instruction.strip(), text.strip()))
    return questions


def instruction_lines(text: str) -> list[tuple[str, str]]:
    """(instruction, "") of each line that has one."""
    # not splitlines(), which also cuts at characters that stand inside texts, as U+2028
    return [(line.strip(), "") for line in text.split("\n") if line.strip()]


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "run", metavar="RUN", type=Path, help="a run of instruction_finetuning.py"
        )
        parser.add_argument(
            "instruction", metavar="INSTRUCTION", nargs="?", help="none: conversation"
        )

    settings, sampling, on, arguments = parse_flags(
        [RespondSettings, SamplingSettings, DeviceSettings],
        "Ask a fine-tuned model.",
        add_arguments=add_arguments,
    )
    if arguments.instruction is not None and not arguments.instruction.strip():
        raise UserError("the instruction is empty")
    if settings.file and arguments.instruction:
        raise UserError("give either an instruction or --file, not both")
    if settings.input and not arguments.instruction:
        raise UserError("--input belongs to an instruction; give one")
    device = choose_device(on.device)
    conversation = not (settings.file or arguments.instruction) and sys.stdin.isatty()
    source, questions = "", []
    if settings.file:
        source, questions = settings.file, read_instructions(Path(settings.file))
    elif not (arguments.instruction or conversation):
        source = "standard input"
        questions = instruction_lines(decode_utf8(source, sys.stdin.buffer.read()))
    model, recipe = load_checkpoint(arguments.run, "instruction")
    model.to(device)
    encoding = recipe.encoding
    try:
        template = Template(**recipe.settings["template"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{arguments.run}: its checkpoint has no usable template ({error})")

    def show(instruction: str, text: str, seed: int) -> None:
        prompt = encoding.encode_ordinary(template.prompt(instruction, text))
        for piece in stream_text(model, encoding, prompt, sampling, seed, on.precision):
            print(piece, end="", flush=True)
        print()

    if conversation:
        converse(lambda instruction, turn: show(instruction, "", settings.seed + turn))
    elif arguments.instruction:
        try:
            show(arguments.instruction.strip(), settings.input.strip(), settings.seed)
        except PromptTooLong as error:
            raise UserError(str(error)) from None
    else:
        answer_all(model, encoding, template, questions, source, sampling, settings, on.precision)


def answer_all(
    model: GPT2,
    encoding: tiktoken.Encoding,
    template: Template,
    questions: list[tuple[str, str]],
    source: str,
    sampling: SamplingSettings,
    settings: RespondSettings,
    precision: str,
) -> None:
    """Print the answer to each (instruction, input) of `source` as one line of JSON."""
    prompts = [encoding.encode_ordinary(template.prompt(*question)) for question in questions]
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) >= model.config.n_positions:
            raise UserError(
                f"{source}: instruction {number} has {len(prompt)} tokens with the template, which "
                f"leaves no room for an answer in the model's context of {model.config.n_positions}"
            )
    # In chunks, so that what is answered is out before the end, whatever happens then; inside a
    # chunk, prompts of similar length share a batch.
    chunk = 8 * settings.batch_size
    bar = tqdm(total=len(prompts), unit="answer", disable=None, dynamic_ncols=True)
    for start in range(0, len(prompts), chunk):
        answers = answer_prompts(
            model, encoding, prompts[start : start + chunk], sampling, settings.batch_size,
            precision, settings.seed + start,
        )  # fmt: skip
        for (instruction, text), answer in zip(questions[start:], answers, strict=False):
            row = {"instruction": instruction, "input": text, "output": answer.text}
            tqdm.write(json.dumps(row, ensure_ascii=False))
        sys.stdout.flush()
        bar.update(len(answers))
    bar.close()


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
