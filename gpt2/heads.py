"""Chapter 2, what stands on the trunk: a head turns hidden states (B, T, C) and lengths (B,) into
logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from gpt2.model import GPT2Config


class LanguageModelHead(nn.Module):
    """Logits (B, T, V) for the next token at every position.

    `weight` (V, C) is the output embedding. `GPT2` replaces it with `wte.weight`, so both are one
    tensor (Press and Wolf 2017, "Using the Output Embedding to Improve Language Models"), unless
    the shape has `tie_word_embeddings` off.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))
        if not config.tie_word_embeddings:
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)


# A pooling turns hidden states (B, T, C) into one vector a row (B, C). Pads are known from
# `lengths` alone: a pad is never recognised by its token id, because data may contain any id.
# `query` (C,) is learned, and None for the poolings that do not learn anything.


def pool_last(hidden: Tensor, lengths: Tensor, query: Tensor | None) -> Tensor:
    """The last real token: the only one that has seen the whole text."""
    return hidden[last_tokens(lengths)]


def pool_first(hidden: Tensor, lengths: Tensor, query: Tensor | None) -> Tensor:
    """The first token. In a causal model it has seen nothing but itself: a floor."""
    return hidden[first_tokens(lengths)]


def pool_mean(hidden: Tensor, lengths: Tensor, query: Tensor | None) -> Tensor:
    """The mean over the real tokens."""
    real = real_tokens(hidden, lengths).unsqueeze(2)  # (B, T, 1)
    return hidden.masked_fill(~real, 0).sum(dim=1) / lengths.unsqueeze(1)


def pool_attention(hidden: Tensor, lengths: Tensor, query: Tensor | None) -> Tensor:
    """A weighted mean; a learned query says how much each real token counts."""
    scores = hidden @ query / math.sqrt(hidden.size(2))  # (B, T)
    scores = scores.masked_fill(~real_tokens(hidden, lengths), -math.inf)
    weights = scores.float().softmax(dim=1).to(hidden.dtype)  # (B, T)
    return (weights.unsqueeze(1) @ hidden).squeeze(1)


def last_tokens(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and positions, each (B,) int64, of the last real token of each row."""
    return torch.arange(len(lengths), device=lengths.device), lengths - 1


def first_tokens(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and positions, each (B,) int64, of the first token of each row."""
    return torch.arange(len(lengths), device=lengths.device), torch.zeros_like(lengths)


def real_tokens(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(B, T) bool: True where a token is real, False where it is padding."""
    return torch.arange(hidden.size(1), device=hidden.device) < lengths.unsqueeze(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "last": pool_last,
    "mean": pool_mean,
    "first": pool_first,
    "attention": pool_attention,
}

# The poolings that look at one token of each row, and at which: the trunk leaves the others early.
LOOKS_AT = {"last": last_tokens, "first": first_tokens}


class ClassificationHead(nn.Module):
    """Logits (B, num_classes): pool the row into one vector, then one linear layer.

    `score` has no bias, as in transformers' GPT2ForSequenceClassification. `ln_f` stands right
    before this head and has one.

    Raises ValueError for an unknown pooling or fewer than two classes.
    """

    def __init__(self, config: GPT2Config, num_classes: int, pooling: str = "last") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling '{pooling}' is not one of {', '.join(POOLINGS)}")
        if num_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, not {num_classes}")
        self.num_classes = num_classes
        self.pooling = pooling
        self.score = nn.Linear(config.n_embd, num_classes, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)
        # Zero: the first step starts from the plain mean.
        self.query = nn.Parameter(torch.zeros(config.n_embd)) if pooling == "attention" else None

    def looks_at(self, lengths: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows and positions, each (B,) int64, of the tokens that the pooling looks at, where these
        are one of each row; None where it looks at all."""
        return LOOKS_AT[self.pooling](lengths) if self.pooling in LOOKS_AT else None

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Logits from hidden states (B, T, C), or from (B, C) of the tokens that it looks at."""
        pooled = (
            hidden if hidden.dim() == 2 else POOLINGS[self.pooling](hidden, lengths, self.query)
        )
        # bfloat16 has so few digits that unlike texts would get the very same probabilities.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.score(pooled.to(self.score.weight.dtype))
