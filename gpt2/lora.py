"""Chapter 4, instead of training all weights: low-rank adapters, `--train lora`.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1: what fine-tuning
adds to a matrix has a low rank. So the matrix stays as it is, and the product of two thin ones that
is added to it is learned:

    y = W x + b + alpha / rank * B A x      W (out, in) frozen, A (rank, in), B (out, rank)

B begins at zero, and so training begins with the model as it was. What is frozen has no gradient
and no optimizer state, and below the lowest adapter autograd keeps no activations.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LoRA:
    """What the adapters of a model are like, and whose weights they stand on. A checkpoint, which
    holds the adapters but not these weights, keeps it in JSON."""

    rank: int = 8
    alpha: float = 16.0  # the update counts alpha / rank times
    dropout: float = 0.0  # share of what A reads that is dropped in training
    on: str = "attn,mlp"  # which layers get an adapter: see `add_adapters`
    base: str = ""  # a built-in model's name, a folder, or OWNER/NAME@COMMIT of the hub
    base_sha256: str = ""  # of its weights


class LoRALinear(nn.Module):
    """A linear layer and its adapter. The layer's own tensors keep their names."""

    def __init__(self, layer: nn.Linear, lora: LoRA) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.dropout, self.scaling = lora.dropout, lora.alpha / lora.rank
        out_features, in_features = layer.weight.shape
        self.lora_A = nn.Parameter(layer.weight.new_empty(lora.rank, in_features))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(out_features, lora.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as in the authors' code

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)  # (..., rank)
        return F.linear(x, self.weight, self.bias) + F.linear(self.scaling * narrow, self.lora_B)

    def merged_weight(self) -> Tensor:
        """The one matrix (out, in) that does the same: W + alpha / rank * B A."""
        return self.weight + self.scaling * self.lora_B @ self.lora_A


def add_adapters(model: nn.Module, lora: LoRA) -> None:
    """Freeze `model`, and put an adapter on each linear layer below its head whose name has one of
    the parts that `lora.on` lists: the parts of "h.0.attn.c_attn" are h, 0, attn and c_attn. The
    head is new to the task and trained whole; one that is tied to the embeddings is not new, and
    frozen with them.

    Raises ValueError if a part stands in no layer's name.

    >>> from gpt2.heads import LanguageModelHead
    >>> from gpt2.model import GPT2, GPT2Config
    >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=100)
    >>> model = GPT2(config, LanguageModelHead(config))
    >>> add_adapters(model, LoRA(rank=2, on="c_attn"))
    >>> [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    [('h.0.attn.c_attn.lora_A', [2, 8]), ('h.0.attn.c_attn.lora_B', [24, 2])]
    """
    head = set(model.head.modules())
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in head
    }
    chosen = [part.strip() for part in lora.on.split(",")]
    for part in chosen:
        if not any(part in name.split(".") for name in layers):
            known = dict.fromkeys(part for name in layers for part in name.split("."))
            words = ", ".join(part for part in known if not part.isdecimal())
            raise ValueError(f"'{part}' stands in no linear layer's name; there are {words}")
    model.requires_grad_(False)
    model.head.requires_grad_(not getattr(model.head, "ties_wte", False))  # no encoder's does
    for name, layer in layers.items():
        if any(part in chosen for part in name.split(".")):
            parent, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent), own_name, LoRALinear(layer, lora))
    model.lora = lora


def describe_lora(model: nn.Module) -> dict[str, Any] | None:
    """What a checkpoint says of the adapters of `model`, to make them again; None without any."""
    return dataclasses.asdict(model.lora) if hasattr(model, "lora") else None


def own_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, a tied one once; of a model with adapters those that are trained
    alone, because the others are its base's."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not hasattr(model, "lora")
    }


@torch.no_grad()
def merged_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the model without adapters that computes the same: those of `model` by
    name, a tied one once, with each update added to its matrix."""
    parameters = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            del parameters[f"{name}.lora_A"], parameters[f"{name}.lora_B"]
            parameters[f"{name}.weight"] = module.merged_weight()
    return parameters
