"""Adapters in the layout of the library peft: written by `export --adapter`, read by `--model`.

A folder with adapter_config.json (what the adapters are like, and the name of their base) and
adapter_model.safetensors: A and B of each matrix, of a classifier its head too. A and B stand there
as they do here, though the matrices of transformers' GPT-2 are transposed (`Conv1D`): that is what
`fan_in_fan_out` says.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt2.lora import own_parameters
from gpt2.model import GPT2
from gpt2.support.errors import UserError
from gpt2.support.files import read_utf8, write_json
from gpt2.tokenizer import MINI_FOLDER
from gpt2.weights.hugging_face import RELEASED, STORED_HEADS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# What may stand in adapter_config.json and changes nothing of what is computed here. Anything else
# has to be off: peft knows many more kinds of adapters.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "modules_to_save", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "target_modules", "task_type",
}  # fmt: skip
_ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # pissa and others change W, too
}


@dataclass(frozen=True)
class PeftAdapters:
    """What lies in such a folder."""

    base: str  # a built-in model's name or a folder
    alpha: float
    tensors: dict[str, Tensor]  # by this project's names, "h.0.attn.c_attn.lora_A"

    @property
    def head(self) -> str | None:
        """The name of the head's weight, if it is there."""
        return next((name for name in STORED_HEADS if name in self.tensors), None)


def read_adapters(folder: Path) -> PeftAdapters:
    """What lies in `folder`. Raises UserError if that is not LoRA as gpt2/lora.py has it, if its
    base is neither a released GPT-2 nor a folder, or if it is damaged."""
    file = folder / CONFIG
    try:
        content = json.loads(read_utf8(file))
        for name, value in content.items():
            allowed = _ONLY.get(name, (None,))
            if name not in _HARMLESS and value not in allowed and (value or name in _ONLY):
                raise UserError(
                    f"{file}: {name} is {value}; of peft's adapters only plain LoRA is read here"
                )
        base, alpha = _find_base(file, content["base_model_name_or_path"]), content["lora_alpha"]
        alpha = float(alpha)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a description of adapters ({error!r})") from None
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
    return PeftAdapters(base, alpha, {_our_name(name): value for name, value in stored.items()})


def _find_base(file: Path, name: str) -> str:
    for known, (repository, _) in RELEASED.items():
        if name in (known, repository):
            return known
    if not name or not Path(name).is_dir():
        raise UserError(
            f"{file}: its base '{name}' is neither a released GPT-2 ({', '.join(RELEASED)}) nor a "
            "folder; write into base_model_name_or_path where it lies"
        )
    return "mini" if Path(name).samefile(MINI_FOLDER) else str(Path(name).resolve())


def _our_name(stored: str) -> str:
    name = stored.removeprefix(_PREFIX).removeprefix("transformer.")
    heads = {there: here for here, there in STORED_HEADS.items()}
    return heads.get(name) or re.sub(r"\.(lora_[AB])\.weight$", r".\1", name)


@torch.no_grad()
def merge_adapters(folder: Path, model: GPT2, take_head: bool) -> None:
    """Add the updates in `folder` to the matrices of `model`, and `take_head` that it brings.
    Raises UserError, before `model` is touched, if they do not fit, naming the first five."""
    adapters = read_adapters(folder)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    left = set(adapters.tensors) - {adapters.head}
    updates = {}
    for name, layer in layers.items():
        a, b = (adapters.tensors.get(f"{name}.lora_{matrix}") for matrix in "AB")
        if a is None or b is None:
            continue
        rank, (out_features, in_features) = len(a), layer.weight.shape
        if a.shape == (rank, in_features) and b.shape == (out_features, rank):
            left -= {f"{name}.lora_A", f"{name}.lora_B"}
            updates[name] = adapters.alpha / rank * b.float() @ a.float()
    if left or not updates:
        wrong = ", ".join(sorted(left)[:5]) or "there are none"
        raise UserError(f"{folder / WEIGHTS}: no adapters of this model's linear layers: {wrong}")
    for name, update in updates.items():
        layers[name].weight += update
    if take_head and adapters.head:
        dict(model.named_parameters())[adapters.head].copy_(adapters.tensors[adapters.head])


def write_adapters(folder: Path, model: GPT2, dtype: torch.dtype) -> str:
    """Write the adapters of `model` and its trained head into `folder`; returns the name of their
    base. Raises UserError if it has none, or if their base is not in the Hugging Face layout."""
    if not hasattr(model, "lora"):
        raise UserError("--adapter: this run has no adapters; it was not trained with --train lora")
    base, revision = model.lora.base, None
    if base in RELEASED:
        base, revision = RELEASED[base]
    elif base == "mini":
        base = str(MINI_FOLDER)
    elif (Path(base) / CONFIG).is_file() or (Path(base) / "encoding.json").is_file():
        raise UserError(
            f"--adapter: the adapters stand on {base}, which is not in the Hugging Face layout; "
            "without --adapter they are merged, and need no base"
        )
    tensors, modules = {}, []
    for name, parameter in own_parameters(model).items():
        layer, _, matrix = name.rpartition(".")
        if matrix == "lora_A":
            modules.append(layer)
        adapter = matrix in ("lora_A", "lora_B")
        stored = f"transformer.{name}.weight" if adapter else STORED_HEADS[name]
        tensors[_PREFIX + stored] = parameter.detach().cpu().to(dtype).contiguous()
    short = sorted({re.sub(r"^h\.\d+\.", "", name) for name in modules})
    in_all_blocks = len(short) * len(model.h) == len(modules)
    heads = [STORED_HEADS[name] for name in own_parameters(model) if name in STORED_HEADS]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "score.weight" in heads else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "lora_dropout": model.lora.dropout,
        "target_modules": short if in_all_blocks else modules,
        "fan_in_fan_out": True,
        "bias": "none",
        "modules_to_save": [name.removesuffix(".weight") for name in heads] or None,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)
    return base
