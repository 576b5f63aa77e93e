"""Chapter 2, GPT-2 as released: one trunk of transformer blocks, one head on top.

Module and parameter names are those of the released checkpoints (`wte`, `wpe`, `h.0.attn.c_attn`,
`ln_f`), so that a checkpoint maps onto this file key by key.

Shape letters, used in every comment below:
    B  rows in the batch            T  tokens in the longest row
    C  width of the model, n_embd   V  vocabulary size
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, with the field names of a released `config.json`.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2.

    Raises ValueError if the shape is impossible.
    """

    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads in each block; must divide n_embd
    n_embd: int = 768  # width of the residual stream
    n_positions: int = 1024  # context: the longest row, in tokens
    vocab_size: int = 50257  # tokens in the vocabulary, <|endoftext|> included
    dropout: float = 0.1  # after embeddings, attention weights and both residual projections
    tie_word_embeddings: bool = True  # the output embedding is the input embedding, one tensor

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but must be at least 0 and below 1")


SIZES = {
    "mini": GPT2Config(n_layer=6, n_head=4, n_embd=256, n_positions=512, vocab_size=8192),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and the tokens to its left.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        B, T, C = x.size()
        head_size = C // self.n_head
        # One product makes all three; then each head gets its own slice of the width.
        q, k, v = self.c_attn(x).split(C, dim=2)  # each (B, T, C)
        q = q.view(B, T, self.n_head, head_size).transpose(1, 2)  # (B, n_head, T, head_size)
        k = k.view(B, T, self.n_head, head_size).transpose(1, 2)  # (B, n_head, T, head_size)
        v = v.view(B, T, self.n_head, head_size).transpose(1, 2)  # (B, n_head, T, head_size)

        # softmax(q k^T / sqrt(head_size)) v, in which each token sees itself and those to its left.
        if cache is None:
            y = causal_attention(q, k, v, self.dropout if self.training else 0.0)
        else:  # generation: the cache holds k and v of the tokens before
            k, v, visible = cache.extend(k, v)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)

        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(head_size)) v for queries, keys and values (B, n_head, T, head_size),
    where no token sees those to its right; (B, n_head, T, head_size). Vaswani et al. 2017, section
    3.2.1.

    No padding mask: rows are padded on the right, so every pad that a real token could see stands
    to its right and is hidden already.
    """
    if in_blocks(q.device, q.dtype, q.size(2)) and q.requires_grad:  # only training is slow there
        return _attention_in_blocks(q, k, v, dropout)
    # A mask together with is_causal is an error or, on some kernels, ignored (PyTorch #103749).
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


class MLP(nn.Module):
    """The position-wise feed-forward half of a block: widen four times, GELU, narrow again."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        # GPT-2 was trained with the tanh approximation; exact GELU shifts every logit a little.
        x = F.gelu(self.c_fc(x), approximate="tanh")
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    """One transformer block. The norms stand before attention and MLP (pre-norm), so the residual
    stream itself is never normalised between the embeddings and `ln_f`."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        cache: LayerCache | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, T, C) from (B, T, C); or (N, C) where `at` names N tokens by row and position, two
        (N,) int64. The trunk does so in the last block, when the head reads only some tokens."""
        x = x + self.attn(self.ln_1(x), cache)  # tokens exchange what they know
        if at is not None:  # from here on each token is on its own: drop those that nobody reads
            x = x[at]  # (N, C)
        x = x + self.mlp(self.ln_2(x))  # each token works on what it has gathered
        return x


