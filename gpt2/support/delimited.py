"""Tables as text: fields separated by commas, semicolons, tabs or bars.

Python's parser reads them: it takes the bare quotes of real files (`6" screen`), which polars'
refuses, and knows the line of every row. What it does not see is looked for here: a quote that
opens a text and closes it rows later has swallowed the rows between.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from gpt2.support.errors import UserError

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LOOKED_AT = 200  # rows that decide which character separates the fields

csv.field_size_limit(2**31 - 1)


def parse_delimited(
    path: Path, content: str, suffix: str, columns: Sequence[str] | None, notes: list[str]
) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, from the first line or from `columns`, and the rows, each with a
    field for every column.

    Fields are separated by commas in a `.csv` and by tabs in a `.tsv`, unless another character
    separates all lines alike. Columns without a name are left out where they are empty, else called
    `column_3`. Whatever is left out is said in `notes`.

    Raises UserError, naming the line, where a row has too few or too many fields, and where a quote
    has swallowed rows.
    """
    if "\0" in content:
        line = content.count("\n", 0, content.index("\0")) + 1
        raise UserError(f"{path}: line {line} has a NUL byte; is it text, in UTF-8?")
    # Lines as the parser counts them; splitlines() also cuts at characters that stand inside texts.
    lines = io.StringIO(content, newline="").readlines()
    told = re.fullmatch(r'"?sep=(.)"?\s*', lines[0]) if lines else None  # Excel's first line
    if told:
        separator, lines[0] = told[1], "\n"
    else:
        usual = "\t" if _tabs_expected(suffix, lines) else ","
        separator = _find_separator(lines, usual)
        if separator != usual:
            notes.append(f"{path}: fields are separated by {_NAMES[separator]}")
    # The SMS spam collection has quotes in its messages that never close.
    quoted = separator != "\t" or _has_quoted_fields(lines)
    names, rows = list(columns or []), []
    source = "--columns" if columns else "the header line"
    long_lines, doubtful = 0, []
    for first, last, row in _parse(path, lines, separator, quoted):
        if last > first and _are_rows(lines[first - 1 : last], separator, len(names) or len(row)):
            doubtful.append((first, last))
        if not names:
            names = _header(path, row, doubtful)
            continue
        if len(row) > len(names) and not any(row[len(names) :]):
            row, long_lines = row[: len(names)], long_lines + 1
        elif len(row) < len(names) and not any(names[len(row) :]):
            row = row + [""] * (len(names) - len(row))
        if len(row) != len(names):
            found = f"line {first} has {len(row)} fields"
            if last > first:
                found = f"line {first} opens a quote that ends in line {last}: {len(row)} fields"
            raise UserError(
                f"{path}: {found}, but {source} names {len(names)}; a text that contains the "
                "separator must stand in double quotes"
            )
        rows.append(row)
    _refuse_swallowed(path, lines, separator, doubtful, rows)
    if long_lines:
        notes.append(f"{path}: empty fields after the last column left out in {long_lines:,} rows")
    return _name_columns(path, names, rows, notes)


def _tabs_expected(suffix: str, lines: list[str]) -> bool:
    return suffix == ".tsv" or (suffix in ("", ".txt") and bool(lines) and "\t" in lines[0])


def _find_separator(lines: list[str], usual: str) -> str:
    """`usual`, unless it does not cut the rows alike and one other character does."""

    def widths(separator: str) -> list[int]:
        rows = islice(csv.reader(lines, delimiter=separator), _LOOKED_AT)
        return [len(row) for row in rows if row] or [1]

    found = {separator: widths(separator) for separator in dict.fromkeys([usual, *_NAMES])}
    possible = [separator for separator, counts in found.items() if counts[0] > 1]
    alike = [separator for separator in possible if len(set(found[separator])) == 1]
    if usual in alike or (usual in possible and not alike):
        return usual
    candidates = alike or possible
    return candidates[0] if len(candidates) == 1 else usual


def _has_quoted_fields(lines: list[str]) -> bool:
    """Whether a tab-separated file uses quotes as CSV does: to hold a tab or a line end inside a
    field, so that lines have unequal counts of tabs; or around every field that starts with one;
    or around every name of the header."""
    lines = [line.rstrip("\r\n") for line in lines if line.strip()]
    if lines and all(re.fullmatch('".*"', name) for name in lines[0].split("\t")):
        return True
    if len({line.count("\t") for line in lines}) > 1:
        return True
    fields = [field for line in lines if '"' in line for field in line.split("\t")]
    quoted = [field for field in fields if field.startswith('"')]
    return bool(quoted) and all(len(field) > 1 and field.endswith('"') for field in quoted)


