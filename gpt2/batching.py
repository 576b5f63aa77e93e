"""Chapter 3, from rows of token ids to padded batches, with as little padding as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2.command_line import UserError

IGNORE = -100  # a target on which no loss is taken; cross_entropy's own default

# Rows are sorted by length within pools of this many batches. Larger pools pad less but make rows
# that meet in a batch more alike; at 50 IMDb keeps more than 95 % useful tokens.
_POOL_BATCHES = 50


@dataclass(frozen=True)
class Batch:
    """Some rows, right-padded to the longest of them.

    tokens   (B, T) int64
    lengths  (B,) int64, the real tokens of each row. Padding is known from here alone.
    targets  (B,) int64 class ids, or (B, T) int64 next-token ids with -100 where no loss is taken
    """

    tokens: Tensor
    lengths: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(tensor.to(device) for tensor in (self.tokens, self.lengths, self.targets)))


def check_batch_size(data: str, rows: int, batch_size: int) -> None:
    """Raises UserError if the training rows of `data` do not fill one batch."""
    if rows < batch_size:
        raise UserError(
            f"{data}: {rows} training rows are fewer than one batch of {batch_size}; give more "
            "rows or a smaller --batch-size"
        )


def collate(rows: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    """Stack rows of (tokens, target) into a `Batch`.

    `tokens` is (length,) int64 and never empty. `target` is a class id, shape (), or next-token
    ids, shape (length,). Pads are token 0 and target -100.

    >>> collate([(torch.tensor([7, 8]), torch.tensor(1)), (torch.tensor([9]), torch.tensor(0))])
    Batch(tokens=tensor([[7, 8],
            [9, 0]]), lengths=tensor([2, 1]), targets=tensor([1, 0]))
    """
    tokens = [row_tokens for row_tokens, _ in rows]
    targets = [target for _, target in rows]
    lengths = torch.tensor([len(row_tokens) for row_tokens in tokens])
    if lengths.min() < 1:
        raise ValueError("a row without tokens cannot stand in a batch")
    pad = torch.nn.utils.rnn.pad_sequence
    return Batch(
        tokens=pad(tokens, batch_first=True, padding_value=0),
        lengths=lengths,
        targets=pad(targets, batch_first=True, padding_value=IGNORE)
        if targets[0].dim()
        else torch.stack(targets),
    )


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The row numbers of each batch of one epoch: every row once, rows of similar length together,
    batches in random order. A pure function of its arguments, so that a resumed run sees what an
    unbroken one would have seen.

    Rows are shuffled, cut into pools of 50 batches, sorted by length inside each pool and cut into
    batches, which are shuffled. One batch, the last one cut, may be smaller.
    """
    lengths = np.asarray(lengths)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    pool_size = _POOL_BATCHES * batch_size
    batches = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size].tolist() for i in range(0, len(pool), batch_size)]
    random.shuffle(batches)
    return batches


def cut_batch(
    rows: Sequence[int], lengths: Sequence[int], most_rows: int, most_tokens: int = 0
) -> list[list[int]]:
    """The `rows` of one batch, in their order, cut into micro-batches of at most `most_rows` rows
    and `most_tokens` tokens, padding included; 0 tokens set no limit. A row with more stands alone.

    >>> cut_batch([0, 1, 2, 3], lengths=[2, 2, 5, 9], most_rows=8, most_tokens=6)
    [[0, 1], [2], [3]]
    """
    micro_batches: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, int(lengths[row]))
        size = len(micro_batches[-1]) if micro_batches else most_rows
        if size == most_rows or (most_tokens and (size + 1) * longest > most_tokens):
            micro_batches.append([])
            longest = int(lengths[row])
        micro_batches[-1].append(row)
    return micro_batches


def sorted_batches(
    lengths: Sequence[int], batch_size: int, most_tokens: int = 0
) -> list[list[int]]:
    """The row numbers of each batch for evaluation and prediction: every row once, longest first,
    so that a batch that does not fit into memory fails at once and not at the end. `most_tokens` is
    as in `cut_batch`."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    return cut_batch(order, lengths, batch_size, most_tokens)
