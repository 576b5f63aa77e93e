"""What lies in a folder that `--model` names: a run of this project, or a GPT-2 of the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from gpt2.command_line import UserError
from gpt2.durable import whole_folder
from gpt2.model import SIZES, GPT2Config
from gpt2.pretrained import ARCHITECTURES, read_description
from gpt2.tokenizer import get_encoding, load_encoding
from gpt2.tokenizer_files import read_tokenizer_files


@dataclass
class Source:
    """A folder that `--model` names. `kind` is "checkpoint" (of a run of this project) or "hugging
    face" (the layout). A head can go on only where what it is, pooling and labels stay the same."""

    folder: Path
    kind: str
    task: str  # as a checkpoint calls it; of a layout, its architecture
    config: GPT2Config
    head: str  # "language model" or "classification"
    pooling: str | None
    labels: list[str] | None
    encoding: Callable[[], tiktoken.Encoding]


def open_source(folder: Path) -> Source:
    """What lies in `folder`: a run (its best checkpoint counts), a checkpoint, or a GPT-2 in the
    Hugging Face layout. Weights are not read yet. Raises UserError."""
    best = whole_folder(folder / "best")
    folder = best if best.is_dir() else folder
    if (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: this run has not saved a model")
    if (folder / "encoding.json").is_file() and (folder / "config.json").is_file():
        return _read_checkpoint(folder)
    return _read_layout(folder)


def _read_checkpoint(folder: Path) -> Source:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        head = content["head"]
        return Source(
            folder,
            "checkpoint",
            content["task"],
            GPT2Config(**content["model"]),
            head["kind"],
            head.get("pooling"),
            content["settings"].get("labels"),
            lambda: load_encoding(folder),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: not a checkpoint's ({error!r})") from None


def _read_layout(folder: Path) -> Source:
    found = read_description(folder)
    classifier = found.architecture == ARCHITECTURES["classification"]

    def encoding() -> tiktoken.Encoding:
        files = ("vocab.json", "tokenizer.json")
        if any((folder / name).is_file() for name in files):
            return read_tokenizer_files(folder, found.config.vocab_size, found.end_token)
        if found.config.vocab_size != SIZES["gpt2"].vocab_size:
            raise UserError(
                f"{folder}: has no tokenizer (vocab.json and merges.txt, or tokenizer.json) for "
                f"its vocabulary of {found.config.vocab_size:,}"
            )
        return get_encoding("gpt2")

    return Source(
        folder,
        "hugging face",
        found.architecture,
        found.config,
        "classification" if classifier else "language model",
        "last" if classifier else None,
        found.labels if classifier else None,
        encoding,
    )
