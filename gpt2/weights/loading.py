"""Trained weights into a model: those of a built-in name, of a run, of a folder of the field; and
what adapters stand on, found again and recognised by its checksum."""

from __future__ import annotations

from pathlib import Path

import torch

from gpt2.checkpoint import Recipe, load_checkpoint
from gpt2.encoder import Encoder
from gpt2.heads import Head
from gpt2.lora import LoRA, add_adapters, merged_parameters
from gpt2.model import GPT2, SIZES, GPT2Config
from gpt2.support.errors import UserError
from gpt2.tokenizer import MINI_FOLDER
from gpt2.weights.encoders import adapt_encoder
from gpt2.weights.hugging_face import RELEASED, download_released, load_pretrained, weight_files
from gpt2.weights.lora_base import check_there, check_unchanged, sha256_of
from gpt2.weights.model_folder import open_model_folder
from gpt2.weights.peft_layout import WEIGHTS, merge_adapters, read_adapters


def load_model(path: str | Path, task: str) -> tuple[GPT2, Recipe]:
    """The model of any run or checkpoint folder and what stands beside it, as
    gpt2.checkpoint.load_checkpoint gives them. A run of --train lora has saved its adapters alone:
    the weights that they stand on are read from where training read them.

    Raises UserError as `load_checkpoint` does, and if these weights are gone or have changed.
    """
    return load_checkpoint(path, task, _adapt_base)


def _adapt_base(lora: LoRA, model: GPT2 | Encoder) -> GPT2 | Encoder:
    if isinstance(model, Encoder):
        return adapt_encoder(lora, model)
    check_base(lora)
    adapted = pretrained(lora.base, model.config, model.head, take_head=False)
    add_adapters(adapted, lora)
    return adapted


def check_base(lora: LoRA) -> None:
    """Raises UserError if the weights that the adapters stand on are gone or are others now."""
    if lora.base not in SIZES:
        check_there(lora)
    check_unchanged(lora, weights_sha256(lora.base))


def pretrained(model: str, config: GPT2Config, head: Head, take_head: bool) -> GPT2:
    """A model of this shape with this head and the weights of `model`, a built-in name or a folder;
    with `take_head` those of the head, too. Raises UserError if they cannot be had or do not fit.
    """
    if model in SIZES:
        return _fill(_folder_of(model), config, head, take_head=False)
    found = open_model_folder(Path(model))
    if found.kind == "hugging face":
        return _fill(found.folder, config, head, take_head)
    if found.kind == "peft":
        adapters = read_adapters(found.folder)
        filled = pretrained(adapters.base, config, head, take_head and not adapters.head)
        merge_adapters(found.folder, filled, take_head)
        return filled
    filled = GPT2(config, head)
    trained, _ = load_model(found.folder, found.task)
    weights = trained.state_dict() | merged_parameters(trained)
    if not take_head:
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    filled.load_state_dict(weights, strict=False)  # the head may be missing, nothing else
    return filled


def weights_sha256(model: str) -> str:
    """SHA-256 of the files with the weights of `model`, a built-in name or a folder."""
    return sha256_of(_files_of(model))


def _files_of(model: str) -> list[Path]:
    if model in SIZES:
        return [_folder_of(model) / "model.safetensors"]
    found = open_model_folder(Path(model))
    if found.kind == "peft":
        return [found.folder / WEIGHTS, *_files_of(read_adapters(found.folder).base)]
    return weight_files(found.folder)


def _folder_of(name: str) -> Path:
    return download_released(name) if name in RELEASED else MINI_FOLDER


def _fill(folder: Path, config: GPT2Config, head: Head, take_head: bool) -> GPT2:
    with torch.device("meta"):  # no memory and no random numbers for what is about to be read
        model = GPT2(config, head)
    load_pretrained(folder, model, take_head)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise UserError(f"{folder}: has nothing for {', '.join(left)}; use --init random")
    return model
