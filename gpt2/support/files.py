"""Tables in: CSV, TSV, JSON, JSONL and Parquet files as polars DataFrames, and clean text.

Every reader here answers a bad file with one `UserError` that names the file and, where there is
one, the line.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Sequence
from html.entities import html5
from pathlib import Path
from typing import Any

import polars as pl

from gpt2.support.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")

_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def unescape_entities(text: str) -> str:
    """`&amp;` -> `&`, `&#345;` -> `ř`."""
    if "&" not in text:
        return text
    return _ENTITY.sub(_character, text)


def _character(entity: re.Match) -> str:
    """The character of one entity. Only whole names with their semicolon count: html.unescape
    follows HTML's old rules, which find "&not" in "R&notes;"."""
    name = entity[0][1:]
    return html.unescape(entity[0]) if name[0] == "#" else html5.get(name, entity[0])


def replace_br_tags(text: str) -> str:
    """`<br />`, with or without its slash, becomes a space."""
    return _LINE_BREAK.sub(" ", text) if "<" in text else text


def collapse_white_space(text: str) -> str:
    """Every run of white space becomes one space; none is left at the ends."""
    return " ".join(text.split())


def clean_text(text: str) -> str:
    """What training and prediction both do to a text before it is encoded.

    >>> clean_text("A&amp;B<br /><br />was  fine ")
    'A&B was fine'
    """
    return collapse_white_space(replace_br_tags(unescape_entities(text)))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows of one file. CSV and TSV columns are all strings, so that a label `01` stays `01`.

    `columns` names the columns of a CSV or TSV file that has no header line. A `.txt` file, or one
    without a suffix, is read as TSV if its first line has a tab, else as CSV.

    Raises UserError if the file is missing, empty, not UTF-8 or cannot be parsed.
    """
    suffix = path.suffix.lower()
    _check_not_empty(path)
    if suffix not in ("", *TABLE_SUFFIXES):
        raise UserError(f"{path}: cannot read '{suffix}' files; use {', '.join(TABLE_SUFFIXES)}")
    delimited = suffix in ("", ".csv", ".tsv", ".txt")
    if columns and not delimited:
        raise UserError(f"{path}: --columns is for CSV and TSV files without a header line")

    if suffix == ".parquet":
        try:
            table = pl.read_parquet(path)
        # polars raises its own types, OSError and, on damage that it does not expect, Rust panics
        except (Exception, pl.exceptions.PanicException) as error:
            raise UserError(f"{path}: not a readable Parquet file ({_first_line(error)})") from None
    elif delimited:
        table = _read_delimited(path, read_utf8(path), suffix, columns)
    else:
        rows = _json_rows(path)
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pl.DataFrame(
            {
                name: pl.Series([_json_text(row.get(name)) for row in rows], dtype=pl.String)
                for name in names
            }
        )
    if table.is_empty():
        raise UserError(f"{path}: the file has no rows")
    return table


def read_utf8(path: Path) -> str:
    """The whole file as text, without a byte-order mark. Raises UserError, naming the line, if it
    is not UTF-8."""
    return decode_utf8(path, path.read_bytes())


def decode_utf8(name: Path | str, content: bytes) -> str:
    """`content` as text, without a byte-order mark. Raises UserError, with the line and the `name`
    of where it comes from, if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(
                f"{name}: is UTF-16, not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8"
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise UserError(
            f"{name}: line {line} is not UTF-8 (byte 0x{byte:02x}); "
            f"convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _read_delimited(
    path: Path, content: str, suffix: str, columns: Sequence[str] | None
) -> pl.DataFrame:
    """CSV or TSV by Python's parser: it takes the bare quotes of real files (`6" screen`), which
    polars' refuses, and knows the line of every row."""
    if "\0" in content:
        line = content.count("\n", 0, content.index("\0")) + 1
        raise UserError(f"{path}: line {line} has a NUL byte; is it text, in UTF-8?")
    tabs = suffix == ".tsv" or (suffix != ".csv" and "\t" in content.split("\n", 1)[0])
    # The SMS spam collection has quotes in its messages that never close.
    quoted = not tabs or _tsv_has_quotes(content)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(content, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    names, rows, first_line = list(columns or []), [], 1
    for row in reader:
        if row and not names:
            names = row
        elif row and len(row) != len(names):
            source = "--columns" if columns else "the header line"
            raise UserError(
                f"{path}: line {first_line} has {len(row)} fields, but {source} names "
                f"{len(names)}; a text that contains the separator must stand in double quotes"
            )
        elif row:
            rows.append(row)
        first_line = reader.line_num + 1
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have the same name ({', '.join(names)})")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _tsv_has_quotes(content: str) -> bool:
    """Whether a tab-separated file uses quotes as CSV does: to hold a tab or a line end inside a
    field, so that lines have unequal counts of tabs; or around every field that starts with one."""
    # not splitlines(), which also cuts at characters that stand inside texts, as U+2028
    lines = [line.rstrip("\r") for line in content.split("\n") if line.strip()]
    if len({line.count("\t") for line in lines}) > 1:
        return True
    fields = [field for line in lines if '"' in line for field in line.split("\t")]
    quoted = [field for field in fields if field.startswith('"')]
    return bool(quoted) and all(len(field) > 1 and field.endswith('"') for field in quoted)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one file as dictionaries. Values keep the type that JSON gives them; CSV and TSV
    values are strings. Raises UserError as `read_table` does."""
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson"):
        return read_table(path).to_dicts()
    _check_not_empty(path)
    rows = _json_rows(path)
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    return rows


def _check_not_empty(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """A list of objects, or one object a line. Python's parser names the line of a mistake, and
    takes columns of mixed types, which label columns are."""
    content = read_utf8(path)
    if path.suffix.lower() == ".json":
        rows = _parse_json(path, content, 1)
    else:
        lines = enumerate(content.split("\n"), start=1)
        rows = [_parse_json(path, line, number) for number, line in lines if line.strip()]
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds one {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not an object with named fields")
    return [{name: _whole_characters(value) for name, value in row.items()} for row in rows]


def _parse_json(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}: line {line} is not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def _whole_characters(value: Any) -> Any:
    """In a string, half a surrogate pair, as in cut-off tweets, becomes U+FFFD."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json_text(value: object) -> str | None:
    """Strings and nulls stay; any other value becomes its JSON text, so that a column has one
    type: 1 -> "1", true -> "true"."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_json(file: Path, content: Any) -> None:
    """Write `content` as JSON that a person can read too. (Half surrogates, as in a path that is
    not UTF-8, become escapes.)"""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
