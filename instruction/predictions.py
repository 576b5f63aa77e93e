"""Every prediction kept: predictions.parquet has a row for each row of the test split, and
validation_predictions.parquet the same for validation.

row                         its number in the split, from 0
instruction, input, output  as they were read by the model
targets                     the tokens of the response and its end
before, after               the summed loss of these targets, in nats
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gpt2.support.errors import UserError

# Comparisons on validation make choices without looking at the test split.
FILES = {"test": "predictions.parquet", "validation": "validation_predictions.parquet"}


@dataclass
class RowLosses:
    """What one model makes of the rows of a split: `losses` (rows,) in nats, summed over `targets`
    (rows,)."""

    texts: list[str]
    answers: list[str]
    losses: np.ndarray
    targets: np.ndarray


def write_predictions(
    folder: Path,
    rows: pl.DataFrame,
    split: str,
    before: dict[str, Any] | None,
    after: dict[str, Any],
) -> None:
    """Write the file of `split`, "test" or "validation", into a run folder. `rows` has the three
    text columns; `before`, if it is known, and `after` have the "losses" and "targets" of each."""
    columns = {"targets": after["targets"]}
    if before:
        columns["before"] = before["losses"]
    columns["after"] = after["losses"]
    table = rows.select("instruction", "input", "output").with_row_index("row")
    table = table.with_columns(pl.Series(name, values) for name, values in columns.items())
    table.write_parquet(folder / FILES[split])


def read_row_losses(folder: Path, contender: str, split: str = "test") -> RowLosses:
    """The losses that `contender`, "before" or "after", has on the rows of `split` in the finished
    run in `folder`. Raises UserError if it has none."""
    file = folder / FILES[split]
    if not file.is_file():
        raise UserError(
            f"{folder}: has no {file.name}, which a run by older code, or with --report-on "
            "validation, does not write"
        )
    try:
        table = pl.read_parquet(file)
        if contender not in ("before", "after") or contender not in table.columns:
            raise UserError(f"{folder}: has no '{contender}'; it has: before, after")
        questions = table.select(pl.concat_str("instruction", "input", separator="\n"))
        return RowLosses(
            questions.to_series().to_list(),
            table["output"].to_list(),
            table[contender].to_numpy(),
            table["targets"].to_numpy(),
        )
    # polars raises its own types, OSError and, on damage that it does not expect, Rust panics
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        raise UserError(f"{file}: is not a run's ({type(error).__name__})") from None
