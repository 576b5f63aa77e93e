"""Every prediction kept: predictions.parquet has a row for each row of the test split.

row                         its number in the split, from 0
instruction, input, output  as they were read by the model
targets                     the tokens of the response and its end
before, after               the summed loss of these targets, in nats
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from gpt2.support.errors import UserError

FILE = "predictions.parquet"


@dataclass
class RowLosses:
    """What one model makes of the test rows: `losses` (rows,) in nats, summed over `targets`
    (rows,)."""

    texts: list[str]
    answers: list[str]
    losses: np.ndarray
    targets: np.ndarray


def write_predictions(
    folder: Path, rows: pl.DataFrame, losses: dict[str, list[float]], targets: list[int]
) -> None:
    """Write predictions.parquet into a run folder. `rows` has the three text columns, `losses` one
    array for each contender."""
    rows = rows.select("instruction", "input", "output").with_row_index("row")
    rows.with_columns(targets=pl.Series(targets), **{
        name: pl.Series(values) for name, values in losses.items()
    }).write_parquet(folder / FILE)  # fmt: skip


def read_row_losses(folder: Path, contender: str, split: str = "test") -> RowLosses:
    """The losses that `contender`, "before" or "after", has on the test rows of the finished run in
    `folder`. Raises UserError if it has none."""
    if split != "test":
        raise UserError(f"--split {split}: runs of instruction tuning keep their test rows alone")
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{folder}: has no {FILE}; older code did not write one")
    try:
        table = pl.read_parquet(file)
        if contender not in table.columns:
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
