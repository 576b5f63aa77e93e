"""Chapter 1, where reviews come from: a sample, a download, a folder, anybody's own file."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gpt2.support.errors import UserError
from gpt2.support.files import TABLE_SUFFIXES, read_table, read_utf8
from gpt2.support.flags import flag, flag_name
from gpt2.support.hub import download_dataset
from gpt2.support.splits import data_name

BUILT_IN = ("sample", "imdb")
SAMPLE = Path(__file__).parent / "sample_reviews.csv"
IMDB_LABELS = {"0": "negative", "1": "positive"}  # as the stanfordnlp/imdb dataset card names them
IMDB_FILES = ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet")
IMDB_REVISION = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip


@dataclass
class DataSettings:
    """Data"""

    data: str = flag(
        "sample",
        "sample (720 built-in reviews), imdb (50,000 reviews, downloaded), a CSV, TSV, JSON, JSONL "
        "or Parquet file, a folder with train and test files, or the aclImdb folder",
        may_change=True,
        names=BUILT_IN,
    )
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


def read_source(settings: DataSettings) -> tuple[str, dict[str, pl.DataFrame]]:
    """The data's name and its raw splits, those of "train", "validation", "test" that it has:
    frames with `text` and `label` (String, null where missing); for aclImdb `group`, the film.

    Raises UserError if the data is missing or is not as the settings say.
    """
    name, path = data_name(settings.data, BUILT_IN), Path(settings.data)
    if settings.data == "sample":
        _refuse_columns(settings)
        frame = read_table(SAMPLE)
        return name, _by_split_column(SAMPLE, frame, frame.select("text", "label"), "split")
    if settings.data == "imdb":
        _refuse_columns(settings)
        train, _ = download_dataset("stanfordnlp/imdb", IMDB_FILES, IMDB_REVISION)
        return name, _read_imdb(train.parent.parent)
    if not path.exists():
        raise UserError(f"--data {path}: no such file or folder (built-in names: sample, imdb)")
    if path.is_file():
        frame = read_table(path, _column_names(settings))
        selected = _select(path, frame, settings)
        if settings.split_column:
            return name, _by_split_column(path, frame, selected, settings.split_column)
        return name, {"train": selected}
    if (path / "plain_text").is_dir():
        _refuse_columns(settings)
        return name, _read_imdb(path)
    if (path / "train" / "pos").is_dir():
        _refuse_columns(settings)
        return name, {split: _read_acl_imdb(path / split) for split in ("train", "test")}
    if settings.split_column:
        raise UserError(f"--split-column goes with one file; in the folder {path} the files split")
    return name, {
        split: pl.concat(
            [_select(file, read_table(file, _column_names(settings)), settings) for file in found]
        )
        for split, found in _split_files(path).items()
    }


def _refuse_columns(settings: DataSettings) -> None:
    for field in dataclasses.fields(settings):
        if "column" in field.name and getattr(settings, field.name) != field.default:
            raise UserError(
                f"{flag_name(field.name)}: --data {settings.data} has columns of its own"
            )


def _column_names(settings: DataSettings) -> list[str] | None:
    return [name.strip() for name in settings.columns.split(",")] if settings.columns else None


def _select(path: Path, frame: pl.DataFrame, settings: DataSettings) -> pl.DataFrame:
    """The text and label columns, as strings. Several text columns are joined by a space."""
    text_columns = [name.strip() for name in settings.text_column.split(",")]
    for name, flag_shown in (
        *((name, "--text-column") for name in text_columns),
        (settings.label_column, "--label-column"),
    ):
        _require_column(path, frame, name, flag_shown)
    text = [_as_text(path, frame[name]) for name in text_columns]
    label = _as_text(path, frame[settings.label_column])
    return pl.select(
        text=pl.concat_str(text, separator=" ", ignore_nulls=True) if len(text) > 1 else text[0],
        label=label,
    )


def _as_text(path: Path, column: pl.Series) -> pl.Series:
    """A column as strings; whole numbers stored as floats, as columns with gaps are, lose ".0"."""
    try:
        if column.dtype.is_float():
            column = column.fill_nan(None)
            whole = column.drop_nulls()
            if whole.is_finite().all() and (whole == whole.round()).all():
                column = column.cast(pl.Int64)
        return column.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise UserError(
            f"{path}: column '{column.name}' is {column.dtype}, which cannot be read as text"
        ) from None


def _require_column(path: Path, frame: pl.DataFrame, name: str, flag_shown: str) -> None:
    if name not in frame.columns:
        there = ", ".join(frame.columns)
        hint = ""
        if path.suffix.lower() not in (".json", ".jsonl", ".ndjson", ".parquet"):
            hint = " (if that is no header line, name the columns with --columns)"
        raise UserError(f"{path}: no column '{name}' ({flag_shown}); the file has: {there}{hint}")


def _by_split_column(
    path: Path, frame: pl.DataFrame, selected: pl.DataFrame, column: str
) -> dict[str, pl.DataFrame]:
    _require_column(path, frame, column, "--split-column")
    names = frame[column].cast(pl.String).str.to_lowercase()
    for row, name in enumerate(names, start=1):
        if name not in _SPLIT_NAMES:
            raise UserError(
                f"{path}: row {row} has '{name}' in column '{column}'; it must be train, "
                "validation or test"
            )
    splits = names.replace_strict(_SPLIT_NAMES)
    return {split: selected.filter(splits == split) for split in splits.unique(maintain_order=True)}


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The table files of each split: `train.csv`, `test-00000-of-00001.parquet`, in the folder or
    in its subfolder `data`."""
    files: dict[str, list[Path]] = {}
    candidates = [*folder.glob("*"), *folder.glob("data/*")]
    for file in sorted(path for path in candidates if path.suffix.lower() in TABLE_SUFFIXES):
        split = _SPLIT_NAMES.get(re.split(r"[-_.]", file.name.lower())[0])
        if split:
            files.setdefault(split, []).append(file)
    if "train" not in files:
        raise UserError(
            f"{folder}: no train file in it; name the files train.csv and test.csv (or .tsv, "
            ".json, .jsonl, .parquet), or name one file"
        )
    return files


def _read_imdb(folder: Path) -> dict[str, pl.DataFrame]:
    """The layout of the stanfordnlp/imdb dataset repository."""
    parts = {}
    for split in ("train", "test"):
        files = sorted((folder / "plain_text").glob(f"{split}-*.parquet"))
        if not files:
            raise UserError(f"{folder}: no plain_text/{split}-*.parquet in it")
        frame = pl.concat([read_table(file) for file in files])
        for column in ("text", "label"):
            _require_column(files[0], frame, column, "the IMDb layout")
        label = _as_text(files[0], frame["label"]).replace(IMDB_LABELS)
        parts[split] = pl.select(text=_as_text(files[0], frame["text"]), label=label)
    return parts


def _read_acl_imdb(folder: Path) -> pl.DataFrame:
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
    schema = {"text": pl.String, "label": pl.String, "group": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _review_number(path: Path) -> int:
    number = path.name.split("_")[0]
    if not number.isdecimal():
        raise UserError(f"{path}: not named as aclImdb names its files, number_rating.txt")
    return int(number)
