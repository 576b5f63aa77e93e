"""What a run saves, and how it comes back: safetensors and JSON, no pickle.

best/  last/
  model.safetensors       weights; of --train lora the adapters and a trained head alone
  config.json             task, shape, head, and what prepares new text
  computed.safetensors    two short rows, and the model's logits for them
  encoding.json, ...      the tokenizer
  SHA256SUMS              of all the others
last/ only, for resuming
  optimizer.safetensors   of each trained parameter AdamW's two moments and its step, or Muon's one
  training.json           where the loop stands
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gpt2.encoder import describe_model, rebuild_model
from gpt2.lora import LoRA, describe_lora, own_parameters
from gpt2.support.distributed import distribute_like, full_tensor, on_rank_0, rank, reshard
from gpt2.support.durable import MANIFEST, check_folder, replacing_folder, whole_folder
from gpt2.support.errors import UserError
from gpt2.support.files import write_json
from gpt2.support.run_folder import git_commit
from gpt2.support.same_logits import (
    compute_logits,
    fixed_rows,
    how_changed,
    own_classes,
    same_logits,
)
from gpt2.tokenizer import Encoding, load_encoding, save_encoding

# What each task needs to prepare new text as it was prepared for training, the columns in which it
# stands in a table, and what the weights have learnt from, with the licences.
SETTINGS = {
    "classification": (
        "labels", "max_length", "truncation", "text_column", "label_column", "trained_on",
        "temperature", "threshold",
    ),
    "instruction": (
        "template", "max_length", "instruction", "instruction_column", "input_column",
        "output_column", "turns", "trained_on",
    ),
    "pretraining": ("max_length", "trained_on"),
}  # fmt: skip

# What older runs have not saved.
_OLDER = {
    "truncation": "head",
    "text_column": "text",
    "label_column": "label",
    "instruction": "",
    "instruction_column": "instruction",
    "input_column": "input",
    "output_column": "output",
    "turns": "first",
    "trained_on": [],
    "temperature": 1.0,
    "threshold": None,
}


@dataclass
class Recipe:
    """What is saved beside the weights: how the model's input is prepared and its output read, so
    that the model can be used without the run's data. `settings` has the keys that `SETTINGS` lists
    for `task`."""

    task: str
    encoding: Encoding
    settings: dict[str, Any]


@dataclass
class TrainingState:
    """Where the training loop stands: all its counters, but for what follows from these."""

    step: int = 0  # optimizer steps taken
    evaluated_at: int = -1  # the step of the last evaluation
    first_loss: float | None = None  # on validation, before training
    best_loss: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    validation: dict[str, float] | None = None  # of the last evaluation
    log_records: int = 0  # lines of metrics.jsonl
    logged_loss: float = 0.0  # summed since the last line of metrics.jsonl
    logged_targets: int = 0
    seen_loss: float = 0.0  # summed since the last evaluation
    seen_targets: int = 0
    seconds: float = 0.0  # in steps; evaluation and saving left out
    real_tokens: int = 0  # padding left out
    all_tokens: int = 0
    skipped_steps: int = 0  # in float16
    skipped_in_a_row: int = 0
    scaler: dict[str, float] = field(default_factory=dict)  # of the loss in float16


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    recipe: Recipe,
    state: TrainingState,
    optimizer: torch.optim.Optimizer | None = None,
    data: str = "",
) -> None:
    """Put a checkpoint in the place of `folder`; with `optimizer` and `data` (a checksum of the
    training rows), one to resume from.

    Raises UserError if it cannot be written; `folder` is then as it was.
    """
    description = {
        "task": recipe.task,
        **describe_model(model),
        "lora": describe_lora(model),
        "settings": recipe.settings,
        "step": state.step,
        "validation": state.validation,
        "classes": own_classes(model),
        "git_commit": git_commit(),
    }
    tokens, lengths = fixed_rows(model.config.n_positions, model.config.vocab_size)
    logits = compute_logits(model, tokens, lengths)
    computed = {"tokens": tokens, "lengths": lengths, "logits": logits}
    weights = _on_cpu(_tensors(model))
    moments = _on_cpu(_optimizer_tensors(model, optimizer)) if optimizer else {}

    def write() -> None:
        with replacing_folder(folder) as new:
            save_file(weights, new / "model.safetensors")
            save_file(computed, new / "computed.safetensors")
            save_encoding(recipe.encoding, new)
            write_json(new / "config.json", description)
            if optimizer:
                save_file(moments, new / "optimizer.safetensors")
                training = {"progress": dataclasses.asdict(state), "data": data}
                write_json(new / "training.json", training)

    on_rank_0(write)


def load_training(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, data: str
) -> TrainingState:
    """Make `model` and `optimizer` what they were when `folder` was saved; returns where the loop
    stood.

    Raises UserError if the checkpoint is damaged, is another model's or another head's, if the
    training rows are not those it was saved with, or if its weights compute something else in
    `model` than they did.
    """
    folder = whole_folder(folder)
    check_folder(folder)
    file = folder / "training.json"
    try:
        training = json.loads(file.read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(TrainingState)}
        counted = training["progress"]  # older code saved more
        state = TrainingState(**{name: counted[name] for name in counted if name in known})
        data_then = training["data"]
        file = folder / "config.json"
        then = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: cannot be resumed from ({error!r})") from None
    if data_then != data:
        raise UserError(
            f"{folder}: the training rows are not those that this run began with; give it the same "
            "files again, or start a new run"
        )
    # Others may have the same names and shapes, and compute something else.
    for part, now in (("head", describe_model(model)["head"]), ("lora", describe_lora(model))):
        if then.get(part) != now:
            had = f"was saved with the {part} {then.get(part)}"
            raise UserError(f"{folder}: {had}, but the model has {now}")
    _take_weights(folder, model)
    moments = _read_tensors(folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefix = name + "/"
            optimizer.state[parameter] = {
                # a copy: a view of the mapped file would keep the file open
                key.removeprefix(prefix): distribute_like(tensor.clone(), parameter)
                for key, tensor in moments.items()
                if key.startswith(prefix)
            }
    return state


def load_checkpoint(
    path: str | Path,
    task: str,
    adapt_base: Callable[[LoRA, nn.Module], nn.Module] | None = None,
) -> tuple[nn.Module, Recipe]:
    """The model and what stands beside it, from a run folder (its best weights) or a checkpoint
    folder. The model is on the CPU and in evaluation mode. Of adapters `adapt_base` makes the model
    that they stand on, and puts some there: gpt2.weights.loading.load_model has one.

    Raises UserError if there is no whole checkpoint for `task` in `path`, or if its weights compute
    something else in this code than they did in the code that saved them.
    """
    path = Path(path)
    best = whole_folder(path / "best")
    folder = best if best.is_dir() else path
    if (folder / "metrics.jsonl").is_file():
        raise UserError(f"{path}: this run has not saved a model")
    if not (folder / "config.json").is_file():
        raise UserError(f"{path}: not a run folder or checkpoint (no best/config.json in it)")
    if not (folder / "encoding.json").is_file() and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{path}: not a run folder or checkpoint; a model in the Hugging Face layout is for "
            "transformers, and for --model of the training scripts"
        )
    check_folder(folder)
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found_task = description["task"]
        saved = _OLDER | description["settings"]
        settings = {name: saved[name] for name in SETTINGS[found_task]}
        lora = LoRA(**description["lora"]) if description.get("lora") else None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: not a checkpoint's ({error!r})") from None
    if found_task != task:
        raise UserError(f"{path}: a model for {found_task}, not for {task}")
    try:
        model = rebuild_model(description)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder / 'config.json'}: its model cannot be built: {error}; {_made_by(folder)}"
        ) from None
    if lora:
        if not adapt_base:
            raise UserError(f"{folder}: holds adapters, and not the weights that they stand on")
        model = adapt_base(lora, model)
    _take_weights(folder, model)
    return model.eval(), Recipe(found_task, load_encoding(folder), settings)


def change_settings(folder: Path, changed: dict[str, Any]) -> None:
    """Give the checkpoint `folder` other settings of its recipe, those that are known only after
    training; everything else stays. Raises UserError if it cannot be written."""

    def write() -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["settings"] |= changed
        with replacing_folder(folder) as new:
            for file in folder.iterdir():
                if file.name not in (MANIFEST, "config.json"):
                    shutil.copy(file, new)
            write_json(new / "config.json", config)

    on_rank_0(write)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy the weights of the checkpoint `folder` into `model`. Raises UserError if they are
    damaged or do not fit, and `model` is then unchanged; or if they compute something else in it
    than they did when they were saved."""
    folder = whole_folder(folder)
    check_folder(folder)
    _take_weights(folder, model)


