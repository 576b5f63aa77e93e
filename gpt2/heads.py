"""Chapter 2, what stands on the trunk: a head turns hidden states (B, T, C) and lengths (B,) into
logits. A new head is one class in this file; see `Head`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.model import GPT2Config


class Head(nn.Module):
    """What every head is: `forward(hidden (B, T, C), lengths (B,)) -> logits`, and the arguments
    that build it again. With no more than that it trains, saves, resumes and predicts:

    >>> class TwoLayerHead(Head):
    ...     def __init__(self, config, num_classes, width=64):
    ...         super().__init__(num_classes=num_classes, width=width)
    ...         self.narrow = nn.Linear(config.n_embd, width)
    ...         self.choose = nn.Linear(width, num_classes)
    ...     def forward(self, hidden, lengths):
    ...         return self.choose(torch.tanh(self.narrow(pool_mean(hidden, lengths))))
    >>> config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=10)
    >>> describe_head(TwoLayerHead(config, num_classes=3))
    {'kind': 'TwoLayerHead', 'num_classes': 3, 'width': 64}
    """

    ties_wte = False  # whether `weight` (V, C) is the input embedding, one tensor

    def __init__(self, **arguments: Any) -> None:
        """`arguments`: those of the subclass, but for `config`. Raises TypeError if JSON, in which
        a checkpoint keeps them, cannot hold one."""
        super().__init__()
        for name, value in arguments.items():
            if not _comes_back_from_json(value):
                raise TypeError(
                    f"{type(self).__name__}: {name}={value!r} would not come back from a "
                    "checkpoint, which keeps it in JSON; give a number, string, boolean or None, "
                    "or a list or dictionary of these"
                )
        self.arguments = arguments

    def looks_at(self, lengths: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows and positions, each (B,) int64, of the only tokens whose hidden states `forward`
        needs: it then gets (B, C), and the trunk spares the others the last MLP. None: all."""
        return None

    def counterpart(self) -> str:
        """The class of transformers that computes the same from the same weights. Raises
        ValueError, with the reason, if there is none: such a head cannot be exported."""
        name = type(self).__name__
        raise ValueError(f"{name} cannot be exported: transformers has no head that does the same")


def describe_head(head: Head) -> dict[str, Any]:
    """What a checkpoint says of a head: its kind and the arguments that build it again."""
    return {"kind": _kind(type(head)), **head.arguments}


def build_head(config: GPT2Config, description: dict[str, Any]) -> Head:
    """A new head of the class and with the arguments that `describe_head` gave. Raises ValueError
    if no imported class is of this kind, or two are, TypeError if it takes other arguments."""
    arguments = dict(description)
    kind = arguments.pop("kind")
    found = [cls for cls in _subclasses(Head) if _kind(cls) == kind]
    if not found:
        raise ValueError(
            f"this checkout's gpt2/heads.py has no head '{kind}'; its class must stand there"
        )
    names = sorted({cls.__name__ for cls in found})
    if len(names) > 1:  # a copied class, with the `kind` of the one that it was copied from
        raise ValueError(
            f"{' and '.join(names)} are both of the kind '{kind}'; leave `kind` out of a new head"
        )
    return found[-1](config, **arguments)


def _comes_back_from_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value  # a tuple would come back as a list
    except (TypeError, ValueError):
        return False


def _kind(cls: type[Head]) -> str:
    # vars(): a subclass of ClassificationHead computes something else, so it is of another kind.
    return vars(cls).get("kind", cls.__name__)


def _subclasses(cls: type) -> list[type]:
    direct = cls.__subclasses__()
    return direct + [below for each in direct for below in _subclasses(each)]


class LanguageModelHead(Head):
    """Logits (B, T, V) for the next token at every position.

    `weight` (V, C) is the output embedding. `GPT2` replaces it with `wte.weight`, so both are one
    tensor (Press and Wolf 2017, "Using the Output Embedding to Improve Language Models"), unless
    the shape has `tie_word_embeddings` off.
    """

    kind = "language model"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ties_wte = config.tie_word_embeddings
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))
        if not self.ties_wte:
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)

    def counterpart(self) -> str:
        return "GPT2LMHeadModel"


# A pooling turns hidden states (B, T, C) into one vector a row (B, C). Pads are known from
# `lengths` alone: a pad is never recognised by its token id, because data may contain any id.
# `query` (C,) is learned, and None for the poolings that do not learn anything.


def pool_last(hidden: Tensor, lengths: Tensor, query: Tensor | None = None) -> Tensor:
    """The last real token: the only one that has seen the whole text."""
    return hidden[last_tokens(lengths)]


def pool_first(hidden: Tensor, lengths: Tensor, query: Tensor | None = None) -> Tensor:
    """The first token. In a causal model it has seen nothing but itself: a lower bound, for
    comparison."""
    return hidden[first_tokens(lengths)]


def pool_mean(hidden: Tensor, lengths: Tensor, query: Tensor | None = None) -> Tensor:
    """The mean over the real tokens."""
    real = real_tokens(hidden, lengths).unsqueeze(2)  # (B, T, 1)
    return hidden.masked_fill(~real, 0).sum(dim=1) / lengths.unsqueeze(1)


def pool_attention(hidden: Tensor, lengths: Tensor, query: Tensor) -> Tensor:
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

# The poolings that look at one token of each row, and at which: the trunk skips the last MLP for
# the other tokens.
_LOOKS_AT = {"last": last_tokens, "first": first_tokens}


class ClassificationHead(Head):
    """Logits (B, num_classes): pool the row into one vector, then one linear layer.

    `score` has no bias, as in transformers' GPT2ForSequenceClassification. `ln_f` stands right
    before this head and has one.

    Raises ValueError for an unknown pooling or fewer than two classes.
    """

    kind = "classification"

    def __init__(self, config: GPT2Config, num_classes: int, pooling: str = "mean") -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling '{pooling}' is not one of {', '.join(POOLINGS)}")
        if num_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, not {num_classes}")
        super().__init__(num_classes=num_classes, pooling=pooling)
        self.pooling = pooling
        self.score = nn.Linear(config.n_embd, num_classes, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)
        # Zero: the first step starts from the plain mean.
        self.query = nn.Parameter(torch.zeros(config.n_embd)) if pooling == "attention" else None

    def looks_at(self, lengths: Tensor) -> tuple[Tensor, Tensor] | None:
        if type(self).forward is not ClassificationHead.forward:
            return None  # a subclass with a `forward` of its own may want to see all tokens
        return _LOOKS_AT[self.pooling](lengths) if self.pooling in _LOOKS_AT else None

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Logits from hidden states (B, T, C), or from (B, C) of the tokens that it looks at."""
        pooled = (
            hidden if hidden.dim() == 2 else POOLINGS[self.pooling](hidden, lengths, self.query)
        )
        # bfloat16 has so few digits that unlike texts would get the very same probabilities.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.score(pooled.to(self.score.weight.dtype))

    def counterpart(self) -> str:
        if type(self) is not ClassificationHead:
            return super().counterpart()  # a subclass computes something else
        if self.pooling != "last":
            raise ValueError(
                f"a classifier with pooling {self.pooling} cannot be exported: transformers' "
                "GPT2ForSequenceClassification looks at the last token of a text and nothing "
                "else; train with --pooling last"
            )
        return "GPT2ForSequenceClassification"
