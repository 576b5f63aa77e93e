"""Three splits of (instruction, input, output), and their token ids.

Prompt and response are encoded apart, so that no token straddles the border between them; targets
are the response's tokens and the final <|endoftext|>, nothing of the template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import tiktoken
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt2.batching import IGNORE
from gpt2.support.errors import UserError
from gpt2.support.hub_datasets import pin_revision
from gpt2.support.splits import counts_in_words, data_name, parse_fold, rows_to_keep
from gpt2.tokenizer import encode_texts
from instruction.formats import COLUMNS
from instruction.sources import BUILT_IN, DataSettings, read_source
from instruction.template import Template


@dataclass
class Splits:
    """Three DataFrames with the columns `instruction`, `input` and `output` (String)."""

    name: str
    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    removed: dict[str, int] = field(default_factory=dict)  # reason -> rows
    notes: list[str] = field(default_factory=list)  # files read, and what reading did otherwise
    source: str = ""  # what --data named
    revision: str = ""  # and at which commit, if that is a data set of the hub
    columns: dict[str, str] = field(default_factory=dict)  # flag -> the column that was read

    def items(self) -> list[tuple[str, pl.DataFrame]]:
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]


def load_splits(
    settings: DataSettings, template: Template, encoding: tiktoken.Encoding, seed: int
) -> Splits:
    """Read, clean and split 80/10/10, but for splits that come with the data; the answers of one
    conversation stay in one split. The result depends on data, settings and `seed` alone. Raises
    UserError for data that cannot be used."""
    notes: list[str] = []
    frame, removed, found = read_clean(settings, notes)
    parts = _split(settings.data, frame, removed, seed, settings.fold)
    # After the cut, so that --max-length and the tokenizer do not decide what is held out.
    removed["no room for a response"] = 0
    for split, rows in parts.items():
        parts[split] = with_room(rows, template, encoding, settings.max_length)
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
    return Splits(
        data_name(settings.data, BUILT_IN), **parts, removed=removed, notes=notes,
        source=settings.data, revision=found.revision,
        columns={"instruction_column": found.instruction_column,
                 "input_column": found.input_column, "output_column": found.output_column},
    )  # fmt: skip


def read_clean(
    settings: DataSettings, notes: list[str]
) -> tuple[pl.DataFrame, dict[str, int], DataSettings]:
    """The rows that `settings.data` names (instruction, input and output, String; split and group),
    without empty and repeated ones; {reason: rows removed}; and the settings with what was found:
    columns, and the commit of a data set of the hub. Which files were read is told in `notes`.
    Raises UserError."""
    revision = pin_revision(settings.data, settings.revision)
    found = dataclasses.replace(settings, revision=revision)
    frame = read_source(found, notes)
    removed = {}
    conditions = {f"empty {column}": pl.col(column) != "" for column in COLUMNS}
    if not settings.instruction:  # with one instruction for all, a row is nothing without its input
        del conditions["empty input"]
    conditions["duplicate"] = pl.struct("instruction", "input").is_first_distinct()
    for reason, condition in conditions.items():
        kept = frame.filter(condition)
        removed[reason] = len(frame) - len(kept)
        frame = kept
    return frame, removed, found


def with_room(
    rows: pl.DataFrame, template: Template, encoding: tiktoken.Encoding, max_length: int
) -> pl.DataFrame:
    """The rows whose prompt leaves room for a response in `max_length` tokens."""
    prompts = [template.prompt(*row) for row in rows.select("instruction", "input").rows()]
    lengths = map(len, encode_texts(encoding, prompts))
    # At least one token of the response must fit; <|endoftext|> is a target, takes no room.
    fits = [length + 1 <= max_length for length in lengths]
    return rows.filter(pl.Series(fits, dtype=pl.Boolean))


def _split(
    data: str, frame: pl.DataFrame, removed: dict[str, int], seed: int, fold: str
) -> dict[str, pl.DataFrame]:
    """The rows by split: as given by the column `split`, the others cut from the training rows, a
    tenth each. Rows of one `group` stay together."""
    if fold:
        frame = frame.with_columns(pl.col("split").replace("validation", "train"))
    given = {split: frame.filter(pl.col("split") == split) for split in frame["split"].unique()}
    rows = given.get("train", frame[:0])
    groups = rows.select(pl.col("group").unique(maintain_order=True))
    if len(groups) < 10:
        units = "conversations" if len(groups) < len(rows) else "rows"
        raise UserError(
            f"{data}: {len(groups)} usable {units} are left, at least 10 are needed; removed: "
            f"{counts_in_words(removed) or 'none'}"
        )
    groups = groups.sample(fraction=1, shuffle=True, seed=seed)

    def rows_of(chosen: pl.DataFrame) -> pl.DataFrame:
        return chosen.join(rows, on="group", how="left", maintain_order="left_right")

    tenth = round(len(groups) / 10)
    parts = {}
    for split in ("test", "validation"):
        if split in given:
            parts[split] = given[split]
        elif split == "validation" and fold:
            number, count = parse_fold(fold)
            ends = [len(groups) * (number - 1) // count, len(groups) * number // count]
            parts[split] = rows_of(groups[ends[0] : ends[1]])
            groups = pl.concat([groups[: ends[0]], groups[ends[1] :]])
        else:
            parts[split], groups = rows_of(groups[:tenth]), groups[tenth:]
    parts["train"] = rows_of(groups)
    return {split: part.select(*COLUMNS) for split, part in parts.items()}


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
            prompts = encode_texts(encoding, [template.prompt(*row[:2]) for row in chunk])
            responses = encode_texts(encoding, [row[2] for row in chunk])
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
    return {"name": splits.name, "source": splits.source, "revision": splits.revision, **rows,
            "removed": splits.removed, "notes": splits.notes}  # fmt: skip


def print_splits(splits: Splits, datasets: dict[str, InstructionDataset] | None = None) -> None:
    """Which files were read, how many rows each split has, and what was removed."""
    print(f"data: {splits.name}")
    for note in splits.notes:
        print(f"  {note}")
    for split, frame in splits.items():
        with_input = (frame["input"] != "").sum()
        shown = f"  {split:<10} {len(frame):>7,} rows   {with_input:,} with input"
        if datasets:
            shown += f", {datasets[split].truncated:,} responses truncated"
        print(shown)
    print(f"  rows removed:   {counts_in_words(splits.removed) or 'none'}")


def print_summary(splits: Splits, datasets: dict[str, InstructionDataset]) -> None:
    """What the data is, before any time is spent on it."""
    print_splits(splits, datasets)
    train = datasets["train"]
    responses = train.lengths + 1 - train.prompt_lengths
    print(
        f"  training tokens a row: prompt median {np.median(train.prompt_lengths):.0f}, response "
        f"with its end median {np.median(responses):.0f}, p95 {np.percentile(responses, 95):.0f}, "
        f"longest {responses.max():,}"
    )
