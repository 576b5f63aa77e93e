"""Where instructions come from: a sample, a download, anybody's own file, a data set of the hub."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gpt2.support.arrow_tables import saved_files
from gpt2.support.cells import text_of
from gpt2.support.errors import UserError
from gpt2.support.files import is_table, read_rows, table_suffix
from gpt2.support.flags import flag
from gpt2.support.hub import download_dataset
from gpt2.support.hub_datasets import open_dataset
from gpt2.support.splits import SPLIT_NAMES, counts_in_words, hub_name
from instruction.formats import COLUMNS, conversation_rows, find_columns, find_conversations

SAMPLE = Path(__file__).parent / "sample_instructions.json"
# name -> repository, file, pinned commit
DOWNLOADS = {
    "alpaca": (
        "yahma/alpaca-cleaned",
        "alpaca_data_cleaned.json",
        "12567cabf869d7c92e573c7c783905fc160e9639",
    ),
    "alpaca-gpt4": (
        "vicgalle/alpaca-gpt4",
        "data/train-00000-of-00001-6ef3991c06080e14.parquet",
        "f7e3ded725cb81e8e564e32feb12860f376f2b51",
    ),
}
BUILT_IN = ("sample", *DOWNLOADS)


@dataclass
class DataSettings:
    """Data"""

    data: str = flag(
        "sample",
        "sample (340 built-in instructions), alpaca or alpaca-gpt4 (52,000 each, downloaded), or a "
        "JSON, JSONL, CSV, TSV, Parquet or Arrow file, also as .gz, .xz or .zip, a folder with one "
        "such table, or a data set of the hub: OWNER/NAME or OWNER/NAME:CONFIGURATION",
        may_change=True,
        names=BUILT_IN,
    )
    revision: str = flag(
        "", "commit, branch or tag of a data set of the hub; left out, the newest; a run records "
        "the commit, and resumed goes on with it", may_change=True,
    )  # fmt: skip
    turns: str = flag(
        "first", "of conversations, in a column `messages` or `conversations`: learn the first "
        "answer alone, or all of them, each with what was said before as its input",
        choices=("first", "all"),
    )  # fmt: skip
    instruction: str = flag(
        "", "one instruction for all rows of a table that has no column for it: Summarise. The "
        "input is then what it is about, in training and in respond.py",
    )  # fmt: skip
    instruction_column: str = flag(
        "instruction", "column with the instruction; `prompt` or `question` is found by itself"
    )
    input_column: str = flag(
        "input", "column with what the instruction is about; a file need not have it"
    )
    output_column: str = flag(
        "output", "column with the answer; `response`, `completion` or `answer` is found by itself"
    )
    fold: str = flag(
        "", "K/N: validate on the K-th of N parts of the training rows, for cross-validation",
    )  # fmt: skip
    split_seed: int = flag(
        1, "which rows are for training, validation and test, and which --max-... keeps; apart "
        "from --seed, so that runs of several seeds are tested on the same rows", at_least=0,
        at_most=2**32 - 1,
    )  # fmt: skip
    max_train: int = flag(
        0, "training rows kept, for a quick trial or a learning curve; 0 keeps all", at_least=0
    )
    max_validation: int = flag(
        0,
        "validation rows kept; 0 keeps all, or the share of them that --max-train keeps",
        at_least=0,
    )
    max_test: int = flag(0, "test rows kept; 0 keeps all", at_least=0)
    max_length: int = flag(512, "tokens kept of prompt and response together", at_least=2)


def read_source(settings: DataSettings, notes: list[str]) -> pl.DataFrame:
    """All rows: `instruction`, `input` and `output` (String, empty where missing), the `split` that
    they came with ("train" where the data has none) and a `group`, which the answers of one
    conversation share. Which files were read, and how, is told in `notes`; columns that were found
    by themselves are put into `settings`.

    Raises UserError if the data is missing or is not as the settings say.
    """
    files = _find(settings.data, settings.revision, notes)
    read: Counter[str] = Counter()
    frames = [
        # In this order, so that a question that stands in two splits stays in the test split.
        _read(path, settings, notes, read).with_columns(split=pl.lit(split), path=pl.lit(str(path)))
        for split in ("test", "validation", "train")
        for path in files.get(split, [])
    ]
    if read:
        notes.append(counts_in_words(read))
    return pl.concat(frames).with_columns(group=pl.concat_str("path", "group", separator=" "))


def _find(data: str, revision: str, notes: list[str]) -> dict[str, list[Path]]:
    """The tables of each split; those of "train" alone are cut into three."""
    if data == "sample":
        return {"train": [SAMPLE]}
    if data in DOWNLOADS:
        repository, file, commit = DOWNLOADS[data]
        return {"train": download_dataset(repository, [file], commit)}
    if hub_name(data):
        return open_dataset(data, revision, notes).files
    path = Path(data)
    if not path.exists():
        names = ", ".join(BUILT_IN)
        raise UserError(
            f"--data {path}: no such file (built-in names: {names}; of the hub: OWNER/NAME)"
        )
    if not path.is_dir():
        return {"train": [path]}
    if saved := saved_files(path):
        return {"train": saved}
    # The layout of a data set's repository: one table, in the folder or in its subfolder `data`,
    # perhaps in several files, train-00000-of-00002.parquet and so on.
    tables = sorted(
        file
        for file in [*path.glob("*"), *path.glob("data/*")]
        if is_table(file) and table_suffix(file) != ".txt"
    )
    files: dict[str, list[Path]] = {}
    for file in tables:  # a file a split, as write_splits.py writes them
        files.setdefault(SPLIT_NAMES.get(re.split(r"[-_.]", file.name.lower())[0], ""), []).append(
            file
        )
    if "train" in files and "" not in files:
        return files
    if len({re.sub(r"-\d+-of-\d+.*", "", file.name) for file in tables}) != 1:
        saved = [folder for folder in sorted(path.glob("*")) if saved_files(folder)]
        names = ", ".join(file.name for file in (tables or saved)[:5]) or "none"
        raise UserError(f"--data {path}: a folder needs one table in it, not {names}; name a file")
    return {"train": tables}


def _read(path: Path, settings: DataSettings, notes: list[str], read: Counter[str]) -> pl.DataFrame:
    """The rows of one file; `group` is the number of the row, or of its conversation."""
    rows = read_rows(path, notes)
    notes.append(f"read {path}: {len(rows):,} rows")
    columns = {
        "instruction": settings.instruction_column,
        "input": settings.input_column,
        "output": settings.output_column,
    }
    known = list(dict.fromkeys(name for row in rows for name in row))
    groups = list(range(len(rows)))
    conversations = find_conversations(known, columns)
    if settings.instruction:
        if settings.instruction_column in known:
            raise UserError(
                f"{path}: has a column '{settings.instruction_column}'; --instruction is for a "
                "table without one"
            )
        rows = [{columns["instruction"]: settings.instruction} | row for row in rows]
        known, conversations = [columns["instruction"], *known], None
    if conversations:
        rows, groups = conversation_rows(path, rows, conversations, settings.turns, read)
        known = list(COLUMNS)
    elif settings.turns == "all":
        raise UserError(
            f"{path}: --turns all is for conversations, in a column `messages` or "
            f"`conversations`; the rows have: {', '.join(known)}"
        )
    else:
        columns = find_columns(path, known, columns, notes)
        settings.instruction_column, settings.input_column = (
            columns["instruction"],
            columns["input"],
        )
        settings.output_column = columns["output"]
    for column, name in columns.items():
        is_optional = (column, name) == ("input", "input") and not settings.instruction
        if name not in known and not is_optional:
            hint = "; a file for classification?" if "label" in known else ""
            raise UserError(
                f"{path}: no field '{name}' (--{column}-column); the rows have: "
                f"{', '.join(known)}{hint}"
            )
    texts: dict[str, list[str]] = {column: [] for column in columns}
    for number, row in enumerate(rows, start=1):
        for column, name in columns.items():
            if name not in row and column != "input":
                raise UserError(f"{path}: row {number} has no field '{name}'")
            # an empty or missing cell: cleaning counts it
            texts[column].append((text_of(row.get(name), path, number, name) or "").strip())
    schema = {column: pl.String for column in columns} | {"group": pl.Int64}
    return pl.DataFrame(texts | {"group": groups}, schema=schema)
