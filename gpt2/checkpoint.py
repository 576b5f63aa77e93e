"""What a run saves, and how it comes back: safetensors and JSON, no pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt2.command_line import UserError
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.tokenizer import load_encoding, save_encoding

# What each task needs to prepare new text as it was prepared for training.
SETTINGS = {
    "classification": ("labels", "max_length"),
    "instruction": ("template", "max_length"),
    "pretraining": ("max_length",),
}


@dataclass
class Checkpoint:
    """What stands beside the weights: all that is needed to use the model without the run's data.
    `settings` has the keys that `SETTINGS` lists for `task`."""

    task: str
    encoding: tiktoken.Encoding
    settings: dict[str, Any]


def save_checkpoint(
    folder: Path, model: GPT2, checkpoint: Checkpoint, progress: dict[str, Any]
) -> None:
    """Write `folder` with model.safetensors, config.json and the tokenizer. It is written under
    another name first, so that a crash cannot leave a half-written checkpoint under this one."""
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    weights = {name: t.detach().cpu().contiguous() for name, t in _tensors(model).items()}
    save_file(weights, temporary / "model.safetensors")
    save_encoding(checkpoint.encoding, temporary)
    description = {
        "task": checkpoint.task,
        "model": dataclasses.asdict(model.config),
        "head": _describe_head(model.head),
        "settings": checkpoint.settings,
        "progress": progress,
    }
    (temporary / "config.json").write_text(
        json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for file in temporary.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(path: Path, task: str) -> tuple[GPT2, Checkpoint]:
    """The model and what stands beside it, from a run folder (its best weights) or a checkpoint
    folder. The model is on the CPU and in evaluation mode.

    Raises UserError if there is no whole checkpoint for `task` in `path`.
    """
    folder = path / "best" if (path / "best").is_dir() else path
    if (folder / "metrics.jsonl").is_file():
        raise UserError(f"{path}: this run has not saved a model")
    if not (folder / "config.json").is_file():
        raise UserError(f"{path}: not a run folder or checkpoint (no best/config.json in it)")
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found_task = description["task"]
        config = GPT2Config(**description["model"])
        head = _build_head(config, description["head"])
        settings = {name: description["settings"][name] for name in SETTINGS[found_task]}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: not a checkpoint's ({error!r})") from None
    if found_task != task:
        raise UserError(f"{path}: a model for {found_task}, not for {task}")
    model = GPT2(config, head)
    load_weights(folder, model)
    return model.eval(), Checkpoint(found_task, load_encoding(folder), settings)


def load_weights(folder: Path, model: GPT2) -> None:
    """Copy the weights of the checkpoint `folder` into `model`. Raises UserError if they are
    damaged or are those of another model; `model` is then unchanged."""
    file = folder / "model.safetensors"
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    tensors = _tensors(model)
    wrong = sorted(weights.keys() ^ tensors.keys()) or [
        name for name, tensor in tensors.items() if weights[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(f"{file}: does not fit the model at {', '.join(wrong[:5])}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that makes the model what it is: parameters, a tied one once (state_dict has it twice),
    and the buffers that state_dict keeps, which a changed architecture may have."""
    kept = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return dict(model.named_parameters()) | buffers


def _describe_head(head: torch.nn.Module) -> dict[str, Any]:
    if isinstance(head, LanguageModelHead):
        return {"kind": "language model"}
    return {
        "kind": "classification",
        "num_classes": head.num_classes,
        "pooling": head.pooling,
    }


def _build_head(config: GPT2Config, description: dict[str, Any]) -> torch.nn.Module:
    if description["kind"] == "language model":
        return LanguageModelHead(config)
    return ClassificationHead(config, description["num_classes"], description["pooling"])
