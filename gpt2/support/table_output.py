"""Tables of any size, written a part at a time: CSV, TSV, JSON Lines, JSON and Parquet.

A table is written under another name and appears under its own when it is complete.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import polars as pl

from gpt2.support.errors import UserError
from gpt2.support.streaming import Part

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def check_new_table(path: Path, overwrite: bool) -> None:
    """Raises UserError if no table can be written to `path`: another ending, no folder, a file
    that is there already and is not to be overwritten."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--out {path}: cannot write '{path.suffix}' files; use {', '.join(SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"--out {path}: is there already; name another, or add --overwrite")


def check_types(name: str, schema: dict[str, pl.DataType], suffix: str) -> None:
    """Raises UserError if a column has a type that files with this ending cannot hold."""
    for column, kind in schema.items():
        binary = "Binary" in str(kind)
        flat = not (kind.is_nested() or kind == pl.Duration)
        fits = suffix == ".parquet" or not binary
        if not fits or (suffix in (".csv", ".tsv") and not flat):
            raise UserError(
                f"{name}: column '{column}' is {kind}, which a {suffix} file cannot hold; write a "
                ".parquet file"
            )


@contextmanager
def writing_table(path: Path, schema: dict[str, pl.DataType]) -> Iterator[Callable[[Part], None]]:
    """A function that appends a part with the columns of `schema`. The file appears when the block
    has ended; if an exception ends it, nothing is left, and a file that was there is as it was.

    Raises UserError if a column has a type that such a file cannot hold, or if the disk is full.
    """
    suffix = path.suffix.lower()
    check_types(f"--out {path}", schema, suffix)
    new = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        if suffix == ".parquet":
            # polars writes a Parquet file in one go: parts wait in files of their own
            with TemporaryDirectory(prefix=f"{path.name}.new-", dir=path.parent) as folder:
                yield _parquet_writer(Path(folder), schema)
                parts = pl.scan_parquet(f"{folder}/*.parquet", hive_partitioning=False)
                parts.sink_parquet(new)
        else:
            with open(new, "w", encoding="utf-8", newline="") as file:
                yield text_writer(file, suffix, schema)
                file.write("\n]\n" if suffix == ".json" else "")
        new.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {path}: cannot be written ({reason})") from None
    finally:
        new.unlink(missing_ok=True)


def text_writer(
    file: TextIO, suffix: str, schema: dict[str, pl.DataType]
) -> Callable[[Part], None]:
    """A function that writes a part to the open `file`, as one of the text formats; before the
    first one the names of the columns, or the bracket of a JSON list."""
    if suffix in (".jsonl", ".ndjson"):
        return lambda part: file.writelines(line + "\n" for line in json_lines(part))
    if suffix == ".json":
        before = itertools.chain(["[\n"], itertools.repeat(",\n"))
        return lambda part: file.writelines(next(before) + line for line in json_lines(part))
    separator = "\t" if suffix == ".tsv" else ","
    file.write(_delimited_line(schema, separator))

    def write(part: Part) -> None:
        if isinstance(part, pl.DataFrame):
            file.write(part.write_csv(include_header=False, separator=separator))
            return
        for row in part:
            cells = [
                "" if (value := row.get(name)) is None else _json_text(value) for name in schema
            ]
            file.write(_delimited_line(cells, separator))

    return write


def json_lines(part: Part) -> Iterator[str]:
    """Each row as a line of JSON."""
    if isinstance(part, pl.DataFrame):
        yield from part.write_ndjson().split("\n")[:-1]
        return
    for row in part:
        yield json.dumps(row, ensure_ascii=False)


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _delimited_line(cells: Any, separator: str) -> str:
    """One line of CSV or TSV. In TSV a quote inside a field stays alone, as files without any
    quoting have it."""
    special = (separator, "\n", "\r", *('"' if separator == "," else ()))
    quoted = [
        '"' + cell.replace('"', '""') + '"'
        if cell.startswith('"') or any(character in cell for character in special)
        else cell
        for cell in cells
    ]
    return separator.join(quoted) + "\n"


def _parquet_writer(folder: Path, schema: dict[str, pl.DataType]) -> Callable[[Part], None]:
    numbers = itertools.count()
    pl.DataFrame(schema=schema).write_parquet(folder / f"{next(numbers):09}.parquet")

    def write(part: Part) -> None:
        if not isinstance(part, pl.DataFrame):
            columns = {
                name: pl.Series(name, [_cell(row.get(name), kind) for row in part], dtype=kind)
                for name, kind in schema.items()
            }
            part = pl.DataFrame(columns)
        part = part.cast(dict(schema))  # an added column with nothing in it has no type yet
        part.write_parquet(folder / f"{next(numbers):09}.parquet")

    return write


def _cell(value: Any, kind: pl.DataType) -> Any:
    """A JSON value as its column holds it: one of mixed types, or of lists, holds text."""
    if value is None or kind != pl.String:
        return value
    return _json_text(value)
