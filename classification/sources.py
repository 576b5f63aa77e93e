"""Chapter 1, where reviews come from: a sample, a download, a folder, anybody's own file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from gpt2.support.arrow_tables import saved_files
from gpt2.support.cells import label_of, text_of
from gpt2.support.errors import UserError
from gpt2.support.files import is_table, read_columns, read_utf8, table_suffix
from gpt2.support.flags import flag, flag_name
from gpt2.support.hub import download_dataset
from gpt2.support.hub_datasets import name_classes, open_dataset
from gpt2.support.splits import SPLIT_NAMES, data_name, hub_name

BUILT_IN = ("sample", "imdb")
SAMPLE = Path(__file__).parent / "sample_reviews.csv"
# As the stanfordnlp/imdb dataset card names them, where the file itself names them neg and pos.
IMDB_LABELS = {"0": "negative", "1": "positive", "neg": "negative", "pos": "positive"}
IMDB_FILES = ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet")
IMDB_REVISION = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"


@dataclass
class DataSettings:
    """Data"""

    data: str = flag(
        "sample",
        "sample (720 built-in reviews), imdb (50,000 reviews, downloaded), a CSV, TSV, JSON, "
        "JSONL, Parquet or Arrow file, also as .gz, .xz or .zip, a folder with train and test "
        "files or from datasets' save_to_disk, the aclImdb folder, or a data set of the hub: "
        "OWNER/NAME or OWNER/NAME:CONFIGURATION",
        may_change=True,
        names=BUILT_IN,
    )
    revision: str = flag(
        "", "commit, branch or tag of a data set of the hub; left out, the newest; a run records "
        "the commit, and resumed goes on with it", may_change=True,
    )  # fmt: skip
    text_column: str = flag("text", "column with the text; several, joined: title,body")
    label_column: str = flag("label", "column with the class; any strings or numbers")
    split_column: str = flag("", "column that says train, validation or test, if there is one")
    columns: str = flag("", "names for the columns of a file without a header line: label,text")
    validation_share: float = flag(
        0.2,
        "share cut from the training rows, if no validation split is given",
        above=0,
        at_most=0.5,
    )
    test_share: float = flag(
        0.2, "share cut from all rows, if no test split is given", above=0, at_most=0.5
    )
    fold: str = flag(
        "", "K/N: validate on the K-th of N parts of the training rows, for cross-validation",
    )  # fmt: skip
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


def read_source(settings: DataSettings, notes: list[str]) -> tuple[str, dict[str, pl.DataFrame]]:
    """The data's name and its raw splits, those of "train", "validation", "test" that it has:
    frames with `text` and `label` (String, null where missing); for aclImdb `group`, the film.
    Which files were read, and what of them was not, is told in `notes`.

    Raises UserError if the data is missing or is not as the settings say.
    """
    name, path = data_name(settings.data, BUILT_IN), Path(settings.data)
    if settings.data == "sample":
        _refuse_columns(settings)
        return name, _read_file(SAMPLE, DataSettings(split_column="split"), notes)
    if settings.data == "imdb":
        _refuse_columns(settings)
        train, _ = download_dataset("stanfordnlp/imdb", IMDB_FILES, IMDB_REVISION)
        return name, _read_imdb(train.parent.parent, notes)
    if hub_name(settings.data):
        dataset = open_dataset(settings.data, settings.revision, notes)
        return name, _read_splits(dataset.files, settings, notes, dataset.class_names)
    if not path.exists():
        raise UserError(
            f"--data {path}: no such file or folder (built-in names: sample, imdb; of the hub: "
            "OWNER/NAME)"
        )
    if path.is_file():
        return name, _read_file(path, settings, notes)
    if (path / "plain_text").is_dir():
        _refuse_columns(settings)
        return name, _read_imdb(path, notes)
    if (path / "train" / "pos").is_dir():
        _refuse_columns(settings)
        return name, {split: _read_acl_imdb(path / split, notes) for split in ("train", "test")}
    return name, _read_splits(_split_files(path), settings, notes, {})


def _read_splits(
    found: dict[str, list[Path]],
    settings: DataSettings,
    notes: list[str],
    class_names: dict[str, list[str]],
) -> dict[str, pl.DataFrame]:
    """The rows of each split's files, with `class_names` where labels are numbers. A test split
    without labels, as those of competitions are, is left out."""
    if settings.split_column:
        raise UserError(f"--split-column goes with one file; in {settings.data} the files split")
    parts = {}
    for split, files in found.items():
        if split == "test" and not _has_labels(files[0], settings):
            notes.append(
                f"{', '.join(map(str, files))}: left out, as it has no column "
                f"'{settings.label_column}'; test rows are cut from train"
            )
            continue
        frame = pl.concat([_read_file(file, settings, notes)["train"] for file in files])
        if settings.label_column in class_names:
            label = name_classes(frame["label"], class_names[settings.label_column])
            frame = frame.with_columns(label=label)
        if split == "test" and frame["label"].is_null().all():
            notes.append("the test split is left out, as no row of it has a label; test rows are "
                         "cut from train")  # fmt: skip
        else:
            parts[split] = frame
    return parts


def _has_labels(file: Path, settings: DataSettings) -> bool:
    return settings.label_column in read_columns(file, _column_names(settings))


def _refuse_columns(settings: DataSettings) -> None:
    for field in dataclasses.fields(settings):
        if "column" in field.name and getattr(settings, field.name) != field.default:
            raise UserError(
                f"{flag_name(field.name)}: --data {settings.data} has columns of its own"
            )


def _column_names(settings: DataSettings) -> list[str] | None:
    return [name.strip() for name in settings.columns.split(",")] if settings.columns else None


def _read_file(path: Path, settings: DataSettings, notes: list[str]) -> dict[str, pl.DataFrame]:
    """The text and label columns of one table, by split; without --split-column all are train.
    Several text columns are joined by a space."""
    columns = read_columns(path, _column_names(settings), notes)
    text_columns = [name.strip() for name in settings.text_column.split(",")]
    for name, flag_shown in (
        *((name, "--text-column") for name in text_columns),
        (settings.label_column, "--label-column"),
        (settings.split_column, "--split-column"),
    ):
        if name or flag_shown != "--split-column":
            _require_column(path, list(columns), name, flag_shown)
    texts = [
        [text_of(value, path, row, name) for row, value in _cells(path, columns, name)]
        for name in text_columns
    ]
    labels = [
        label_of(value, path, row, settings.label_column)
        for row, value in _cells(path, columns, settings.label_column)
    ]
    frame = pl.DataFrame(
        {"text": texts[0], "label": labels}, schema={"text": pl.String, "label": pl.String}
    )
    if len(texts) > 1:
        parts = [pl.Series(column, dtype=pl.String) for column in texts]
        frame = frame.with_columns(text=pl.concat_str(parts, separator=" ", ignore_nulls=True))
    notes.append(f"read {path}: {len(frame):,} rows")
    kinds = {type(value).__name__ for _, value in _cells(path, columns, settings.label_column)}
    if len(kinds - {"NoneType"}) > 1:
        notes.append(
            f"{path}: labels are {', '.join(sorted(kinds - {'NoneType'}))}; 1 and 1.0 and '1' are "
            "one class"
        )
    if not settings.split_column:
        return {"train": frame}
    return _by_split(path, frame, columns, settings.split_column)


def _cells(path: Path, columns: dict[str, Sequence[Any]], name: str) -> Iterator[tuple[int, Any]]:
    """(row, value) of a column, counted from 1."""
    column = columns[name]
    if isinstance(column, pl.Series):
        if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
            raise UserError(
                f"{path}: column '{name}' is {column.dtype} from row 1 on, which is no text"
            )
        column = column.to_list()
    return enumerate(column, start=1)


def _require_column(path: Path, there: list[str], name: str, flag_shown: str) -> None:
    if name not in there:
        hint = ""
        if table_suffix(path) in ("", ".csv", ".tsv", ".txt"):
            hint = " (if that is no header line, name the columns with --columns)"
        raise UserError(
            f"{path}: no column '{name}' ({flag_shown}); the file has: {', '.join(there)}{hint}"
        )


def _by_split(
    path: Path, frame: pl.DataFrame, columns: dict[str, Sequence[Any]], column: str
) -> dict[str, pl.DataFrame]:
    splits = []
    for row, value in _cells(path, columns, column):
        split = SPLIT_NAMES.get(str(value).strip().lower())
        if split is None:
            raise UserError(
                f"{path}: row {row} has '{value}' in column '{column}'; it must be train, "
                "validation or test"
            )
        splits.append(split)
    found = pl.Series(splits, dtype=pl.String)
    return {split: frame.filter(found == split) for split in dict.fromkeys(splits)}


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The table files of each split: `train.csv`, `test-00000-of-00001.parquet`, in the folder or
    in its subfolder `data`; or what datasets' `save_to_disk` writes, a folder a split or one for
    all rows."""
    saved = saved_files(folder)
    if saved:
        return {"train": saved}
    files: dict[str, list[Path]] = {}
    for file in sorted([*folder.glob("*"), *folder.glob("data/*")]):
        split = SPLIT_NAMES.get(re.split(r"[-_.]", file.name.lower())[0])
        if split and is_table(file):
            files.setdefault(split, []).append(file)
        elif split and saved_files(file):
            files.setdefault(split, []).extend(saved_files(file))
    if "train" not in files:
        raise UserError(
            f"{folder}: no train file in it; name the files train.csv and test.csv (or .tsv, "
            ".json, .jsonl, .parquet), or name one file"
        )
    return files


