"""The run folder: one place for all that a run leaves behind."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from gpt2.support.distributed import on_rank_0, world_size
from gpt2.support.durable import whole_folder, write_file
from gpt2.support.errors import UserError
from gpt2.support.flags import flag
from gpt2.support.stopping import catch_signals
from gpt2.support.tracking import TRACKERS, Tracker

_LOCK = ".lock"

# All that a run writes. --overwrite removes these and nothing else, in this order: what tells that
# the folder is a run goes last, so that after a kill in between --overwrite still works.
_CONTENTS = (
    "results.json", "before.json", "predictions.parquet",
    "validation_predictions.parquet", "report.md", "mistakes.html", "curves.png",
    "reliability.png", "best", "best.new", "best.old",
    "last", "last.new", "last.old", "tensorboard", "wandb", "metrics.jsonl", "config.json",
)  # fmt: skip


@dataclass
class RunSettings:
    """Run"""

    out: str = flag("", "run folder; left out, a new one under runs/ is chosen")
    overwrite: bool = flag(False, "replace the run that lies in --out")
    resume: str = flag(
        "", "go on with the run in this folder, with its settings, as if it had never stopped; "
        "`auto` goes on with the run in --out if there is one, and starts it if not"
    )  # fmt: skip
    export: str = flag(
        "", "folder that gets the trained model in the Hugging Face layout, for transformers; "
        "a classifier needs --pooling last",
        may_change=True,
    )  # fmt: skip
    seed: int = flag(
        1, "the same seed on the same machine gives the same numbers", at_least=0, at_most=2**32 - 1
    )
    device: str = flag(
        "auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda", "mps"),
        may_change=True,
    )  # fmt: skip
    track: str = flag(
        "none", "where the curves can be watched too: tensorboard shows RUN/tensorboard, trackio "
        "keeps them on this machine, wandb sends them to Weights & Biases; each is a package of "
        "its own", choices=("none", *TRACKERS), may_change=True,
    )  # fmt: skip


class RunFolder:
    """A run's folder and its log, metrics.jsonl: one JSON object for each logged step and each
    evaluation. Nothing is written before `start`, and one run at a time may write: of many
    processes rank 0, while the others call the same methods and wait."""

    def __init__(self, folder: str | Path, overwrite: bool = False, resume: bool = False) -> None:
        self.folder = Path(folder)
        self.overwrite = overwrite
        self.resume = resume
        self.log_records = 0  # lines of metrics.jsonl
        self.track = "none"
        self._tracker: Tracker | None = None  # of rank 0
        self._samples: list[tuple[str, str]] = []

    @staticmethod
    def choose(settings: RunSettings, default_name: str) -> RunFolder:
        """The folder that `settings.out` names, or the first free one of runs/NAME, runs/NAME-2 ...

        Raises UserError if the folder holds anything and `settings.overwrite` is off, if it holds
        anything but a run, or if its name is not UTF-8; of a run to resume, if what it would go on
        from is gone.
        """
        run = on_rank_0(lambda: RunFolder._choose(settings, default_name))
        run.track = settings.track
        return run

    @staticmethod
    def _choose(settings: RunSettings, default_name: str) -> RunFolder:
        if settings.resume:
            run = RunFolder(Path(settings.resume), resume=True)
            run._check_last()
            return run
        if settings.out:
            run = RunFolder(Path(settings.out), settings.overwrite)
            run._check_free()
        else:
            folder, number = Path("runs") / default_name, 1
            while folder.exists():
                number += 1
                folder = Path("runs") / f"{default_name}-{number}"
            run = RunFolder(folder)
        name = os.fsencode(run.folder).decode("utf-8", "replace")
        if name != str(run.folder):
            raise UserError(
                f"--out {name}: safetensors reads from no folder whose name Python does not take "
                "for UTF-8; name another"
            )
        return run

    def _check_last(self) -> None:
        folder = self.folder
        if whole_folder(folder / "last").is_dir():
            return
        best, complete = whole_folder(folder / "best"), (folder / "results.json").is_file()
        log = folder / "metrics.jsonl"
        evaluations = log.read_bytes().count(b'"validation"') if log.is_file() else 0
        # One before training, one more when a kill came between the first best/ and the first
        # last/: such a run starts again, and comes to the same best/.
        if complete or (best.is_dir() and evaluations > 2):
            raise UserError(
                f"--resume {folder}: its last/, from where it would go on, is gone; "
                + (f"a new run goes on from its best weights with --model {shlex.quote(str(best))}"
                   if best.is_dir() else "start a new run")
            )  # fmt: skip

    def _check_free(self) -> None:
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder}: is a file, not a folder")
        left_by_a_kill_in_start = {_LOCK, "config.json.new"}
        if folder.exists() and {file.name for file in folder.iterdir()} - left_by_a_kill_in_start:
            if not (folder / "config.json").is_file() or not (folder / "metrics.jsonl").is_file():
                raise UserError(f"--out {folder}: holds something that is not a run; name another")
            if not self.overwrite:
                raise UserError(
                    f"--out {folder}: already holds a run; name another folder, or replace that "
                    "run with --overwrite"
                )

    def start(self, settings: dict[str, Any], device: str) -> None:
        """Take hold of the folder and write config.json: every setting, the command line, versions,
        device, git commit. A new run empties it of an overwritten one; a resumed one changes
        nothing before `keep_log`. From here on Ctrl-C and SIGTERM end the run where it can go on.

        Raises UserError if it cannot be written or if another process holds it.
        """
        on_rank_0(lambda: self._start(settings, device))
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"{self.folder}: is not there on this machine; name a folder on a disk that all "
                "machines of the run share"
            )
        script = shlex.quote(os.path.relpath(sys.argv[0]))
        starter = "python"
        if world_size() > 1:
            local = int(os.environ["LOCAL_WORLD_SIZE"])
            on_one_machine = f"--standalone --nproc-per-node={local}"
            starter = f"torchrun {on_one_machine if local == world_size() else '...'}"
        catch_signals(f"{starter} {script} --resume {shlex.quote(str(self.folder))}")

    def _start(self, settings: dict[str, Any], device: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / _LOCK)
            self._lock.acquire(timeout=0)  # until this process ends, however it ends
        except filelock.Timeout:
            raise UserError(f"{self.folder}: another process is writing this run") from None
        except OSError as error:
            raise UserError(f"--out {self.folder}: cannot be written ({error.strerror})") from None
        this_start = {
            "command": sys.argv,
            "folder": os.getcwd(),
            "versions": _versions(),
            "device": device,
            "processes": world_size(),
            "threads": torch.get_num_threads(),
            "git_commit": git_commit(),
        }
        if self.resume:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            config["resumed"] = [*config.get("resumed", []), this_start]
            config.setdefault("id", uuid.uuid4().hex[:8])  # older runs have none
        else:
            self._check_free()  # once more: another run may have taken it since
            for name in _CONTENTS:
                old = self.folder / name
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            config = this_start | {"id": uuid.uuid4().hex[:8]}  # by which trackers know the run
        config["settings"] = {
            name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
            for name, value in settings.items()
        }
        self._config = config
        if not self.resume:
            self.write_json("config.json", config)
            (self.folder / "metrics.jsonl").touch()

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, kept in the file `name`: a resumed run reads it there."""
        file = self.folder / name
        if not on_rank_0(lambda: self.resume and file.exists()):
            content = compute()
            on_rank_0(lambda: self.write_json(name, content))
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(
                f"{file}: is damaged; without it the resumed run computes it anew"
            ) from None

    def keep_log(self, records: int) -> None:
        """Cut metrics.jsonl after its first `records` lines: a resumed run writes the others anew,
        and a kill may have left half a line. Call it when nothing can refuse to resume any more:
        the run takes its new settings here, and is no longer complete.

        Raises UserError if one of these lines is no record.
        """
        self.log_records = on_rank_0(lambda: self._keep_log(records))

    def _keep_log(self, records: int) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)  # from Python one may train without `start`
        file = self.folder / "metrics.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)[:records] if file.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line)
            except ValueError:
                raise UserError(f"{file}: line {number} is damaged; mend or remove it") from None
        if len(lines) < records:
            print(f"{file}: {records - len(lines)} of {records} lines are gone; going on without")
        if self.resume:
            (self.folder / "results.json").unlink(missing_ok=True)
            self.write_json("config.json", self._config)
        write_file(file, b"".join(lines))
        if self.track != "none":
            kept = [json.loads(line) for line in lines]
            self._tracker = Tracker(self.track, self.folder, self._config, kept)
        return len(lines)

    def keep_samples(self, samples: list[tuple[str, str]]) -> None:
        """(prompt, answer) of the model at this moment; they go into the next record, which is that
        of the evaluation at hand."""
        self._samples = samples

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl. Raises UserError if it cannot be written."""
        if self._samples:
            record = record | {"samples": self._samples}
            self._samples = []
        on_rank_0(lambda: self._log(record))
        self.log_records += 1

    def _log(self, record: dict[str, Any]) -> None:
        file = self.folder / "metrics.jsonl"
        try:
            with open(file, "a") as opened:
                opened.write(json.dumps(record) + "\n")
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise UserError(
                f"{file}: cannot be written ({error.strerror}); what was saved before is intact"
            ) from None
        if self._tracker:
            self._tracker.log(record)

    def finish_tracking(self) -> None:
        """Wait until --track has all that it gets of this run. For rank 0 alone."""
        if self._tracker:
            self._tracker.finish()

    def read_log(self) -> list[dict[str, Any]]:
        """All records of metrics.jsonl, in their order."""
        return [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` as the file `name` of the run folder. Raises UserError if that fails; a
        file that was there is then as it was. For rank 0 alone."""
        file = self.folder / name
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        try:
            # a path that is not UTF-8 has half surrogates, which JSON can escape
            write_file(file, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror})") from None


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "polars", "tiktoken", "scikit-learn", "safetensors")
    return {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }


@functools.cache  # files may change later, but not what this process has imported
def git_commit() -> str | None:
    """The commit of this source, with a plus sign if files were changed since."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
