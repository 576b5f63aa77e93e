"""What a cell of a table is: a text, a label, or missing. One rule for all readers and formats."""

from __future__ import annotations

import math
import re
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from gpt2.support.errors import UserError

# Zero-width characters, which nobody sees; two of them join or part letters, inside a word.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff]")
_AROUND = re.compile("^[\\s\u200c\u200d]+|[\\s\u200c\u200d]+$")


def text_of(value: Any, path: Path, row: int, column: str) -> str | None:
    """A cell that must be text; None where it is missing (null or NaN).

    Raises UserError, naming the row, for a number, a list or anything else.
    """
    if _is_missing(value):
        return None
    if not isinstance(value, str):
        raise UserError(f"{path}: row {row}: '{column}' is {type(value).__name__}, not text")
    return value


def label_of(value: Any, path: Path, row: int, column: str) -> str | None:
    """A cell that names a class: strings, numbers, booleans and dates, as text; None where it is
    missing (null, or NaN, also as the string that pandas writes). Whole numbers lose ".0": columns
    with gaps are stored as floats.

    Raises UserError, naming the row, for a list, an object or bytes.

    >>> [label_of(value, Path("a.json"), 1, "label") for value in ("spam", 1.0, True, "nan")]
    ['spam', '1', 'true', None]
    """
    if _is_missing(value) or value in ("nan", "NaN"):
        return None
    if not isinstance(value, (str, bool, int, float, Decimal, date, time)):
        raise UserError(
            f"{path}: row {row}: '{column}' is {type(value).__name__}; a label must be one text, "
            "number or boolean"
        )
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def bare_label(label: str) -> str:
    """A label without white space around it and without zero-width characters.

    >>> bare_label(" 1\u200b")
    '1'
    """
    return _AROUND.sub("", _INVISIBLE.sub("", label))


def same_numbers(labels: set[str]) -> dict[str, str]:
    """Labels that are whole numbers with ".0" where the number without it is a label too, and that
    number.

    >>> same_numbers({"1", "1.0", "2.0", "good"})
    {'1.0': '1'}
    """
    shorter = {label: re.sub(r"\.0+$", "", label) for label in labels}
    return {
        label: short
        for label, short in sorted(shorter.items())
        if short != label and short in labels and re.fullmatch(r"[-+]?\d+", short)
    }
