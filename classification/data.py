"""Chapter 1, the data: from a name or a path to three clean splits of (text, label).

read_source   a file, a folder or a download  ->  raw rows of each split that there is
clean         entities, line breaks, white space, empty rows, duplicates; all of it counted
_split_off    cut validation (and test, where there is none) from what is there
IMDbDataset   token ids and a class id for each row
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from classification.cleaning import clean
from classification.sources import DataSettings, read_source
from gpt2.support.errors import UserError
from gpt2.support.hub_datasets import pin_revision
from gpt2.support.splits import counts_in_words, parse_fold, rows_to_keep
from gpt2.support.tables import percent
from gpt2.tokenizer import Encoding, encode_texts, tokens_around


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
    notes: list[str] = field(default_factory=list)  # files read, and what reading did otherwise
    source: str = ""  # what --data named
    revision: str = ""  # and at which commit, if that is a data set of the hub

    def items(self) -> list[tuple[str, pl.DataFrame]]:
        """(name, rows) of the three splits."""
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]

    def only(self, *names: str) -> list[tuple[str, pl.DataFrame]]:
        """(name, rows) of some of the splits."""
        return [(name, rows) for name, rows in self.items() if name in names]


def load_splits(settings: DataSettings, seed: int) -> Splits:
    """Read, clean and split what `settings.data` names.

    The result depends on the data, the settings and `seed` alone; the baseline calls this as well,
    so both see the same rows. Raises UserError for data that cannot be used.
    """
    source = settings.data
    notes: list[str] = []
    revision = pin_revision(source, settings.revision)
    name, parts = read_source(dataclasses.replace(settings, revision=revision), notes)
    if "train" not in parts:
        raise UserError(f"{source}: no row is marked as train")
    parts, cleaned, removed = clean(parts, notes)
    _check_rows(source, parts, removed)
    if settings.fold and "validation" in parts:
        parts["train"] = pl.concat([parts["train"], parts.pop("validation")])
    for split, share in (("test", settings.test_share), ("validation", settings.validation_share)):
        if split == "validation" and settings.fold:
            parts["train"], parts[split] = _take_fold(source, parts["train"], settings.fold, seed)
        elif split not in parts:
            parts["train"], parts[split] = _split_off(
                source, parts["train"], split, share, seed, removed
            )
    classes = parts["train"]["label"].n_unique()
    if 0 < settings.max_train < classes:
        raise UserError(f"--max-train {settings.max_train} is fewer than the {classes} classes")
    sizes = {split: len(frame) for split, frame in parts.items()}
    limits = settings.max_train, settings.max_validation, settings.max_test
    for split, rows in rows_to_keep(sizes, *limits).items():
        if rows:
            parts[split] = _keep(parts[split], rows, seed)
    _check_rows(source, parts, removed)  # again: cutting may have lost a class

    labels = sorted(parts["train"]["label"].unique().to_list(), key=_label_order)
    frames = {
        split: frame.select("text", pl.col("label").replace_strict(labels, range(len(labels))))
        for split, frame in parts.items()
    }
    return Splits(
        name, labels, **frames, removed=removed, cleaned=cleaned, notes=notes, source=source,
        revision=revision,
    )  # fmt: skip


def _check_rows(source: str, parts: dict[str, pl.DataFrame], removed: dict[str, int]) -> None:
    for split, frame in parts.items():
        if frame.is_empty():
            raise UserError(
                f"{source}: no {split} rows with a text and a label are left{_gone(removed)}"
            )
    _check_labels(source, parts, removed)


def _gone(removed: dict[str, int]) -> str:
    """What cleaning removed, as the end of a message."""
    shown = counts_in_words(removed)
    return f" (removed: {shown})" if shown else ""


def _check_labels(source: str, parts: dict[str, pl.DataFrame], removed: dict[str, int]) -> None:
    known = parts["train"]["label"].unique()
    if len(known) < 2:
        raise UserError(
            f"{source}: all training rows have the same label, '{known[0]}'; a classifier needs at "
            f"least two{_gone(removed)}"
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
        value = float(label)
    except ValueError:
        value = math.nan
    return (0, value, label) if math.isfinite(value) else (1, 0.0, label)


def _split_off(
    source: str,
    frame: pl.DataFrame,
    split: str,
    share: float,
    seed: int,
    removed: dict[str, int],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut `share` of the rows off for `split`, stratified by label. Rows of one `group` stay
    together; the share is then rounded to tenths."""
    # here, because it takes a second that predict.py need not wait for
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split

    labels = frame["label"].to_numpy()
    try:
        if "group" in frame.columns:
            folds = StratifiedGroupKFold(10, shuffle=True, random_state=seed)
            tenths = [fold for _, fold in folds.split(labels, labels, frame["group"].to_numpy())]
            cut = np.concatenate(tenths[: max(1, round(10 * share))])
        else:
            _, cut = train_test_split(
                np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
            )
    except ValueError:  # a class with one row, fewer rows than classes, too few groups
        counts = frame["label"].value_counts().sort("count", "label")
        rarest, rows = counts.row(0)
        held_out, classes = math.ceil(share * len(frame)), len(counts)
        fewest = min(held_out, len(frame) - held_out)
        if rows > 1 and fewest < classes and "group" not in frame.columns:
            raise UserError(
                f"{source}: --{split}-share {share:g} cuts {held_out} of {len(frame)} rows off, "
                f"but there are {classes} classes, and each needs a row on both sides; another "
                f"share, or more rows{_gone(removed)}"
            ) from None
        raise UserError(
            f"{source}: too few rows to cut {100 * share:.0f} % off by label; label '{rarest}' has "
            f"{rows}; drop or merge rare labels; is --label-column right?{_gone(removed)}"
        ) from None
    is_cut = np.zeros(len(labels), dtype=bool)
    is_cut[cut] = True
    return frame.filter(~is_cut), frame.filter(is_cut)


