"""Runs of the training scripts in processes of their own, each once: what is finished is read."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpt2.support.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]


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
