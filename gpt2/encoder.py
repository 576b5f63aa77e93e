"""Chapter 2, another model for the same loop: a pre-trained encoder (BERT and its kin), computed by
the library transformers.

What loop, evaluation, checkpoint and prediction need of a model, and have of GPT-2 as well:

    model(tokens (B, T), lengths (B,))   its logits; what the pads hold does not matter
    model.config                         n_positions, the longest row; vocab_size
    model.layers()                       its parameters from bottom to top: embeddings, each block,
                                         what stands above: for --train and layer-wise rates
    model.head                           what --train head trains
    model.activation_checkpointing       the loop sets it

A checkpoint keeps what `describe_model` says of a model, and `rebuild_model` makes it again: these
two alone know that there are two kinds. Its tokens are an EncoderTokenizer of gpt2/tokenizer.py.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.heads import build_head, describe_head
from gpt2.lora import describe_lora, merged_parameters
from gpt2.model import GPT2, GPT2Config
from gpt2.support.errors import UserError


def import_transformers() -> ModuleType:
    """transformers, without its bars and notes; here, because nothing else in gpt2/ needs it.
    Raises UserError if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "an encoder needs transformers, which is not installed: pip install -e '.[encoder]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@dataclass(frozen=True)
class EncoderConfig:
    """What the rest of the project asks of an encoder's shape."""

    n_positions: int  # the longest row, in tokens
    vocab_size: int


class Encoder(nn.Module):
    """An encoder of transformers with its classifier, behind the contract above.

    `network` is what AutoModelForSequenceClassification makes: BertForSequenceClassification,
    DistilBertForSequenceClassification ... Its parameters keep their names, behind `network.`.

    Raises ValueError if it has no blocks or no limit to its positions: it is no such encoder then.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        trunk = network.base_model
        lists = {n: m for n, m in trunk.named_modules() if isinstance(m, nn.ModuleList)}
        if not lists or not getattr(network.config, "max_position_embeddings", 0):
            raise ValueError(f"{type(network).__name__} is not made of blocks over positions")
        path = max(lists, key=lambda name: len(lists[name]))  # "encoder.layer" of BERT
        self._path_to_blocks = path
        self._checkpoints = False
        self.config = EncoderConfig(_longest_row(network), network.config.vocab_size)
        # bfloat16 has so few digits that unlike texts would get the very same probabilities.
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        linear[-1].register_forward_hook(_in_full_precision)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, num_classes) for `tokens` (B, T) int64, right-padded, with `lengths` (B,) real
        tokens in each row."""
        real = torch.arange(tokens.size(1), device=tokens.device) < lengths.unsqueeze(1)  # (B, T)
        # RoBERTa counts its positions by what is no pad, so the pads must be its own.
        pad = self.network.config.pad_token_id or 0
        tokens = tokens.masked_fill(~real, pad)
        return self.network(input_ids=tokens, attention_mask=real.long()).logits

    @property
    def h(self) -> nn.ModuleList:
        """The blocks, as GPT-2 calls them."""
        return self.network.base_model.get_submodule(self._path_to_blocks)

    @property
    def name_of_blocks(self) -> str:
        """The part of a name that all blocks share, and they alone: "layer" of BERT."""
        return self._path_to_blocks.rpartition(".")[2]

    @property
    def head(self) -> nn.ModuleList:
        """What stands above the blocks: the classifier, and of BERT the pooler before it."""
        trunk = self.network.base_model
        names = [name for name, _ in trunk.named_children()]
        above = names.index(self._path_to_blocks.split(".")[0]) + 1
        return nn.ModuleList(
            [trunk.get_submodule(name) for name in names[above:]]
            + [module for module in self.network.children() if module is not trunk]
        )

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters from bottom to top, each once: embeddings; each block; the head."""
        upper = [list(part.parameters()) for part in (*self.h, self.head)]
        known = {id(parameter) for part in upper for parameter in part}
        embeddings = [p for p in self.parameters() if id(p) not in known]
        return [embeddings, *upper]

    @property
    def activation_checkpointing(self) -> bool:
        """Whether a block keeps its input alone for the backward pass and is computed again."""
        return self._checkpoints

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: bool) -> None:
        if on != self._checkpoints:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # transformers is about to call these otherwise
                if on:
                    self.network.gradient_checkpointing_enable({"use_reentrant": False})
                else:
                    self.network.gradient_checkpointing_disable()
        self._checkpoints = on


def _longest_row(network: nn.Module) -> int:
    """RoBERTa and its kin leave the first positions out: they begin behind that of the pad."""
    left_out = 0
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            left_out = 0 if module.padding_idx is None else module.padding_idx + 1
    return network.config.max_position_embeddings - left_out


def _in_full_precision(linear: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook that computes a linear layer without autocast."""
    with torch.autocast(output.device.type, enabled=False):
        return F.linear(inputs[0].to(linear.weight.dtype), linear.weight, linear.bias)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint says of a model, JSON that `rebuild_model` reads: of GPT-2 `model`, its
    shape, and `head`; of an encoder `encoder`, its configuration in transformers, and `head`."""
    if isinstance(model, GPT2):
        return {"model": dataclasses.asdict(model.config), "head": describe_head(model.head)}
    config = model.network.config.to_dict()
    del config["_name_or_path"]  # where it was read from: a resumed run's is another one
    head = {"kind": type(model.network).__name__, "num_classes": model.network.config.num_labels}
    return {"encoder": config, "head": head}


def rebuild_model(description: dict[str, Any]) -> nn.Module:
    """The model that `describe_model` has described, with random weights. Raises ValueError,
    TypeError or KeyError if it cannot be built; UserError if it needs transformers, which is not
    there."""
    if "encoder" in description:
        return Encoder(new_network(description["encoder"]))
    config = GPT2Config(**description["model"])
    return GPT2(config, build_head(config, description["head"]))


def new_network(config: dict[str, Any]) -> nn.Module:
    """The network of an encoder with this configuration, in float32 and with random weights."""
    transformers = import_transformers()
    known = transformers.AutoConfig.for_model(**config)
    return transformers.AutoModelForSequenceClassification.from_config(known, dtype=torch.float32)


def merge_encoder(model: Encoder) -> Encoder:
    """The encoder without adapters that computes what `model` does: `model` if it has none."""
    if not describe_lora(model):
        return model
    merged = rebuild_model(describe_model(model)).eval()
    weights = model.state_dict() | merged_parameters(model)
    merged.load_state_dict(weights, strict=False)  # but for the adapters, which have no place there
    return merged
