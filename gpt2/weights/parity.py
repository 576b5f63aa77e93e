"""Whether transformers computes from a model's weights what the model computes.

What transformers does is written out here once more, with nothing of gpt2/model.py: whoever changes
a block there must not export a model that is another one elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.lora import merged_parameters
from gpt2.model import GPT2
from gpt2.support.errors import UserError
from gpt2.support.same_logits import compute_logits, fixed_rows, same_logits


def check_parity(model: GPT2) -> None:
    """Raises UserError, with the reason, if transformers has no model like `model`, which is on the
    CPU, or would compute something else from its weights."""
    try:
        architecture = model.head.counterpart()
        tokens, lengths = fixed_rows(model.config.n_positions, model.config.vocab_size)
        theirs = transformers_logits(model, architecture, tokens, lengths)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not same_logits(compute_logits(model, tokens, lengths), theirs):
        raise UserError(
            f"this model cannot be exported: {architecture} of transformers computes something "
            "else from the same weights; its blocks or its head are not those of GPT-2"
        )


@torch.no_grad()
def transformers_logits(model: GPT2, architecture: str, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The logits that transformers' `architecture` computes from the parameters of `model`, its
    adapters merged, for `tokens` (B, T) with `lengths` (B,): (B, T, V), or (B, classes) of a
    classifier.

    Raises ValueError if it has other parameters than these.
    """
    config, left = model.config, merged_parameters(model)
    C = config.n_embd

    def take(name: str, *shape: int) -> Tensor:
        found = left.pop(name, torch.empty(0))
        if found.shape != shape:
            raise ValueError(
                f"this model cannot be exported: {name} is {list(found.shape)}, and must be "
                f"{list(shape)} in transformers"
            )
        return found

    def linear(x: Tensor, name: str, width: int) -> Tensor:
        weight = take(f"{name}.weight", width, x.size(-1))
        return F.linear(x, weight, take(f"{name}.bias", width))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), take(f"{name}.weight", C), take(f"{name}.bias", C), eps=1e-5)

    B, T = tokens.shape
    wte = take("wte.weight", config.vocab_size, C)
    x = wte[tokens] + take("wpe.weight", config.n_positions, C)[:T]  # (B, T, C)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for block in range(config.n_layer):
        qkv = linear(norm(x, f"h.{block}.ln_1"), f"h.{block}.attn.c_attn", 3 * C)
        # q, k and v, each (B, n_head, T, head_size)
        q, k, v = (part.view(B, T, config.n_head, -1).transpose(1, 2) for part in qkv.split(C, 2))
        scores = q @ k.transpose(2, 3) / math.sqrt(C // config.n_head)  # (B, n_head, T, T)
        mixed = scores.masked_fill(future, -math.inf).softmax(3) @ v
        mixed = mixed.transpose(1, 2).reshape(B, T, C)
        x = x + linear(mixed, f"h.{block}.attn.c_proj", C)
        wide = linear(norm(x, f"h.{block}.ln_2"), f"h.{block}.mlp.c_fc", 4 * C)
        x = x + linear(F.gelu(wide, approximate="tanh"), f"h.{block}.mlp.c_proj", C)
    hidden = norm(x, "ln_f")
    if architecture == "GPT2ForSequenceClassification":
        last = hidden[torch.arange(B), lengths - 1]  # (B, C)
        logits = last @ take("head.score.weight", model.head.score.out_features, C).T
    elif config.tie_word_embeddings:
        logits = hidden @ wte.T
    else:
        logits = hidden @ take("head.weight", config.vocab_size, C).T
    if left:
        raise ValueError(
            f"this model cannot be exported: transformers has no place for {', '.join(left)}"
        )
    return logits
