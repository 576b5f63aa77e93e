"""From a name or a path to three splits of (instruction, input, output), and to token ids.

Prompt and response are encoded apart, so that no token straddles the border between them; targets
are the response's tokens and the final <|endoftext|>, nothing of the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tiktoken
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt2.batching import IGNORE
from gpt2.support.errors import UserError
from gpt2.support.files import TABLE_SUFFIXES, read_rows
from gpt2.support.flags import flag
from gpt2.support.hub import download_dataset
from gpt2.support.splits import data_name, rows_to_keep
from instruction.template import Template

SAMPLE = Path(__file__).parent / "sample_instructions.json"
# name -> repository, file, pinned commit
DOWNLOADS = {
    "alpaca": (
        "yahma/alpaca-cleaned",
        "alpaca_data_cleaned.json",
        "12567cabf869d7c92e573c7c783905fc160e9639",
    ),
    "alpaca-gpt4": (
        "vicgalle/alpaca-gpt4",
        "data/train-00000-of-00001-6ef3991c06080e14.parquet",
        "f7e3ded725cb81e8e564e32feb12860f376f2b51",
    ),
}
BUILT_IN = ("sample", *DOWNLOADS)


@dataclass
class DataSettings:
    """Data"""

    data: str = flag(
        "sample",
        "sample (340 built-in instructions), alpaca or alpaca-gpt4 (52,000 each, downloaded), or a "
        "JSON, JSONL, CSV, TSV or Parquet file, or a folder with one such file",
        may_change=True,
        names=BUILT_IN,
    )
    instruction_column: str = flag("instruction", "column with the instruction")
    input_column: str = flag(
        "input", "column with what the instruction is about; a file need not have it"
    )
    output_column: str = flag("output", "column with the answer")
    split_seed: int = flag(
        1, "which rows are for training, validation and test, and which --max-... keeps; apart "
        "from --seed, so that runs of several seeds are tested on the same rows", at_least=0,
        at_most=2**32 - 1,
    )  # fmt: skip
    max_train: int = flag(
        0, "training rows kept, for a quick trial or a learning curve; 0 keeps all", at_least=0
    )
    max_validation: int = flag(
        0,
        "validation rows kept; 0 keeps all, or the share of them that --max-train keeps",
        at_least=0,
    )
    max_test: int = flag(0, "test rows kept; 0 keeps all", at_least=0)
    max_length: int = flag(512, "tokens kept of prompt and response together", at_least=2)


@dataclass
class Splits:
    """Three DataFrames with the columns `instruction`, `input` and `output` (String)."""

    name: str
    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    removed: dict[str, int] = field(default_factory=dict)  # reason -> rows

    def items(self) -> list[tuple[str, pl.DataFrame]]:
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]


def load_splits(
    settings: DataSettings, template: Template, encoding: tiktoken.Encoding, seed: int
) -> Splits:
    """Read, clean and split 80/10/10. The result depends on data, settings and `seed` alone.
    Raises UserError for data that cannot be used."""
    frame = _read(_find(settings.data), settings)
    removed = {}

    def keep(reason: str, condition: pl.Expr) -> None:
        nonlocal frame
        kept = frame.filter(condition)
        removed[reason] = len(frame) - len(kept)
        frame = kept

    keep("empty instruction", pl.col("instruction") != "")
    keep("empty output", pl.col("output") != "")
    keep("duplicate", pl.struct("instruction", "input").is_first_distinct())
    if len(frame) < 10:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in removed.items() if count)
        raise UserError(
            f"{settings.data}: {len(frame)} usable rows are left, at least 10 are needed; removed: "
            f"{reasons or 'none'}"
        )
    frame = frame.sample(fraction=1, shuffle=True, seed=seed)
    tenth = round(len(frame) / 10)
    parts = {
        "test": frame[:tenth],
        "validation": frame[tenth : 2 * tenth],
        "train": frame[2 * tenth :],
    }
    # After the cut, so that --max-length and the tokenizer do not decide what is held out.
    removed["no room for a response"] = 0
    for split, rows in parts.items():
        prompts = [template.prompt(*row) for row in rows.select("instruction", "input").rows()]
        lengths = map(len, encoding.encode_ordinary_batch(prompts))
        # At least one token of the response must fit; <|endoftext|> is a target, takes no room.
        fits = [length + 1 <= settings.max_length for length in lengths]
        parts[split] = rows.filter(pl.Series(fits, dtype=pl.Boolean))
        removed["no room for a response"] += len(rows) - len(parts[split])
        if parts[split].is_empty():
            raise UserError(
                f"{settings.data}: no prompt of the {split} rows leaves room for a response in "
                f"--max-length {settings.max_length}"
            )
    sizes = {split: len(frame) for split, frame in parts.items()}
    limits = settings.max_train, settings.max_validation, settings.max_test
    for split, rows in rows_to_keep(sizes, *limits).items():
        parts[split] = parts[split][:rows] if rows else parts[split]
    return Splits(data_name(settings.data, BUILT_IN), **parts, removed=removed)


def _find(data: str) -> Path:
    if data == "sample":
        return SAMPLE
    if data in DOWNLOADS:
        repository, file, revision = DOWNLOADS[data]
        return download_dataset(repository, [file], revision)[0]
    path = Path(data)
    if not path.exists():
        names = ", ".join(BUILT_IN)
        raise UserError(f"--data {path}: no such file (built-in names: {names})")
    if not path.is_dir():
        return path
    # The layout of a data set's repository: one table, in the folder or in its subfolder `data`.
    tables = sorted(
        file
        for file in [*path.glob("*"), *path.glob("data/*")]
        if file.suffix.lower() in TABLE_SUFFIXES and file.suffix.lower() != ".txt"
    )
    if len(tables) != 1:
        names = ", ".join(file.name for file in tables[:5]) or "none"
        raise UserError(f"--data {path}: a folder needs one table in it, not {names}; name a file")
    return tables[0]


def _read(path: Path, settings: DataSettings) -> pl.DataFrame:
    rows = read_rows(path)
    columns = {
        "instruction": settings.instruction_column,
        "input": settings.input_column,
        "output": settings.output_column,
    }
    known = list(dict.fromkeys(name for row in rows for name in row))
    for column, name in columns.items():
        if name not in known and (column, name) != ("input", "input"):
            hint = "; a file for classification?" if "label" in known else ""
            raise UserError(
                f"{path}: no field '{name}' (--{column}-column); the rows have: "
                f"{', '.join(known)}{hint}"
            )
    texts: dict[str, list[str]] = {column: [] for column in columns}
    for number, row in enumerate(rows, start=1):
        for column, name in columns.items():
            if name not in row and column != "input":
                raise UserError(f"{path}: row {number} has no field '{name}'")
            value = row.get(name)
            if value is None:
                value = ""  # an empty cell: cleaning counts it
            if not isinstance(value, str):
                raise UserError(
                    f"{path}: row {number}: '{name}' is {type(value).__name__}, not text"
                )
            texts[column].append(value.strip())
    return pl.DataFrame(texts, schema={column: pl.String for column in columns})


_CHUNK = 10_000  # rows whose tokens are Python numbers at the same time


class InstructionDataset(Dataset):
    """Instructions as token ids. Row i is (tokens (length,) int64, targets (length,) int64).

    targets[t] is the token that follows tokens[t], or -100 where no loss is taken: inside the
    prompt, unless `train_on_prompt`. The last target is always <|endoftext|>; an over-long row
    loses the end of its response instead (`truncated` counts these). Texts are encoded as plain
    text: "<|endoftext|>" inside one is thirteen characters, not the special token.

    >>> from gpt2.tokenizer import get_encoding
    >>> template = Template(without_input="Q: {instruction} A:")
    >>> dataset = InstructionDataset([("Say hi.", "", " hi")], template, get_encoding("mini"), 64)
    >>> tokens, targets = dataset[0]
    >>> get_encoding("mini").decode(targets[targets >= 0].tolist())
    ' hi<|endoftext|>'
    """

    def __init__(
        self,
        rows: Sequence[tuple[str, str, str]],
        template: Template,
        encoding: tiktoken.Encoding,
        max_length: int,
        train_on_prompt: bool = False,
    ) -> None:
        pieces, prompt_lengths = [], []
        self.truncated = 0
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            prompts = encoding.encode_ordinary_batch([template.prompt(*row[:2]) for row in chunk])
            responses = encoding.encode_ordinary_batch([row[2] for row in chunk])
            for prompt, response in zip(prompts, responses, strict=True):
                room = max_length - len(prompt)  # the last token, <|endoftext|>, is a target only
                if room < 1 or not response:
                    raise ValueError(f"row {len(pieces)} has no room for a response, or none")
                self.truncated += len(response) > room
                whole = [*prompt, *response[:room], encoding.eot_token]
                pieces.append(np.array(whole, dtype=np.int32))
                prompt_lengths.append(len(prompt))
        self.train_on_prompt = train_on_prompt
        self.prompt_lengths = np.array(prompt_lengths, dtype=np.int64)
        self.lengths = np.array([len(whole) - 1 for whole in pieces], dtype=np.int64)
        # One array for all rows: a tensor for each would take more memory than its tokens.
        self.tokens = np.concatenate([*pieces, np.array([], dtype=np.int32)])
        self.starts = (self.lengths + 1).cumsum() - (self.lengths + 1)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        whole = self.tokens[start : start + self.lengths[index] + 1].astype(np.int64)
        tokens, targets = torch.from_numpy(whole[:-1]), torch.from_numpy(whole[1:]).clone()
        if not self.train_on_prompt:
            targets[: self.prompt_lengths[index] - 1] = IGNORE
        return tokens, targets

    def prompt(self, index: int) -> list[int]:
        """The token ids of row `index` up to where its response begins: what generation gets."""
        start = self.starts[index]
        return self.tokens[start : start + self.prompt_lengths[index]].tolist()


def describe_splits(splits: Splits) -> dict[str, Any]:
    """The part of results.json that says what the data was."""
    rows = {split: len(frame) for split, frame in splits.items()}
    return {"name": splits.name, **rows, "removed": splits.removed}


def print_summary(splits: Splits, datasets: dict[str, InstructionDataset]) -> None:
    """What the data is, before any time is spent on it."""
    print(f"data: {splits.name}")
    for split, frame in splits.items():
        dataset = datasets[split]
        with_input = (frame["input"] != "").sum()
        print(
            f"  {split:<10} {len(frame):>7,} rows   {with_input:,} with input, "
            f"{dataset.truncated:,} responses truncated"
        )
    removed = [f"{reason} {count:,}" for reason, count in splits.removed.items() if count]
    print(f"  rows removed:   {', '.join(removed) or 'none'}")
    train = datasets["train"]
    responses = train.lengths + 1 - train.prompt_lengths
    print(
        f"  training tokens a row: prompt median {np.median(train.prompt_lengths):.0f}, response "
        f"with its end median {np.median(responses):.0f}, p95 {np.percentile(responses, 95):.0f}, "
        f"longest {responses.max():,}"
    )
