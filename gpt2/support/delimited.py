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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from gpt2.support.errors import UserError

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LOOKED_AT = 200  # rows that decide which character separates the fields
_LINES_LOOKED_AT = 5000  # in which these rows are
_VALUES_KEPT = 10_000  # different values of a column; one with more is no label

csv.field_size_limit(2**31 - 1)


@dataclass
class Delimited:
    """A table as text, read to its end once: what its columns are called, where they stand in each
    line, how many rows there are. `rows` reads them, from the beginning each time."""

    names: list[str]
    count: int
    rows: Callable[[], Iterator[list[str]]]


def parse_delimited(
    path: Path, content: str, suffix: str, columns: Sequence[str] | None, notes: list[str]
) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and the rows of a whole file, as `open_delimited` reads them."""
    lines = lambda: io.StringIO(content, newline="")  # noqa: E731
    table = open_delimited(path, lines, suffix, columns, notes)
    return table.names, list(table.rows())


def open_delimited(
    path: Path,
    lines: Callable[[], Iterable[str]],
    suffix: str,
    columns: Sequence[str] | None,
    notes: list[str],
) -> Delimited:
    """A table of any size; each call of `lines` gives all lines, with their ends as they are. The
    names of the columns are in the first line or in `columns`; each row has a field for every
    column.

    Fields are separated by commas in a `.csv` and by tabs in a `.tsv`, unless another character
    separates all lines alike. Columns without a name are left out where they are empty, else called
    `column_3`. Whatever is left out is said in `notes`.

    Raises UserError, naming the line, where a row has too few or too many fields, and where a quote
    has swallowed rows.
    """
    first_lines = list(islice(_checked(path, lines()), _LINES_LOOKED_AT))
    told = re.fullmatch(r'"?sep=(.)"?\s*', first_lines[0]) if first_lines else None  # Excel's
    separator = told[1] if told else ""
    if not told:
        usual = "\t" if _tabs_expected(suffix, first_lines) else ","
        separator = _find_separator(first_lines, usual)
        if separator != usual:
            notes.append(f"{path}: fields are separated by {_NAMES[separator]}")

    def checked() -> Iterator[str]:
        found = _checked(path, lines())
        return chain("\n", islice(found, 1, None)) if told else found

    # The SMS spam collection has quotes in its messages that never close.
    quoted = separator != "\t" or _has_quoted_fields(checked())

    # The first reading: every row has its fields, and none has been swallowed.
    names, source = list(columns or []), "--columns" if columns else "the header line"
    swallowed = _Swallowed(path, separator)
    count, long_lines, in_unnamed, full = 0, 0, 0, set()
    for first, of_row, row in _parse(path, checked(), separator, quoted):
        swallowed.look_at_lines(first, of_row, len(names) or len(row))
        if not names:
            if swallowed.doubtful:
                _refuse_span(path, first, first + len(of_row) - 1)
            names = [" ".join(name.split()) for name in row]
            continue
        fitted = _fit(row, names)
        if fitted is None:
            found = f"line {first} has {len(row)} fields"
            if len(of_row) > 1:
                last = first + len(of_row) - 1
                found = f"line {first} opens a quote that ends in line {last}: {len(row)} fields"
            raise UserError(
                f"{path}: {found}, but {source} names {len(names)}; a text that contains the "
                "separator must stand in double quotes"
            )
        count += 1
        long_lines += len(row) > len(names)
        unnamed = {place for place, name in enumerate(names) if not name and fitted[place]}
        in_unnamed += bool(unnamed)
        full |= unnamed
        swallowed.look_at_row(fitted)
    swallowed.refuse(count)
    if long_lines:
        notes.append(f"{path}: empty fields after the last column left out in {long_lines:,} rows")
    kept = [place for place, name in enumerate(names) if name or place in full]
    shown = _name_columns(path, names, full, in_unnamed, notes)

    def rows() -> Iterator[list[str]]:
        records = _parse(path, checked(), separator, quoted)
        if not columns:
            next(records, None)
        for _, _, row in records:
            row = _fit(row, names)
            yield row if len(kept) == len(row) else [row[place] for place in kept]

    return Delimited(shown, count, rows)


def _checked(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{path}: line {number} has a NUL byte; is it text, in UTF-8?")
        yield line


def _fit(row: list[str], names: list[str]) -> list[str] | None:
    """The row with a field for each name; None if it has too many, or too few."""
    if len(row) == len(names):
        return row
    if len(row) > len(names) and not any(row[len(names) :]):
        return row[: len(names)]
    if len(row) < len(names) and not any(names[len(row) :]):
        return row + [""] * (len(names) - len(row))
    return None


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


def _has_quoted_fields(lines: Iterable[str]) -> bool:
    """Whether a tab-separated file uses quotes as CSV does: to hold a tab or a line end inside a
    field, so that lines have unequal counts of tabs; or around every field that starts with one;
    or around every name of the header."""
    tabs, opened, closed = set(), 0, 0
    for line in lines:
        line = line.rstrip("\r\n")
        if line.strip():
            if not tabs and all(re.fullmatch('".*"', name) for name in line.split("\t")):
                return True
            tabs.add(line.count("\t"))
        for field in line.split("\t") if '"' in line else ():
            opened += field.startswith('"')
            closed += len(field) > 1 and field.startswith('"') and field.endswith('"')
    return len(tabs) > 1 or 0 < opened == closed


def _parse(
    path: Path, lines: Iterable[str], separator: str, quoted: bool
) -> Iterator[tuple[int, list[str], list[str]]]:
    """(number of the first line, the lines, the fields) of each row that is not blank."""
    of_row: list[str] = []

    def remember() -> Iterator[str]:
        for line in lines:
            of_row.append(line)
            yield line

    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(remember(), delimiter=separator, quoting=quoting, strict=True)
    first = 1
    try:
        for row in reader:
            if row:
                yield first, list(of_row), row
            first += len(of_row)
            of_row.clear()
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


class _Swallowed:
    """Looks for rows that a quote has swallowed: for rows of several lines that have as many
    separators each as rows have, and are no text of several lines but several rows.

    The column of fewest different values, the label, tells: most lines have one that other rows or
    other lines have too. Where all values differ, as in instructions, it is rows if they are at
    least three, without a space after a separator as prose has it, and if nothing else in the file
    is quoted: what wrote the file does not quote texts.
    """

    def __init__(self, path: Path, separator: str) -> None:
        self.path, self.separator = path, separator
        self.doubtful: list[tuple[int, list[str]]] = []  # first line's number, lines
        self.quotes_elsewhere = False
        self.values: list[set[str]] | None = None  # of each column, until they are too many

    def look_at_lines(self, first: int, lines: list[str], width: int) -> None:
        """The lines of one row that has `width` fields."""
        if len(lines) > 1 and _are_rows(lines, self.separator, width):
            self.doubtful.append((first, lines))
        elif not self.quotes_elsewhere:
            self.quotes_elsewhere = any('"' in line for line in lines)

    def look_at_row(self, row: list[str]) -> None:
        """The fields of one row."""
        if self.values is None:
            self.values = [set() for _ in row]
        for values, field in zip(self.values, row, strict=True):
            if len(values) < _VALUES_KEPT:
                values.add(field)

    def refuse(self, rows: int) -> None:
        """At the end, of so many `rows`: raises UserError for the first row that is several."""
        values = min(self.values or [], key=len, default=set())
        place = self.values.index(values) if self.values else 0
        has_labels = len(values) < _VALUES_KEPT and 2 * len(values) <= rows
        for first, lines in self.doubtful:
            found = [line for line in lines if line.strip()]
            are_rows = len(values) < _VALUES_KEPT and _share_labels(
                [line.strip("\r\n").split(self.separator)[place].strip(' "') for line in found],
                values,
            )
            if not has_labels and not self.quotes_elsewhere:
                prose = any(f"{self.separator} " in line for line in found)
                are_rows = are_rows or (len(found) > 2 and not prose)
            if are_rows:
                _refuse_span(self.path, first, first + len(lines) - 1)


def _share_labels(labels: list[str], values: set[str]) -> bool:
    """Whether half of the lines with these `labels` or more have one that other rows, with
    `values`, or other lines have too. Of a text, one line at most has a label: that of its row."""
    counts = Counter(labels)
    known = sum(label in values or counts[label] > 1 for label in labels)
    return known > 1 and 2 * known >= len(labels) and "" not in labels


def _refuse_span(path: Path, first: int, last: int) -> None:
    raise UserError(
        f"{path}: line {first} opens a quote that line {last} closes, but each of these lines is a "
        'row; a field that begins with " must end with one, and be written with every other " '
        "doubled"
    )


def _name_columns(
    path: Path, names: list[str], full: set[int], rows: int, notes: list[str]
) -> list[str]:
    """The names of the columns, without those that have neither a name nor anything in a row, as
    spreadsheets and Kaggle's spam.csv have them; the others, the `full` ones, are named by their
    place. `rows` have something there."""
    empty = len([name for name in names if not name]) - len(full)
    if full:
        called = ", ".join(f"column_{place + 1}" for place in sorted(full))
        notes.append(
            f"{path}: columns without a name: {called}; {rows:,} rows have something there"
        )
    if empty:
        notes.append(f"{path}: {empty} empty columns without a name left out")
    names = [
        name or f"column_{place + 1}" for place, name in enumerate(names) if name or place in full
    ]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have the same name ({', '.join(names)})")
    return names