def _take_fold(
    source: str, frame: pl.DataFrame, fold: str, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows without fold "K/N" and those of it, stratified by label; rows of one `group` stay
    together."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    number, count = parse_fold(fold)
    labels = frame["label"].to_numpy()
    grouped = "group" in frame.columns
    make = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = make(count, shuffle=True, random_state=seed)
    try:
        cut = list(folds.split(labels, labels, frame["group"].to_numpy() if grouped else None))
    except ValueError as error:  # fewer rows than folds
        raise UserError(f"{source}: --fold {fold} is not possible ({error})") from None
    is_cut = np.zeros(len(labels), dtype=bool)
    is_cut[cut[number - 1][1]] = True
    return frame.filter(~is_cut), frame.filter(is_cut)


def _keep(frame: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """`rows` of the rows, chosen by `seed`, each class in its share: row k (from 0) of the n rows
    of a class is sorted by (k + 0.5) / n."""
    place = (pl.int_range(pl.len()).over("label") + 0.5) / pl.len().over("label")
    return frame.sample(fraction=1, shuffle=True, seed=seed).sort(place, maintain_order=True)[:rows]


TRUNCATIONS = ("head", "tail", "head-tail")


def truncate(tokens: list[int], max_length: int, truncation: str) -> list[int]:
    """At most `max_length` of `tokens`: the first, the last, or a quarter from the beginning and
    three quarters from the end. Reviews announce their subject first and their verdict last (Sun et
    al. 2019, "How to Fine-Tune BERT for Text Classification?", section 5.3.1).

    >>> truncate([1, 2, 3, 4, 5, 6], 4, "head-tail")
    [1, 4, 5, 6]
    """
    if len(tokens) <= max_length:
        return tokens
    first = {"head": max_length, "tail": 0, "head-tail": max_length // 4}[truncation]
    return tokens[:first] + tokens[len(tokens) - (max_length - first) :]


_CHUNK = 10_000  # texts whose tokens are Python numbers at the same time


class IMDbDataset(Dataset):
    """Reviews as token ids. Row i is (tokens (length,) int64, class id () int64).

    A text keeps `max_length` tokens, those that `truncation` says; an encoder's special tokens
    around it are among them. It is encoded as plain text: "<|endoftext|>" inside a review is
    thirteen characters, not the special token.

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
        encoding: Encoding,
        max_length: int,
        truncation: str = "head",
    ) -> None:
        pieces, full_lengths = [], []
        before, after = tokens_around(encoding)
        around = len(before) + len(after)
        for start in range(0, len(texts), _CHUNK):
            encoded = encode_texts(encoding, texts[start : start + _CHUNK])
            full_lengths += [around + len(tokens) for tokens in encoded]
            kept = (truncate(tokens, max_length - around, truncation) for tokens in encoded)
            pieces += [np.array([*before, *tokens, *after], dtype=np.int32) for tokens in kept]
        self.full_lengths = np.array(full_lengths, dtype=np.int64)
        if len(texts) and self.full_lengths.min() == 0:
            raise ValueError(f"row {self.full_lengths.argmin()} has no tokens")
        self.lengths = np.minimum(self.full_lengths, max_length)
        # One array for all rows: a tensor for each would take more memory than its tokens.
        self.tokens = np.concatenate([*pieces, np.array([], dtype=np.int32)])
        self.ends = self.lengths.cumsum()
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start, end = self.ends[index] - self.lengths[index], self.ends[index]
        return torch.from_numpy(self.tokens[start:end].astype(np.int64)), self.labels[index]


def describe_splits(splits: Splits) -> dict[str, Any]:
    """The part of results.json that says what the data was."""
    rows = {split: len(frame) for split, frame in splits.items()}
    return {"name": splits.name, "source": splits.source, "revision": splits.revision, **rows,
            "labels": splits.labels, "removed": splits.removed,
            "cleaned": splits.cleaned, "notes": splits.notes}  # fmt: skip


def print_splits(splits: Splits) -> None:
    """Which files were read, how many rows each split has, and what cleaning did."""
    print(f"data: {splits.name}")
    for note in splits.notes:
        print(f"  {note}")
    for split, frame in splits.items():
        counts = np.bincount(frame["label"].to_numpy(), minlength=len(splits.labels))
        shown = [f"{label} {count:,}" for label, count in zip(splits.labels, counts, strict=True)]
        print(f"  {split:<10} {len(frame):>7,} rows   {', '.join(shown[:8])}", end="")
        print(f", and {len(shown) - 8} more classes" if len(shown) > 8 else "")
    changed = [f"{step} in {count:,}" for step, count in splits.cleaned.items() if count]
    print(f"  texts changed:  {', '.join(changed) or 'none'}")
    print(f"  rows removed:   {counts_in_words(splits.removed) or 'none'}")


def is_lopsided(counts: np.ndarray | list[int]) -> bool:
    """Whether one class has more than twice as many rows as another."""
    return max(counts) > 2 * min(counts)


def print_summary(splits: Splits, train: IMDbDataset) -> None:
    """What the data is, before any time is spent on it."""
    print_splits(splits)
    counts = np.bincount(splits.train["label"].to_numpy(), minlength=len(splits.labels))
    shares = counts / len(splits.train)
    if is_lopsided(counts):
        rare, common = splits.labels[shares.argmin()], splits.labels[shares.argmax()]
        print(
            f"  warning: lopsided classes: '{common}' has {percent(shares.max())} of the training "
            f"rows, '{rare}' {percent(shares.min())}; read F1 rather than accuracy"
        )
    lengths = train.full_lengths
    print(
        f"  training tokens a text: median {np.median(lengths):.0f}, p95 "
        f"{np.percentile(lengths, 95):.0f}, longest {lengths.max():,}; "
        f"{percent(np.mean(lengths > train.lengths))} truncated"
    )
