"""Curves elsewhere than in the run folder: --track tensorboard, trackio or wandb.

metrics.jsonl is the log of a run; a tracker only shows it. Whenever a run starts or goes on, the
tracker gets all records that the log has then, and so no point is lost or doubled, whatever was
killed when, and tracking may also begin in the middle of a run. What goes wrong with a tracker ends
the tracking, not the training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt2.support.errors import UserError

TRACKERS = ("tensorboard", "trackio", "wandb")
_PROJECT = "gpt2-finetuning"

Record = dict[str, Any]  # one line of metrics.jsonl


def check_tracker(name: str) -> None:
    """Raises UserError if the package of this tracker is not installed."""
    if name in TRACKERS and importlib.util.find_spec(name) is None:
        raise UserError(
            f"--track {name}: needs the package {name}, which is not installed: pip install {name}"
        )


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record, by the names of their curves.

    >>> scalars({"step": 10, "epoch": 0.5, "loss": 0.7})
    {'training/epoch': 0.5, 'training/loss': 0.7}
    >>> scalars({"step": 20, "epoch": 1.0, "validation": {"loss": 0.6}, "samples": [["Hi", "Yo"]]})
    {'validation/loss': 0.6}
    """
    if "validation" in record:
        return {f"validation/{name}": value for name, value in record["validation"].items()}
    return {f"training/{name}": value for name, value in record.items() if name != "step"}


class Tracker:
    """Shows the log of a run in one of `TRACKERS`: the `records` that it has when the run starts or
    goes on, and each that `log` gets. `config` is the content of config.json."""

    def __init__(self, name: str, folder: Path, config: Record, records: list[Record]) -> None:
        self.name = name
        self._curves: TensorBoard | Trackio | WandB | None = None
        with self._going_on_without():
            kind = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}[name]
            self._curves = kind(folder, config)
            for record in records:
                self._curves.log(record)

    def log(self, record: Record) -> None:
        """Show one more record."""
        if self._curves:
            with self._going_on_without():
                self._curves.log(record)

    def finish(self) -> None:
        """Wait until all is written, or sent."""
        if self._curves:
            with self._going_on_without():
                self._curves.finish()

    @contextlib.contextmanager
    def _going_on_without(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk, a network that is down, whatever a library raises
            self._curves = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            tqdm.write(
                f"warning: --track {self.name} has failed ({reason}); the run goes on without it, "
                "and metrics.jsonl has it all"
            )


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path, config: Record) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        shutil.rmtree(place, ignore_errors=True)  # all is written anew
        # With a purge_step, a TensorBoard that shows this run forgets what it had from that step on
        self._writer = SummaryWriter(str(place), purge_step=0)
        settings = json.dumps(config["settings"], indent=2)
        self._writer.add_text("settings", f"```json\n{settings}\n```", 0)

    def log(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])
        if "samples" in record:
            quoted = [f"**{prompt}**\n\n{answer}" for prompt, answer in record["samples"]]
            self._writer.add_text("samples", "\n\n".join(quoted), record["step"])
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class Trackio:
    """A run in trackio's database on this machine, which `trackio show` opens."""

    def __init__(self, folder: Path, config: Record) -> None:
        import trackio

        name = f"{folder.resolve().name}-{config['id']}"
        with contextlib.suppress(ValueError):  # there is no such project yet
            for run in trackio.Api().runs(_PROJECT):
                if run.name.endswith(config["id"]):
                    run.delete()  # all is written anew
        trackio.init(
            _PROJECT, name, config=config["settings"], embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip
        self._trackio = trackio

    def log(self, record: Record) -> None:
        self._trackio.log(_with_table(record, self._trackio.Table), step=record["step"])

    def finish(self) -> None:
        self._trackio.finish()


class WandB:
    """A run of Weights & Biases, or with WANDB_MODE=offline, or where it cannot be reached, files
    in RUN/wandb, which `wandb sync` sends later."""

    def __init__(self, folder: Path, config: Record) -> None:
        import wandb

        def start(mode: str | None) -> Any:
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT), name=folder.resolve().name,
                id=config["id"], resume="allow", config=config["settings"], dir=str(folder),
                mode=mode, reinit="finish_previous", settings=wandb.Settings(console="off"),
            )  # fmt: skip

        for earlier in (folder / "wandb").glob("offline-run-*"):
            shutil.rmtree(earlier, ignore_errors=True)  # all is written anew
        try:
            self._run = start(None)  # as WANDB_MODE says
        except wandb.Error as error:  # no network, nobody logged in
            reason = str(error).splitlines()[0]
            tqdm.write(f"--track wandb: {reason} Its files stay in {folder / 'wandb'} for now")
            self._run = start("offline")
        self._table = wandb.Table
        self._run.define_metric("*", step_metric="step")
        # wandb takes what comes in the order of its own count, here the number of the record, and
        # what it has already it cannot take back.
        self._number, self._known = 0, self._run.step

    def log(self, record: Record) -> None:
        if self._number >= self._known:
            content = _with_table(record, self._table) | {"step": record["step"]}
            self._run.log(content, step=self._number)
        self._number += 1

    def finish(self) -> None:
        self._run.finish()


def _with_table(record: Record, table: Any) -> dict[str, Any]:
    """What trackio and wandb get of a record; `table` is their class for one."""
    content: dict[str, Any] = scalars(record)
    if "samples" in record:
        content["samples"] = table(columns=["prompt", "answer"], data=record["samples"])
    return content
