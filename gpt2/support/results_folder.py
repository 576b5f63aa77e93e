"""Evaluations of finished runs: with which settings these began, and where the results go,
results.json, report.md and predictions.parquet."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from gpt2.support.durable import write_file
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, folder_of_last_start, path_from_here
from gpt2.support.splits import hub_name

T = TypeVar("T")


@dataclass
class ResultsSettings:
    """Results"""

    out: str = flag(
        "", "folder that gets results.json, report.md and predictions.parquet; left out, the "
        "report is printed"
    )  # fmt: skip
    overwrite: bool = flag(False, "replace the evaluation that lies in --out")


def check_results_folder(settings: ResultsSettings) -> None:
    """Raises UserError if no evaluation can be written to --out: there is one already and it is
    not to be replaced, or there is something else, a run say."""
    folder = Path(settings.out)
    if not settings.out:
        if settings.overwrite:
            raise UserError("--overwrite goes with --out; add it")
        return
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder}: is a file, not a folder")
    there = {file.name for file in folder.iterdir()}
    if (there and not {"results.json", "predictions.parquet"} <= there) or "metrics.jsonl" in there:
        raise UserError(f"--out {folder}: holds something that is no evaluation; name another")
    if there and not settings.overwrite:
        raise UserError(
            f"--out {folder}: holds an evaluation already; name another folder, or replace it with "
            "--overwrite"
        )


def read_settings(folder: Path, cls: type[T]) -> T:
    """The settings of the dataclass `cls` that the run in `folder` had; fields that older code did
    not know keep their default, and a path means what it meant where the run was started. Raises
    UserError if it is not a run, or if what the path names is gone."""
    values = {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        saved = {name: value for group in config["settings"].values() for name, value in
                 group.items()}  # fmt: skip
        started_in = folder_of_last_start(config)
        for field in dataclasses.fields(cls):
            if field.name not in saved:
                continue
            value, names = saved[field.name], field.metadata["names"]
            if names is not None:  # a path, or one of these
                value = path_from_here(value, started_in, names)
            if field.name == "data" and isinstance(value, str):  # it is about to be read
                if not (value in names or hub_name(value) or Path(value).exists()):
                    raise UserError(
                        f"{folder}: its --data {value} is not there; put it back, or start this in "
                        "the folder in which the run was started"
                    )
            values[field.name] = value
        return cls(**values)
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder}: does not say which data it was trained on: its config.json is not a run's; "
            "instead of a checkpoint name its run"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: does not say which data it was trained on ({error!r})"
        ) from None


def warn_of_training_rows(run: Path, data: str) -> None:
    """Say so if the run was trained on rows of the file or folder `data`."""
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        then = config["settings"]["data"]["data"]
        place = Path(folder_of_last_start(config), then)
        same = then == data or place.resolve() == Path(data).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return  # a checkpoint without its run
    if same:
        print("  warning: the run was trained on most of these rows; it knows their answers")


def show_results(
    settings: ResultsSettings, results: dict[str, Any], report: str, predictions: pl.DataFrame
) -> None:
    """Write the three files, each whole or not at all, or print the report if there is no --out."""
    if not settings.out:
        print(report, end="")
        return
    folder = Path(settings.out)
    table = io.BytesIO()
    predictions.write_parquet(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "predictions.parquet", table.getvalue())
        write_file(folder / "report.md", report.encode("utf-8"))
        content = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        write_file(folder / "results.json", content.encode("utf-8"))
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None
    print(f"{folder}: results.json, report.md, predictions.parquet with {len(predictions):,} rows")
