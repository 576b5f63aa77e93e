"""The run folder: one place for all that a run leaves behind."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2.command_line import UserError, flag

# All that a run writes. --overwrite removes these and nothing else.
_CONTENTS = (
    "config.json", "metrics.jsonl", "results.json", "report.md", "curves.png",
    "best", "best.new", "best.old", "last", "last.new", "last.old",
)  # fmt: skip


@dataclass
class RunSettings:
    """Run"""

    out: str = flag("", "run folder; left out, a new one under runs/ is chosen")
    overwrite: bool = flag(False, "replace the run that lies in --out")
    export: str = flag(
        "", "folder that gets the trained model in the Hugging Face layout, for transformers"
    )
    seed: int = flag(
        1, "the same seed on the same machine gives the same numbers", at_least=0, at_most=2**32 - 1
    )
    device: str = flag(
        "auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda", "mps")
    )


class RunFolder:
    """A run's folder and its log, metrics.jsonl: one JSON object for each logged step and each
    evaluation. Nothing is written before `start`."""

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self.overwrite = overwrite

    @staticmethod
    def choose(settings: RunSettings, default_name: str) -> RunFolder:
        """The folder that `settings.out` names, or the first free one of runs/NAME, runs/NAME-2 ...

        Raises UserError if the folder holds anything and `settings.overwrite` is off, or if it
        holds anything but a run.
        """
        if not settings.out:
            folder, number = Path("runs") / default_name, 1
            while folder.exists():
                number += 1
                folder = Path("runs") / f"{default_name}-{number}"
            return RunFolder(folder)
        run = RunFolder(Path(settings.out), settings.overwrite)
        run._check_free()
        return run

    def _check_free(self) -> None:
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder}: is a file, not a folder")
        if folder.exists() and any(folder.iterdir()):
            if not (folder / "config.json").is_file() or not (folder / "metrics.jsonl").is_file():
                raise UserError(f"--out {folder}: holds something that is not a run; name another")
            if not self.overwrite:
                raise UserError(
                    f"--out {folder}: already holds a run; name another folder, or replace that "
                    "run with --overwrite"
                )

    def start(self, settings: dict[str, Any], device: str) -> None:
        """Make the folder, empty it of an overwritten run, and write config.json: every setting,
        the command line, versions, device, git commit. Raises UserError if it cannot be written."""
        try:
            self._check_free()  # once more: another run may have taken it since
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in _CONTENTS:
                old = self.folder / name
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            config = {
                "settings": {
                    name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
                    for name, value in settings.items()
                },
                "command": sys.argv,
                "versions": _versions(),
                "device": device,
                "threads": torch.get_num_threads(),
                "git_commit": _git_commit(),
            }
            self.write_json("config.json", config)
            (self.folder / "metrics.jsonl").touch()
        except OSError as error:
            raise UserError(f"--out {self.folder}: cannot be written ({error.strerror})") from None

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """All records of metrics.jsonl, in their order."""
        return [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write `content` as the file `name` of the run folder."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (self.folder / name).write_text(text, encoding="utf-8")


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "polars", "tiktoken", "scikit-learn", "safetensors")
    return {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }


def _git_commit() -> str | None:
    """The commit of this source, with a plus sign if files were changed since."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
