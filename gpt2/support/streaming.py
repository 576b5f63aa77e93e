"""Tables of any size: CSV, TSV, JSON Lines and Parquet, read a part at a time.

A part is a list of rows (dictionaries) or a DataFrame, so that every column keeps its type. Text
files are read twice: once to their end before anything is computed with them, so that a mistake in
the last row costs seconds and not hours; then part by part. How they are written is in
table_output.py.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from gpt2.support.cells import text_of
from gpt2.support.delimited import open_delimited
from gpt2.support.errors import UserError
from gpt2.support.files import (
    TABLE_SUFFIXES,
    read_rows,
    read_table,
    read_utf8,
    table_suffix,
    uncompressed,
)
from gpt2.support.json_rows import load_line

ROWS = 4096  # rows of a part
_PARQUET_ROWS = 16_384  # of one from Parquet, where each reading costs the same for few rows

Part = list[dict[str, Any]] | pl.DataFrame


@dataclass
class Table:
    """A table to read part by part. `name` is for messages; `schema` says which columns there are
    and what type they have in Parquet; `rows` is None where only the end will tell; each call of
    `parts` reads from the beginning; `notes` say what is read otherwise than it stands there."""

    name: str
    schema: dict[str, pl.DataType]
    rows: int | None
    parts: Callable[[], Iterator[Part]]
    notes: list[str] = field(default_factory=list)


def is_table(path: Path) -> bool:
    """Whether the name says that the file is a table, and not a text a line."""
    return table_suffix(path) in TABLE_SUFFIXES and table_suffix(path) != ".txt"


def open_table(path: Path, columns: Sequence[str] | None = None) -> Table:
    """The table in `path`. `columns` names the columns of a CSV or TSV file without a header line.
    CSV and TSV values are strings as they stand there; JSON values keep their type.

    What is compressed, or neither CSV, TSV, JSON Lines nor Parquet, is read whole. Raises UserError
    as `read_columns` does.
    """
    suffix, content = uncompressed(path)
    if content is not None:
        return _open_whole(path, suffix, columns)
    if suffix in (".csv", ".tsv"):
        table = _open_delimited(path, suffix, columns)
    elif suffix == ".parquet" and not columns:
        table = _open_parquet(path)
    elif suffix in (".jsonl", ".ndjson") and not columns and _has_an_object_a_line(path):
        table = _open_json_lines(path)
    else:
        return _open_whole(path, suffix, columns)
    if table.rows == 0:
        raise UserError(f"{path}: the file has no rows")
    return table


def table_of_lines(name: str, column: str, lines: Iterable[str]) -> Table:
    """A table with one `column`, whose values are `lines`; it can be read as often as they can."""
    rows = len(lines) if isinstance(lines, list) else None
    schema = {column: pl.String()}
    return Table(name, schema, rows, lambda: _cut({column: line} for line in lines))


def require_columns(table: Table, names: Iterable[str], flag_shown: str) -> None:
    """Raises UserError, with what is there, if the table lacks one of the columns `names`."""
    for name in names:
        if name not in table.schema:
            raise UserError(
                f"{table.name}: no column '{name}' ({flag_shown}); the file has: "
                f"{', '.join(table.schema)}"
            )


def texts_of(table: Table, part: Part, column: str, first_row: int) -> list[str]:
    """The values of `column` as texts. What is missing is "". `first_row` is the part's, from 1.

    Raises UserError, naming the row, for what is no text.
    """
    if isinstance(part, pl.DataFrame):
        values = part[column].to_list()
    else:
        values = [row.get(column) for row in part]
    numbered = enumerate(values, start=first_row)
    path = Path(table.name)
    return [text_of(value, path, number, column) or "" for number, value in numbered]


def add_columns(part: Part, columns: dict[str, list[Any]]) -> Part:
    """`part` with more columns, at its end; each holds a value a row."""
    if isinstance(part, pl.DataFrame):
        return part.with_columns(pl.Series(name, values) for name, values in columns.items())
    added = zip(*columns.values(), strict=True)
    return [
        row | dict(zip(columns, new, strict=True)) for row, new in zip(part, added, strict=True)
    ]


def new_names(table: Table, wanted: Iterable[str]) -> dict[str, str]:
    """What the columns `wanted` are called beside those of the table: `label`, or where the table
    has one `predicted_label`, which is said on standard error."""
    names: dict[str, str] = {}
    for name in wanted:
        numbered = (f"predicted_{name}_{number}" for number in itertools.count(2))
        free = itertools.chain([name, f"predicted_{name}"], numbered)
        names[name] = next(name for name in free if name not in table.schema)
        if names[name] != name:
            print(
                f"{table.name} has a column '{name}'; the model's is called '{names[name]}'",
                file=sys.stderr,
            )
    return names


# ---- reading


def _cut(rows: Iterable[dict[str, Any]]) -> Iterator[Part]:
    rows = iter(rows)
    while part := list(itertools.islice(rows, ROWS)):
        yield part


def _slices(frame: pl.DataFrame) -> Iterator[Part]:
    return (frame[start : start + ROWS] for start in range(0, len(frame), ROWS))


def _open_whole(path: Path, suffix: str, columns: Sequence[str] | None) -> Table:
    notes: list[str] = []
    if suffix in (".json", ".jsonl", ".ndjson") and not columns:
        rows = read_rows(path, notes)
        schema, count = _json_schema(rows)
        return Table(str(path), schema, count, lambda: _cut(rows), notes)
    frame = read_table(path, columns, notes)
    return Table(str(path), dict(frame.schema), len(frame), lambda: _slices(frame), notes)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends, which may be those of any system."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield from file
        except UnicodeDecodeError:
            read_utf8(path)  # raises UserError, and knows the line
            raise


def _open_delimited(path: Path, suffix: str, columns: Sequence[str] | None) -> Table:
    notes: list[str] = []
    found = open_delimited(path, lambda: _lines(path), suffix, columns, notes)

    def parts() -> Iterator[Part]:
        return _cut(dict(zip(found.names, row, strict=True)) for row in found.rows())

    schema = {name: pl.String() for name in found.names}
    return Table(str(path), schema, found.count, parts, notes)


def _has_an_object_a_line(path: Path) -> bool:
    first = next((line for line in _lines(path) if line.strip()), "")
    try:
        return isinstance(load_line(path, 1, first), dict)
    except UserError:
        return False  # reading it whole tells what it is


def _open_json_lines(path: Path) -> Table:
    def rows() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                row = load_line(path, number, line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}: line {number} is not an object with named fields")
                yield row

    schema, count = _json_schema(rows())
    return Table(str(path), schema, count, lambda: _cut(rows()))


def _json_schema(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, pl.DataType], int]:
    """The columns of JSON rows with the type that holds all their values, and the number of rows.
    Columns of mixed types, and of lists and objects, are text."""
    kinds: dict[str, set[type]] = {}
    count = 0
    for row in rows:
        count += 1
        for name, value in row.items():
            beyond = isinstance(value, int) and abs(value) >= 2**63  # no column holds it
            kinds.setdefault(name, set()).add(str if beyond else type(value))
    types = {frozenset([bool]): pl.Boolean(), frozenset([int]): pl.Int64(),
             frozenset([float]): pl.Float64(), frozenset([int, float]): pl.Float64()}  # fmt: skip
    schema = {
        name: types.get(frozenset(found - {type(None)}), pl.String())
        for name, found in kinds.items()
    }
    return schema, count


def _open_parquet(path: Path) -> Table:
    # no glob, no hive: "[" and "=" in a name are characters
    table = pl.scan_parquet(path, glob=False, hive_partitioning=False)

    def read(query: pl.LazyFrame) -> pl.DataFrame:
        try:
            return query.collect()
        # polars raises its own types, OSError and, on damage that it does not expect, Rust panics
        except (Exception, pl.exceptions.PanicException) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: not a readable Parquet file ({reason})") from None

    def parts() -> Iterator[Part]:
        for start in range(0, rows, _PARQUET_ROWS):
            yield read(table.slice(start, _PARQUET_ROWS))

    schema = dict(read(table.head(0)).schema)
    rows = read(table.select(pl.len())).item()
    return Table(str(path), schema, rows, parts)