class GPT2(nn.Module):
    """The trunk, and one head on it. Swapping the head is this one argument:

    >>> from gpt2.heads import ClassificationHead, LanguageModelHead
    >>> config = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=100)
    >>> tokens, lengths = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([3, 1])
    >>> GPT2(config, LanguageModelHead(config))(tokens, lengths).shape
    torch.Size([2, 3, 100])
    >>> GPT2(config, ClassificationHead(config, num_classes=2))(tokens, lengths).shape
    torch.Size([2, 2])
    """

    def __init__(self, config: GPT2Config, head: nn.Module) -> None:
        """`head`: a gpt2.heads.Head of the same `config`. Raises TypeError if it is none."""
        super().__init__()
        if not hasattr(head, "looks_at"):  # importing Head here would be circular
            raise TypeError(
                f"{type(head).__name__} is no head: make it a subclass of gpt2.heads.Head, whose "
                "docstring shows how"
            )
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # what a token is
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)  # where it stands
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.apply(self._initialise)
        self.head = head
        self.tie()
        # Keep only each block's input for the backward pass, and compute the rest once more (Chen
        # et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). The training loop sets it.
        self.activation_checkpointing = False

    def tie(self) -> None:
        """Make the output embedding the input embedding, one tensor, if the head has one to tie.
        Call it again after putting another tensor in the place of `wte.weight`."""
        if self.head.ties_wte:
            self.head.weight = self.wte.weight

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters from bottom to top: embeddings, a tied output embedding among them; each
        block; what stands above the blocks."""
        layers: list[list[nn.Parameter]] = [[] for _ in range(len(self.h) + 2)]
        for name, parameter in self.named_parameters():
            place = -1
            if name.startswith(("wte.", "wpe.")):
                place = 0
            elif name.startswith("h."):
                place = 1 + int(name.split(".")[1])
            layers[place].append(parameter)
        return layers

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if hasattr(module, "c_proj"):
            # Attention and MLP of every block each add a projection to the residual stream. The
            # smaller start keeps its variance independent of depth (GPT-2 paper, section 2.3).
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def hidden_states(
        self,
        tokens: Tensor,
        cache: KeyValueCache | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The hidden states (B, T, C) of `tokens` (B, T) int64, after the last block and `ln_f`.

        With a `cache`, `tokens` continue the rows that it holds. With `at` (rows and positions in
        `tokens`, each (N,) int64), the hidden states (N, C) of these tokens alone; the last block's
        MLP is not computed for the others. Raises ValueError if the rows are longer than the
        context.
        """
        T = tokens.size(1)
        width = T if cache is None else cache.width + T
        if width > self.config.n_positions:
            raise ValueError(f"{width} tokens do not fit in a context of {self.config.n_positions}")
        positions = torch.arange(T, device=tokens.device)  # (T,)
        if cache is not None:  # rows of different lengths go on at different positions
            positions = positions + cache.lengths.unsqueeze(1)  # (B, T)
            visible = torch.arange(width, device=tokens.device) <= positions[:, None, :, None]
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C) + (T, C) or (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            layer_cache = None
            if cache is not None:
                layer_cache = LayerCache(
                    cache.keys[layer], cache.values[layer], cache.rows, positions, visible
                )
            is_last = layer == len(self.h) - 1
            inputs = x, layer_cache, at if is_last else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)  # with the same dropout again
            else:
                x = block(*inputs)
        return self.ln_f(x)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The head's logits for `tokens` (B, T) int64, right-padded, with `lengths` (B,) real
        tokens in each row. What the pads hold does not matter."""
        hidden = self.hidden_states(tokens, at=self.head.looks_at(lengths))  # (B, T, C) or (B, C)
        return self.head(hidden, lengths)


# --- For speed: nothing below changes what the model computes. The key-value cache of generation,
# and attention written out, which is faster on CPUs.


class KeyValueCache:
    """Keys and values of all tokens seen so far, so that generation runs each token through the
    model only once. Rows may have different lengths: each is stored at its own positions.

    keys, values  (n_layer, B, n_head, capacity, head_size)
    rows          (B, 1) int64, their numbers
    lengths       (B,) int64, the real tokens of each row that are stored
    width         positions in use, in the longest row

    The caller updates `lengths` and `width` after each call of the model.
    """

    def __init__(self, config: GPT2Config, rows: int, capacity: int, like: Tensor) -> None:
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, rows, config.n_head, capacity, head_size)
        # Stored in the dtype that attention computes in: converting all of them for each new token
        # would take as long as the token itself. Autocast leaves float64 alone.
        device = like.device.type
        mixed = torch.is_autocast_enabled(device) and like.dtype != torch.float64
        dtype = torch.get_autocast_dtype(device) if mixed else like.dtype
        self.keys = torch.zeros(shape, dtype=dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.rows = torch.arange(rows, device=like.device).unsqueeze(1)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.width = 0


@dataclass
class LayerCache:
    """One layer's part of a `KeyValueCache`, and, the same in all layers, where the T new tokens of
    each row go and which tokens each of them may see."""

    keys: Tensor  # (B, n_head, capacity, head_size)
    values: Tensor  # (B, n_head, capacity, head_size)
    rows: Tensor  # (B, 1)
    positions: Tensor  # (B, T)
    visible: Tensor  # (B, 1, T, width) bool; width: positions in use once the new tokens are in

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store the new keys and values (B, n_head, T, head_size); return all that are in use,
        (B, n_head, width, head_size), and which of them a new token may see, (B, 1, T, width).

        The pads of a shorter row are stored too. That is harmless: they stand to the right of what
        its next token may see, and the tokens that follow overwrite them.
        """
        self.keys[self.rows, :, self.positions] = k.transpose(1, 2)
        self.values[self.rows, :, self.positions] = v.transpose(1, 2)
        width = self.visible.size(3)
        return self.keys[:, :, :width], self.values[:, :, :width], self.visible


QUERIES_AT_ONCE = 128  # of the attention below; fewer make the products too small to be fast
KERNEL_FROM = 768  # tokens of a row from which on torch's kernel is faster in training too


def in_blocks(device: torch.device, dtype: torch.dtype, length: int) -> bool:
    """Whether training on rows of `length` tokens is faster with the formula written out below."""
    return device.type == "cpu" and dtype == torch.bfloat16 and length < KERNEL_FROM


def _attention_in_blocks(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """The formula as it stands in the paper, for one block of queries at a time and only the keys
    that these may see: with 512 tokens that is five eighths of all pairs. torch's kernel is faster
    in the forward pass, but its backward pass in bfloat16 on a CPU is so slow that this wins on
    short rows."""
    T, head_size = q.size(2), q.size(3)
    mask = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    k, v = k.contiguous(), v.contiguous()  # once; otherwise each product copies and keeps them
    outputs = []  # each (B, n_head, end - start, head_size)
    for q_block in (q * head_size**-0.5).split(QUERIES_AT_ONCE, dim=2):
        start = QUERIES_AT_ONCE * len(outputs)
        end = start + q_block.size(2)
        scores = q_block @ k[:, :, :end].transpose(2, 3)  # (B, n_head, end - start, end)
        scores += mask[start:end, :end]
        outputs.append(F.dropout(scores.softmax(dim=3), dropout) @ v[:, :, :end])
    return torch.cat(outputs, dim=2)