def _parse(
    path: Path, lines: list[str], separator: str, quoted: bool
) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, fields) of each row that is not blank."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    first = 1
    try:
        for row in reader:
            if row:
                yield first, reader.line_num, row
            first = reader.line_num + 1
    except csv.Error as error:
        last = reader.line_num
        if "unexpected end" in str(error):
            found = f"line {first} opens a quote that no later line closes"
        elif last > first:
            found = f"line {first} opens a quote that ends in line {last}, before a field does"
        elif "expected after" in str(error):
            found = f"line {first} has a quote inside a quoted field"
        else:
            raise UserError(f"{path}: line {first} cannot be read ({error})") from None
        raise UserError(
            f'{path}: {found}; a field that begins with " must end with one, and be written with '
            'every other " doubled'
        ) from None


def _are_rows(lines: list[str], separator: str, width: int) -> bool:
    """Whether each of several lines would make a row of `width` fields by itself."""
    return width > 1 and all(line.count(separator) == width - 1 for line in lines if line.strip())


def _refuse_swallowed(
    path: Path, lines: list[str], separator: str, spans: list[tuple[int, int]], rows: list
) -> None:
    """Of the `spans`, rows from one line to another whose lines have as many separators as rows
    have, refuse the first that is no text of several lines but several rows.

    The column of fewest different values, the label, tells: most lines have one that other rows or
    other lines have too. Where all values differ, as in instructions, it is rows if they are at
    least three, without a space after a separator as prose has it, and if nothing else in the file
    is quoted: what wrote the file does not quote texts.
    """
    columns = [set(column) for column in zip(*rows, strict=True)]
    values = min(columns, key=len, default=set())
    place = columns.index(values) if columns else 0
    inside = {number for first, last in spans for number in range(first, last + 1)}
    quotes = any('"' in line for number, line in enumerate(lines, 1) if number not in inside)
    for first, last in spans:
        found = [line.strip("\r\n") for line in lines[first - 1 : last] if line.strip()]
        labels = [line.split(separator)[place].strip(' "') for line in found]
        counts = Counter(labels)
        # of a text, one line at most has a label: that of its row
        known = sum(label in values or counts[label] > 1 for label in labels)
        are_rows = 2 * known > len(found) and "" not in labels
        if 2 * len(values) > len(rows) and not quotes:
            prose = any(f"{separator} " in line for line in found)
            are_rows = are_rows or (len(found) > 2 and not prose)
        if are_rows:
            _refuse_span(path, first, last)


def _refuse_span(path: Path, first: int, last: int) -> None:
    raise UserError(
        f"{path}: line {first} opens a quote that line {last} closes, but each of these lines is a "
        'row; a field that begins with " must end with one, and be written with every other " '
        "doubled"
    )


def _header(path: Path, row: list[str], doubtful: list[tuple[int, int]]) -> list[str]:
    """The names that a header line gives, each on one line and without space around it."""
    if doubtful:
        _refuse_span(path, *doubtful[0])
    return [" ".join(name.split()) for name in row]


def _name_columns(
    path: Path, names: list[str], rows: list[list[str]], notes: list[str]
) -> tuple[list[str], list[list[str]]]:
    """Leave out the empty columns without a name, as spreadsheets and Kaggle's spam.csv have them,
    and name the others by their place."""
    unnamed = [place for place, name in enumerate(names) if not name]
    full = [place for place in unnamed if any(row[place] for row in rows)]
    names = [name or f"column_{place + 1}" for place, name in enumerate(names)]
    if full:
        count = sum(any(row[place] for place in full) for row in rows)
        called = ", ".join(names[place] for place in full)
        notes.append(
            f"{path}: columns without a name: {called}; {count:,} rows have something there"
        )
    empty = set(unnamed) - set(full)
    if empty:
        notes.append(f"{path}: {len(empty)} empty columns without a name left out")
        kept = [place for place in range(len(names)) if place not in empty]
        names = [names[place] for place in kept]
        rows = [[row[place] for place in kept] for row in rows]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have the same name ({', '.join(names)})")
    return names, rows
