"""Ask a fine-tuned model.

    python instruction/respond.py RUN "Name three colours."
    python instruction/respond.py RUN "Is this positive?" --input "What a day!"
    python instruction/respond.py RUN --file questions.jsonl > answers.jsonl
    python instruction/respond.py RUN                          # a conversation

A file holds one instruction a line, or rows with `instruction` and `input` as JSONL, JSON, CSV or
Parquet; the answers come as JSONL, in its order. In a conversation Ctrl-C ends an answer and Ctrl-D
the program; each instruction stands for itself, as in training.
"""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from gpt2.checkpoint import load_checkpoint
from gpt2.command_line import UserError, flag, parse_flags, run_script
from gpt2.files import read_rows, read_utf8
from gpt2.generation import PromptTooLong, SamplingSettings, generate_steps
from gpt2.model import GPT2
from gpt2.training import autocast, choose_device
from instruction.evaluation import answer_prompts
from instruction.template import Template


@dataclass
class RespondSettings:
    """Asking"""

    input: str = flag("", "what the instruction is about, where it needs something")
    file: str = flag("", "answer every instruction of this file, as JSONL on standard output")
    seed: int = flag(1, "another seed gives other answers, if --temperature is above 0", at_least=0)
    batch_size: int = flag(16, "instructions of a file answered at once", at_least=1)
    precision: str = flag(
        "auto", "arithmetic of matrix products", choices=("auto", "float32", "bfloat16")
    )
    device: str = flag(
        "auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda", "mps")
    )


def stream_answer(
    model: GPT2,
    encoding: tiktoken.Encoding,
    prompt: str,
    sampling: SamplingSettings,
    seed: int = 0,
    precision: str = "auto",
) -> Iterator[str]:
    """The answer to `prompt`, piece by piece, as soon as each is known. A piece never ends inside a
    character, even where a token does. Raises PromptTooLong."""
    tokens = encoding.encode_ordinary(prompt)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with autocast(model.wte.weight.device, precision):
        for (token,) in generate_steps(model, [tokens], sampling, encoding.eot_token, seed):
            if token == encoding.eot_token:
                break
            yield decoder.decode(encoding.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)


def read_instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, input) of each row of a table, or of each line of any other file."""
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"):
        if not path.is_file():
            raise UserError(f"--file {path}: no such file")
        return [(line.strip(), "") for line in read_utf8(path).splitlines() if line.strip()]
    questions = []
    for number, row in enumerate(read_rows(path), start=1):
        instruction, text = row.get("instruction"), row.get("input") or ""
        if not isinstance(instruction, str) or not isinstance(text, str):
            raise UserError(f"{path}: row {number} needs an 'instruction' that is text")
        questions.append((instruction.strip(), text.strip()))
    return questions


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "run", metavar="RUN", type=Path, help="a run of instruction_finetuning.py"
        )
        parser.add_argument(
            "instruction", metavar="INSTRUCTION", nargs="?", help="none: conversation"
        )

    settings, sampling, arguments = parse_flags(
        [RespondSettings, SamplingSettings], "Ask a fine-tuned model.", add_arguments=add_arguments
    )
    if settings.file and arguments.instruction:
        raise UserError("give either an instruction or --file, not both")
    if settings.input and not arguments.instruction:
        raise UserError("--input belongs to an instruction; give one")
    device = choose_device(settings.device)
    questions = read_instructions(Path(settings.file)) if settings.file else []
    model, checkpoint = load_checkpoint(arguments.run, "instruction")
    model.to(device)
    encoding, template = checkpoint.encoding, Template(**checkpoint.settings["template"])

    def show(instruction: str, text: str = "") -> None:
        prompt = template.prompt(instruction, text)
        for piece in stream_answer(
            model, encoding, prompt, sampling, settings.seed, settings.precision
        ):
            print(piece, end="", flush=True)
        print()

    try:
        if settings.file:
            prompts = [
                encoding.encode_ordinary(template.prompt(*question)) for question in questions
            ]
            for number, prompt in enumerate(prompts, start=1):
                if len(prompt) >= model.config.n_positions:
                    raise UserError(
                        f"{settings.file}: row {number} has {len(prompt)} tokens with the "
                        f"template, which leaves no room in a context of {model.config.n_positions}"
                    )
            answers = answer_prompts(
                model, encoding, prompts, sampling, settings.batch_size, settings.precision,
                settings.seed, "answers",
            )  # fmt: skip
            for (instruction, text), answer in zip(questions, answers, strict=True):
                row = {"instruction": instruction, "input": text, "output": answer.text}
                print(json.dumps(row, ensure_ascii=False))
        elif arguments.instruction:
            show(arguments.instruction, settings.input)
        else:
            converse(show)
    except PromptTooLong as error:
        raise UserError(str(error)) from None


def converse(show) -> None:
    """Read instructions until the input ends, and answer each. Without a terminal, no prompts."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  arrow keys and history in input()

        print("Ctrl-C ends an answer, Ctrl-D the program.")
    while True:
        try:
            instruction = input("\n> " if terminal else "").strip()
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:  # at the prompt: a fresh line
            print()
            continue
        if not instruction:
            continue
        try:
            show(instruction)
        except KeyboardInterrupt:
            print(" ...")
        except PromptTooLong as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
