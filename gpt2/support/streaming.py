"""Tables of any size: CSV, TSV, JSON Lines and Parquet, read a part at a time.

A part is a list of rows (dictionaries) or, from Parquet, a DataFrame, so that every column keeps
its type. Text files are read twice: once to their end before anything is computed with them, so
that a mistake in the last row costs seconds and not hours; then part by part. How they are written
is in table_output.py.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from gpt2.support.errors import UserError
from gpt2.support.files import read_rows, read_utf8

ROWS = 4096  # rows of a part
_PARQUET_ROWS = 16_384  # of one from Parquet, where each reading costs the same for few rows
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

Part = list[dict[str, Any]] | pl.DataFrame


@dataclass
class Table:
    """A table to read part by part. `name` is for messages; `schema` says which columns there are
    and what type they have in Parquet; `rows` is None where only the end will tell; each call of
    `parts` reads from the beginning."""

    name: str
    schema: dict[str, pl.DataType]
    rows: int | None
    parts: Callable[[], Iterator[Part]]


def is_table(path: Path) -> bool:
    """Whether the name says that the file is a table, packed (`.csv.gz`) or not."""
    return any(suffix.lower() in SUFFIXES for suffix in path.suffixes[-2:])


def open_table(path: Path, columns: Sequence[str] | None = None) -> Table:
    """The table in `path`. `columns` names the columns of a CSV or TSV file without a header line.
    CSV and TSV values are strings as they stand there; JSON values keep their type.

    Formats other than CSV, TSV, JSON Lines and Parquet are read whole, by `read_rows`. Raises
    UserError if the file is missing, has no rows or cannot be parsed.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if columns and suffix not in (".csv", ".tsv"):
        raise UserError(f"{path}: --columns is for CSV and TSV files without a header line")
    if suffix == ".parquet":
        table = _open_parquet(path)
    elif suffix in (".csv", ".tsv"):
        table = _open_delimited(path, columns)
    elif suffix in (".jsonl", ".ndjson"):
        table = _open_json_lines(path)
    else:
        rows = read_rows(path)
        schema, count = _json_schema(rows)
        table = Table(str(path), schema, count, lambda: _cut(rows))
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

    Raises UserError, naming the row, for what is no text: a list, an object, bytes.
    """
    if isinstance(part, pl.DataFrame):
        values = part[column].to_list()
    else:
        values = [row.get(column) for row in part]
    texts = []
    for number, value in enumerate(values, start=first_row):
        if not isinstance(value, str):
            value = _text_of(value)
            if value is None:
                raise UserError(f"{table.name}: row {number} has no text in column '{column}'")
        texts.append(value)
    return texts


def _text_of(value: Any) -> str | None:
    """A value that is no string as text: None -> "", 1.0 -> "1", True -> "true"; None if it is
    nothing that can stand for a text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float, decimal.Decimal, datetime.date, datetime.time)):
        return str(value)
    return None


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


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends, which may be those of any system."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise UserError(f"{path}: line {number} has a NUL byte; is it text, in UTF-8?")
                yield line
        except UnicodeDecodeError:
            read_utf8(path)  # raises UserError, and knows the line
            raise


def _open_delimited(path: Path, columns: Sequence[str] | None) -> Table:
    tabs = path.suffix.lower() == ".tsv"
    quoted = not tabs or _tsv_has_quotes(path)

    def read() -> Iterator[list[str]]:
        """The names of the columns, then the fields of each row."""
        records = _records(path, "\t" if tabs else ",", quoted)
        names = list(columns) if columns else next(records, (1, []))[1]
        yield names
        for line, fields in records:
            if len(fields) != len(names):
                source = "--columns" if columns else "the header line"
                raise UserError(
                    f"{path}: line {line} has {len(fields)} fields, but {source} names "
                    f"{len(names)}; a text that contains the separator must stand in double quotes"
                )
            yield fields

    def parts() -> Iterator[Part]:
        found = read()
        names = next(found)
        return _cut(dict(zip(names, fields, strict=True)) for fields in found)

    found = read()
    names = next(found)
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have the same name ({', '.join(names)})")
    schema = {name: pl.String() for name in names}
    return Table(str(path), schema, sum(1 for _ in found), parts)


def _records(path: Path, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row and the line on which it begins, by Python's parser, which takes the
    bare quotes of real files (`6" screen`). Empty lines are no rows."""
    csv.field_size_limit(2**31 - 1)
    of_record: list[str] = []  # its lines, as they stand in the file

    def remember() -> Iterator[str]:
        for line in _lines(path):
            of_record.append(line)
            yield line

    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    first_line = 1
    for fields in csv.reader(remember(), delimiter=delimiter, quoting=quoting):
        if len(of_record) > 1:
            _check_quotes(path, first_line, of_record, delimiter)
        if fields:
            yield first_line, fields
        first_line += len(of_record)
        of_record.clear()


def _check_quotes(path: Path, first_line: int, lines: list[str], delimiter: str) -> None:
    """A quote that opens a text and is closed rows later, by the quote of another text, would
    swallow the rows between. Then something other than a separator follows it, or nothing does."""
    try:
        list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        raise UserError(
            f"{path}: the text that opens a double quote in line {first_line} does not close it "
            "before a separator; close it there, or write each quote inside a text twice"
        ) from None


def _tsv_has_quotes(path: Path) -> bool:
    """Whether a tab-separated file uses quotes as CSV does: to hold a tab or a line end inside a
    field, so that lines have unequal counts of tabs; or around every field that starts with one."""
    tabs, opening, closed = set(), 0, 0
    for line in _lines(path):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        tabs.add(line.count("\t"))
        for field in line.split("\t") if '"' in line else []:
            opening += field.startswith('"')
            closed += len(field) > 1 and field.startswith('"') and field.endswith('"')
    return len(tabs) > 1 or 0 < opening == closed


def _open_json_lines(path: Path) -> Table:
    def rows() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)
                raise UserError(f"{path}: line {number} is not JSON ({reason})") from None
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
