"""Chapter 1, the data: from a name or a path to three clean splits of (text, label).

read_source   a file, a folder or a download  ->  raw rows of each split that there is
clean         entities, line breaks, white space, empty rows, duplicates; all of it counted
split         cut validation (and test, where there is none) from what is there
IMDbDataset   token ids and a class id for each row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import tiktoken
import torch
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from classification.cleaning import clean
from classification.sources import DataSettings, read_source
from gpt2.command_line import UserError


@dataclass
class Splits:
    """Three DataFrames with the columns `text` (String) and `label` (Int64, an index into `labels`,
    the class names), and what was done to get them."""

    name: str
    labels: list[str]
    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    removed: dict[str, int] = field(default_factory=dict)  # reason -> rows
    cleaned: dict[str, int] = field(default_factory=dict)  # step -> texts that it changed

    def items(self) -> list[tuple[str, pl.DataFrame]]:
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]


def load_splits(settings: DataSettings, seed: int) -> Splits:
    """Read, clean and split what `settings.data` names.

    The result depends on the data, the settings and `seed` alone; the baseline calls this as well,
    so both see the same rows. Raises UserError for data that cannot be used.
    """
    name, parts = read_source(settings)
    parts, cleaned, removed = clean(parts)
    if "train" not in parts or parts["train"].is_empty():
        raise UserError(f"{settings.data}: no rows to train on are left after cleaning")
    _check_labels(settings.data, parts)

    if "test" not in parts:
        parts["train"], parts["test"] = _cut(
            settings.data, parts["train"], settings.test_share, seed
        )
    if "validation" not in parts:
        parts["train"], parts["validation"] = _cut(
            settings.data, parts["train"], settings.validation_share, seed
        )

    labels = sorted(parts["train"]["label"].unique().to_list(), key=_label_order)
    limits = {
        "train": settings.max_train,
        "validation": settings.max_validation,
        "test": settings.max_test,
    }
    frames = {}
    for split, frame in parts.items():
        frame = frame.select("text", pl.col("label").replace_strict(labels, range(len(labels))))
        if limits[split] and len(frame) > limits[split]:
            frame = frame.sample(limits[split], shuffle=True, seed=seed)
        frames[split] = frame
    return Splits(name, labels, **frames, removed=removed, cleaned=cleaned)


def _check_labels(source: str, parts: dict[str, pl.DataFrame]) -> None:
    known = parts["train"]["label"].unique()
    if len(known) < 2:
        raise UserError(
            f"{source}: all training rows have the same label, '{known[0]}'; a classifier needs at "
            "least two"
        )
    for split, frame in parts.items():
        unseen = frame.filter(~pl.col("label").is_in(known.implode()))
        if not unseen.is_empty():
            names = ", ".join(f"'{label}'" for label in sorted(known.to_list(), key=_label_order))
            raise UserError(
                f"{source}: a row of the {split} split has the label '{unseen['label'][0]}', which "
                f"no training row has (they have {names})"
            )


def _label_order(label: str) -> tuple[int, float, str]:
    """Numbers by value ("2" before "10"), then everything else by its characters."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _cut(
    source: str, frame: pl.DataFrame, share: float, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut `share` of the rows off, stratified by label. Rows of one `group` stay together."""
    labels = frame["label"].to_numpy()
    if "group" in frame.columns:
        folds = StratifiedGroupKFold(round(1 / share), shuffle=True, random_state=seed)
        kept, cut = next(folds.split(labels, labels, frame["group"].to_numpy()))
    else:
        try:
            kept, cut = train_test_split(
                np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
            )
        except ValueError as error:  # a class with one row, or fewer rows than classes
            raise UserError(f"{source}: the rows cannot be split by label ({error})") from None
    return frame[np.sort(kept)], frame[np.sort(cut)]


class IMDbDataset(Dataset):
    """Reviews as token ids. Row i is (tokens (length,) int64, class id () int64).

    A text keeps its first `max_length` tokens. It is encoded as plain text: "<|endoftext|>" inside
    a review is thirteen characters, not the special token.

    >>> from gpt2.tokenizer import get_encoding
    >>> dataset = IMDbDataset(["A fine film", "Dull"], [1, 0], get_encoding("mini"), max_length=2)
    >>> dataset[0]
    (tensor([  32, 2147]), tensor(1))
    >>> dataset.full_lengths.tolist(), dataset.lengths.tolist()
    ([3, 2], [2, 2])
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        encoding: tiktoken.Encoding,
        max_length: int,
    ) -> None:
        encoded = encoding.encode_ordinary_batch(list(texts))
        self.full_lengths = np.array([len(tokens) for tokens in encoded], dtype=np.int64)
        if len(encoded) and self.full_lengths.min() == 0:
            raise ValueError(f"row {self.full_lengths.argmin()} has no tokens")
        self.lengths = np.minimum(self.full_lengths, max_length)
        # int32 halves the memory of a dataset that may hold millions of rows
        self.tokens = [torch.tensor(tokens[:max_length], dtype=torch.int32) for tokens in encoded]
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tokens[index].long(), self.labels[index]


def describe_splits(splits: Splits) -> dict[str, Any]:
    """The part of results.json that says what the data was."""
    rows = {split: len(frame) for split, frame in splits.items()}
    return {"name": splits.name, **rows, "labels": splits.labels, "removed": splits.removed,
            "cleaned": splits.cleaned}  # fmt: skip


def print_summary(splits: Splits, train: IMDbDataset) -> None:
    """What the data is, before any time is spent on it."""
    print(f"data: {splits.name}")
    for split, frame in splits.items():
        counts = np.bincount(frame["label"].to_numpy(), minlength=len(splits.labels))
        shown = [f"{label} {count:,}" for label, count in zip(splits.labels, counts, strict=True)]
        print(f"  {split:<10} {len(frame):>7,} rows   {', '.join(shown[:8])}", end="")
        print(f", and {len(shown) - 8} more classes" if len(shown) > 8 else "")
    changed = [f"{step} in {count:,}" for step, count in splits.cleaned.items() if count]
    print(f"  texts changed:  {', '.join(changed) or 'none'}")
    removed = [f"{reason} {count:,}" for reason, count in splits.removed.items() if count]
    print(f"  rows removed:   {', '.join(removed) or 'none'}")

    shares = np.bincount(splits.train["label"].to_numpy()) / len(splits.train)
    if shares.max() > 2 * shares.min():
        rare, common = splits.labels[shares.argmin()], splits.labels[shares.argmax()]
        print(
            f"  warning: lopsided classes: '{common}' has {shares.max():.1%} of the training rows, "
            f"'{rare}' {shares.min():.1%}; read F1 rather than accuracy"
        )
    lengths = train.full_lengths
    print(
        f"  training tokens a text: median {np.median(lengths):.0f}, p95 "
        f"{np.percentile(lengths, 95):.0f}, longest {lengths.max():,}; "
        f"{np.mean(lengths > train.lengths):.1%} truncated"
    )
