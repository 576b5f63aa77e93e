"""Chapter 2, a look inside: which tokens does a token attend to?

The model itself never holds these weights: torch's fast attention gives their result alone. So they
are computed here once more, from the same matrices and by the formula of the paper.
"""

import math

import torch
from torch import Tensor

from gpt2.model import GPT2


@torch.no_grad()
def attention_weights(model: GPT2, tokens: Tensor, layer: int) -> Tensor:
    """How much each token attends to each other one in block `layer` (0 is the first), for each of
    its heads: softmax(q k^T / sqrt(head_size)), Vaswani et al. 2017, section 3.2.1.

    tokens (B, T) int64, right-padded  ->  (B, n_head, T, T): row, head, query, key

    The weights of a query sum to 1, and are 0 for the keys to its right: so no real token attends
    to a pad. (The queries of pads mean nothing.) Give it a model in evaluation mode. Raises
    IndexError if there is no such block.
    """
    block = model.h[layer]
    x = model.wte(tokens) + model.wpe(torch.arange(tokens.size(1), device=tokens.device))
    for below in model.h[:layer]:
        x = below(x)  # (B, T, C)
    B, T, C = x.size()
    head_size = C // block.attn.n_head

    q, k, _ = block.attn.c_attn(block.ln_1(x)).split(C, dim=2)  # each (B, T, C)
    q = q.view(B, T, block.attn.n_head, head_size).transpose(1, 2)  # (B, n_head, T, head_size)
    k = k.view(B, T, block.attn.n_head, head_size).transpose(1, 2)  # (B, n_head, T, head_size)
    scores = q @ k.transpose(2, 3) / math.sqrt(head_size)  # (B, n_head, T, T)
    to_the_right = torch.ones(T, T, dtype=torch.bool, device=tokens.device).triu(1)
    return scores.masked_fill(to_the_right, -torch.inf).softmax(dim=3)