def _read_imdb(folder: Path, notes: list[str]) -> dict[str, pl.DataFrame]:
    """The layout of the stanfordnlp/imdb dataset repository."""
    parts = {}
    for split in ("train", "test"):
        files = sorted((folder / "plain_text").glob(f"{split}-*.parquet"))
        if not files:
            raise UserError(f"{folder}: no plain_text/{split}-*.parquet in it")
        frames = [_read_file(file, DataSettings(), notes)["train"] for file in files]
        parts[split] = pl.concat(frames).with_columns(pl.col("label").replace(IMDB_LABELS))
    return parts


def _read_acl_imdb(folder: Path, notes: list[str]) -> pl.DataFrame:
    """One split of the original aclImdb folder: `pos/0_9.txt`, and line 0 of `urls_pos.txt` is the
    address of that review's film."""
    rows = []
    for short, label in (("neg", "negative"), ("pos", "positive")):
        address_file = folder / f"urls_{short}.txt"
        if not address_file.is_file() or not (folder / short).is_dir():
            raise UserError(f"{folder}: needs {short}/ and urls_{short}.txt, as aclImdb has them")
        addresses = read_utf8(address_file).splitlines()
        files = sorted((folder / short).glob("*.txt"), key=lambda path: _review_number(path))
        for file in files:
            number = _review_number(file)
            if number >= len(addresses):
                raise UserError(f"{file}: {address_file.name} has no line {number + 1}")
            film = re.search(r"tt\d+", addresses[number])
            rows.append((read_utf8(file), label, film[0] if film else addresses[number]))
    notes.append(f"read {folder}: {len(rows):,} files")
    schema = {"text": pl.String, "label": pl.String, "group": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _review_number(path: Path) -> int:
    number = path.name.split("_")[0]
    if not number.isdecimal():
        raise UserError(f"{path}: not named as aclImdb names its files, number_rating.txt")
    return int(number)