def _take_weights(folder: Path, model: nn.Module) -> None:
    """Copy the weights of the checkpoint `folder` into `model`, and see whether they compute there
    what they did when they were saved. (Older checkpoints do not say.)"""
    _copy_weights(folder, model)
    if not (folder / "computed.safetensors").is_file():
        return
    then = _read_tensors(folder / "computed.safetensors")
    logits = compute_logits(model, then["tokens"], then["lengths"])
    if same_logits(logits, then["logits"]):
        return
    raise UserError(
        f"{folder}: was made by other code, or of another architecture, than this checkout's "
        f"({how_changed(logits, then['logits'])}); {_made_by(folder, model)}"
    )


def _made_by(folder: Path, model: nn.Module | None = None) -> str:
    """Which code made a checkpoint, as far as it says (older ones do not): the classes that `model`
    is not made of, and the commit."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classes = sorted(set(config.get("classes", ())) - set(own_classes(model))) if model else []
    commit = [f"commit {config['git_commit']}"] if config.get("git_commit") else []
    return ", ".join(["use the code that made it", *classes, *commit])


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None


def _copy_weights(folder: Path, model: nn.Module) -> None:
    file = folder / "model.safetensors"
    weights = _read_tensors(file)
    tensors = _tensors(model)
    wrong = sorted(weights.keys() ^ tensors.keys()) or [
        name for name, tensor in tensors.items() if weights[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(
            f"{file}: does not fit the model at {', '.join(wrong[:5])}; {_made_by(folder, model)}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(distribute_like(weights[name], tensor))


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All that makes the model what it is: parameters, a tied one once (state_dict has it twice),
    and the buffers that state_dict keeps, which a changed architecture may have. Of a model with
    adapters those that are trained alone."""
    reshard(model)
    kept = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return own_parameters(model) | buffers


def _optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors in main memory, on rank 0; the other processes give their parts of them."""
    found = {}
    for name, tensor in tensors.items():
        tensor = full_tensor(tensor.detach())
        if rank() == 0:
            found[name] = tensor.cpu().contiguous()
    return found
