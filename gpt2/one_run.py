"""What the three training scripts do alike: begin a run, build and describe its model, end it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import nn

from gpt2.bookkeeping import NotFinite, TrainingResult
from gpt2.compiling import check_compiler, compile_blocks
from gpt2.encoder import Encoder, EncoderConfig, describe_model
from gpt2.heads import Head
from gpt2.lora import describe_lora
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig, default_learning_rate, default_optimizer
from gpt2.support.device import arithmetic, choose_device
from gpt2.support.distributed import check_alike, init_processes, to_device
from gpt2.support.errors import UserError
from gpt2.support.run_folder import RunFolder, RunSettings
from gpt2.support.tracking import check_tracker
from gpt2.tokenizer import Encoding
from gpt2.weights.building import (
    ModelSettings,
    build_model,
    check_not_overwritten,
    choose_config,
    count_parameters,
    describe_parameters,
    initial_weights,
    model_name,
    starting_point,
)
from gpt2.weights.encoders import (
    EncoderSettings,
    FoundEncoder,
    build_encoder,
    encoder_learning_rate,
    shape_of,
    starting_encoder,
)
from gpt2.weights.export import check_export, export


@dataclass
class OneRun:
    """A run that has begun: where it computes, where it writes, and what its model looks like."""

    device: torch.device
    folder: RunFolder
    family: str  # "GPT-2" or "encoder"
    model_settings: ModelSettings | EncoderSettings  # as given
    start: ModelSettings | FoundEncoder  # what the model is built from: of a resumed run its last/
    training: TrainingConfig
    settings: RunSettings
    config: GPT2Config | EncoderConfig
    encoding: Encoding

    def build_model(
        self, make_head: Callable[[GPT2Config], Head], labels: Sequence[str] | None = None
    ) -> tuple[GPT2, str]:
        """The model on its device, frozen but for what --train names, and where its weights come
        from, in words. Without --optimizer and --learning-rate, the run gets what suits them."""
        train, lora = self.training.train, self.training.lora
        model, origin = build_model(
            self.start, self.config, make_head, train, self.settings.seed, labels, lora
        )
        if self.settings.export:
            check_export(Path(self.settings.export), model)
        pretrained = initial_weights(self.start) == "pretrained"
        if self.training.optimizer is None:
            self.training.optimizer = default_optimizer(model, self.training, pretrained)
        if self.training.learning_rate is None:
            self.training.learning_rate = default_learning_rate(
                model, train, pretrained, self.training.optimizer
            )
        model = to_device(model, self.device, self.training.shard)
        if self.training.compile:
            compile_blocks(model)
        return model, origin

    def build_encoder(self, labels: Sequence[str]) -> tuple[Encoder, str]:
        """The same for a run that `begin_encoder` has begun."""
        train, lora = self.training.train, self.training.lora
        dropout = self.model_settings.dropout
        model, origin = build_encoder(self.start, labels, train, self.settings.seed, lora, dropout)
        self.training.optimizer = self.training.optimizer or "adamw"
        if self.training.learning_rate is None:
            self.training.learning_rate = encoder_learning_rate(train)
        return to_device(model, self.device, self.training.shard), origin

    def start_writing(self, model: nn.Module, origin: str, all_settings: dict[str, Any]) -> None:
        """Print what the model is, and take hold of the run folder."""
        pooling = describe_model(model)["head"].get("pooling")
        lora = describe_lora(model)
        print(
            f"model: {model_name(self.model_settings)}, {origin}, "
            f"{describe_parameters(model, self.training.weight_decay)}; "
            + (f"pooling {pooling}; " if pooling else "")
            + (f"LoRA of rank {lora['rank']} on {lora['on']}; " if lora else "")
            + f"{'Muon' if self.training.optimizer == 'muon' else 'AdamW'}, "
            + f"learning rate {self.training.learning_rate:g}; "
            + f"{arithmetic(self.device, self.training.precision)} on {self.device}"
        )
        self.folder.start(all_settings, str(self.device))
        print(f"run folder: {self.folder.folder}\n")

    def measure_before(
        self, measure: Callable[[], dict[str, Any]], splits: Iterable[tuple[str, pl.DataFrame]]
    ) -> dict[str, Any]:
        """What `measure` finds before training. It is kept in before.json, where a resumed run
        reads it, with a checksum of the rows of each split: what is found after training must be
        measured on the same ones.

        Raises UserError if they are not those that the run began with, or differ among processes.
        """
        rows = {split: _checksum(frame) for split, frame in splits}
        for split, found in rows.items():
            check_alike(f"the {split} rows", found)
        before = self.folder.once("before.json", lambda: measure() | {"rows": rows})
        for split, checksum in before.get("rows", {}).items():  # older runs have none
            if rows[split] != checksum:
                raise UserError(
                    f"{self.folder.folder}: the {split} rows are not those that this run began "
                    "with; give it the same data again (--data, if it has moved), or start a new "
                    "run"
                )
        return before

    def describe_model(self, model: nn.Module, origin: str) -> dict[str, Any]:
        """The part of results.json that says what the model is."""
        parameters, trainable = count_parameters(model)
        head = describe_model(model)["head"]
        is_gpt2 = isinstance(self.model_settings, ModelSettings)
        return {
            "name": model_name(self.model_settings),
            "family": self.family,
            "init": initial_weights(self.model_settings) if is_gpt2 else "pretrained",
            "origin": origin,
            "head": head,
            "pooling": head.get("pooling"),
            "parameters": parameters,
            "trainable": trainable,
            "lora": describe_lora(model),
        }

    def describe_training(self, result: TrainingResult) -> dict[str, Any]:
        """The part of results.json that says what training took."""
        speed = {"tokens_per_second": result.tokens / result.seconds}
        return dataclasses.asdict(result) | speed | {"seed": self.settings.seed}

    def end(self, table: str, summary: str, following: str) -> None:
        """Print what came of the run and what to do next; write what --export asks for."""
        print(f"\n{table}\n\n{summary}")
        print(f"everything of this run: {self.folder.folder / 'report.md'}")
        if self.settings.export:
            export(self.folder.folder, Path(self.settings.export))
        print(f"\nnext, {following}")
        self.folder.finish_tracking()


def begin(
    name: str, model: ModelSettings, training: TrainingConfig, settings: RunSettings
) -> OneRun:
    """Meet the other processes, choose device and run folder, runs/`name`-MODEL if none is given,
    and read the shape of the model. Raises UserError, before any work, if the flags ask for what
    cannot be done."""
    device, folder = _begin(name, model, training, settings)
    start = starting_point(model, folder)
    config, encoding = choose_config(start)
    if settings.export:
        check_export(Path(settings.export))
    return OneRun(device, folder, "GPT-2", model, start, training, settings, config, encoding)


def begin_encoder(
    name: str, model: EncoderSettings, training: TrainingConfig, settings: RunSettings
) -> OneRun:
    """The same for an encoder of transformers."""
    if training.compile:
        raise UserError("--compile knows the blocks of GPT-2 alone; leave it out")
    device, folder = _begin(name, model, training, settings)
    start = starting_encoder(model, folder)
    config = shape_of(start)
    return OneRun(
        device, folder, "encoder", model, start, training, settings, config, start.encoding
    )


def _begin(
    name: str,
    model: ModelSettings | EncoderSettings,
    training: TrainingConfig,
    settings: RunSettings,
) -> tuple[torch.device, RunFolder]:
    check_tracker(settings.track)
    device = init_processes(choose_device(settings.device))
    if device.type == "mps" and training.activation_checkpointing and model.dropout:
        raise UserError(
            "--activation-checkpointing and --dropout do not go together on mps, where torch drops "
            "others the second time (pytorch #127676); leave one of them out"
        )
    if training.compile:
        check_compiler(device)
        if training.shard:
            raise UserError("--compile and --shard do not go together; leave one of them out")
    folder = RunFolder.choose(settings, f"{name}-{model_name(model)}")
    check_not_overwritten(model, folder.folder)
    return device, folder


def _checksum(frame: pl.DataFrame) -> str:
    """SHA-256 of all rows of `frame`."""
    digest = hashlib.sha256()
    for row in frame.iter_rows():
        digest.update(repr(row).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def explaining_not_finite(texts: Sequence[str] = ()) -> Iterator[None]:
    """Around training: say in one line what to do when the loss is no number any more, and quote
    the first of the rows at fault from `texts`, those of the training rows."""
    try:
        yield
    except NotFinite as error:
        quoted = error.rows and len(texts)
        first = f" (the first: '{texts[error.rows[0]][:60]}')" if quoted else ""
        raise UserError(
            f"{error}{first}; a lower --learning-rate, a longer --warmup or --precision float32 "
            "may help"
        ) from None
