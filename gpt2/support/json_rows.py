"""Tables as JSON: a list of objects, or one object a line (JSON Lines).

Python's parser reads them: it names the line of a mistake, and takes columns of mixed types, which
label columns are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2.support.errors import UserError


def parse_json_rows(
    path: Path, content: str, suffix: str, notes: list[str]
) -> list[dict[str, Any]]:
    """The rows of a file. Whatever its `suffix` says, it may be a list of objects, an object a
    line, or an object that holds one list of objects, as {"data": [...]}; the last is said in
    `notes`. NaN is read as null. Half a surrogate pair, as in cut-off tweets, becomes U+FFFD.

    Raises UserError, naming the line or the row, for anything else.
    """
    try:
        rows = _load(content)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or not content.lstrip().startswith("{"):
            raise UserError(f"{path}: line {error.lineno} is not JSON ({error.msg})") from None
        lines = enumerate(content.split("\n"), start=1)
        rows = [load_line(path, number, line) for number, line in lines if line.strip()]
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if isinstance(rows, dict):
        rows = [rows] if suffix != ".json" else _rows_inside(path, rows, notes)
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds one {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not an object with named fields")
    return rows


def _rows_inside(path: Path, whole: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    """The one list of objects that an object holds."""
    found = {
        name: value
        for name, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    if len(found) != 1:
        way_out = "pandas writes one by to_json(FILE, orient='records')"
        if found:
            way_out = f"it has several of them, {', '.join(found)}: write each into its own file"
        raise UserError(f"{path}: holds one dict, not a list of objects; {way_out}")
    name = next(iter(found))
    notes.append(f"{path}: rows of '{name}'")
    return found[name]


def _load(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)


def load_line(path: Path, number: int, line: str) -> Any:
    """What one line of JSON Lines holds. Raises UserError, naming the line, if it is not JSON."""
    try:
        return _load(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} cannot be read as JSON ({error})") from None


def _constant(name: str) -> float | None:
    """What Python calls NaN, Infinity or -Infinity in JSON."""
    return None if name == "NaN" else float(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = {_whole_characters(name): _whole_characters(value) for name, value in pairs}
    if len(row) < len(pairs):
        names = [_whole_characters(name) for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two fields called '{twice}'")
    return row


def _whole_characters(value: Any) -> Any:
    """`value` without half surrogate pairs, which nothing else can write or show."""
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
