"""Tables as Parquet and Arrow files, with the class names that the datasets library stores."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from gpt2.support.errors import UserError

DATASET_INFO = "dataset_info.json"  # beside the .arrow files of datasets' save_to_disk


def read_arrow_table(
    path: Path, content: bytes | None, suffix: str, notes: list[str]
) -> pl.DataFrame:
    """The table of a Parquet or Arrow file; `content` if it was compressed. Numbers of a ClassLabel
    column become the names of their classes, and its -1, no label, becomes null.

    Raises UserError if it cannot be read.
    """
    source = path if content is None else io.BytesIO(content)
    try:
        if suffix == ".parquet":
            table = pl.read_parquet(source)
            source = path if content is None else io.BytesIO(content)
            features = _features(pl.read_parquet_metadata(source).get("huggingface"))
        else:
            start = content if content is not None else path.open("rb").read(6)
            table = pl.read_ipc(source) if start[:6] == b"ARROW1" else pl.read_ipc_stream(source)
            beside = path.parent / DATASET_INFO
            features = _features(beside.read_text("utf-8") if beside.is_file() else None)
    # polars raises its own types, OSError and, on damage that it does not expect, Rust panics
    except (Exception, pl.exceptions.PanicException) as error:
        kind = "Parquet" if suffix == ".parquet" else "Arrow"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable {kind} file ({reason})") from None
    for name, feature in features.items():
        if (
            isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and name in table.columns
            and table.schema[name].is_integer()
        ):
            classes = list(feature.get("names") or [])
            table = table.with_columns(_named(path, table[name], classes))
            notes.append(f"{path}: '{name}' is shown by the names of its classes")
    return table


def saved_files(folder: Path) -> list[Path]:
    """The files of one data set that datasets' `save_to_disk` wrote into `folder`, in the order of
    their rows; none if it is no such folder.

    Raises UserError if rows were chosen without being written anew, as old versions did.
    """
    state_file = folder / "state.json"
    if not state_file.is_file() or not (folder / DATASET_INFO).is_file():
        return []
    try:
        state = json.loads(state_file.read_text("utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{state_file}: is not as datasets' save_to_disk writes it") from None
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(
            f"{folder}: its rows are chosen by a list of numbers; save it by a newer version of "
            "datasets, or by to_parquet"
        )
    return files


def _features(description: str | None) -> dict[str, Any]:
    """The columns as the datasets library describes them, in either of its two places."""
    if description is None:
        return {}
    found = json.loads(description)
    return found.get("info", found).get("features") or {}


def _named(path: Path, column: pl.Series, classes: list[str]) -> pl.Series:
    for row, value in enumerate(column, start=1):
        if value is not None and not -1 <= value < len(classes):
            raise UserError(
                f"{path}: row {row}: '{column.name}' is {value}, but it has {len(classes)} classes"
            )
    return column.replace_strict(range(len(classes)), classes, default=None, return_dtype=pl.String)
