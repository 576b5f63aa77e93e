"""What label_curve.py and sweep.py do alike: runs of the training scripts in processes of their
own, each once, with flags given after `--`; and the mean over seeds."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.support.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]


def words_before_and_after_dashes(set_for_each_run: set[str]) -> tuple[list[str], list[str]]:
    """The command line before `--` and after it, what goes to every run as it is. Raises UserError
    if the latter has a flag that is set for each run."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    before, after = words[:cut], words[cut + 1 :]
    for flag in set_for_each_run & {word.split("=")[0] for word in after}:
        raise UserError(
            f"-- {flag}: is set for each run; --help shows what may stand before the --"
        )
    return before, after


def mean_and_deviation(values: list[float], digits: int) -> str:
    """In a table, the mean and, of several values, the standard deviation of a sample.

    >>> mean_and_deviation([60, 62], 1)
    '61.0 ± 1.4'
    """
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def run_once(command: list[str], folder: Path) -> dict[str, Any]:
    """results.json in `folder`, after `command`, a script of this repository and its flags, has
    made it if it was not there.

    Raises UserError if the command is stopped, or if other flags have made what is there;
    SystemExit if the command refuses its flags, which it has said itself.
    """
    if not (folder / "results.json").is_file():
        script = str(_ROOT / command[0])
        done = subprocess.run(
            [sys.executable, script, *command[1:], "--out", str(folder)], stdout=subprocess.DEVNULL
        )
        if done.returncode == 2:
            sys.exit(2)
        if done.returncode:
            raise UserError(f"{folder}: stopped; the same command goes on where it was")
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        made_by = config["command"][1:-2]  # the last two were --out
        if made_by != command[1:]:
            raise UserError(
                f"{folder}: was made by other flags, {shlex.join(made_by)}; remove it, or give "
                "another --out"
            )
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
