"""Chapter 3, from rows of token ids to padded batches, with as little padding as possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gpt2.support.distributed import gather, share
from gpt2.support.errors import UserError
from gpt2.support.stopping import stop_if_asked

T = TypeVar("T")

IGNORE = -100  # a target on which no loss is taken; cross_entropy's own default

# Rows are sorted by length within pools of this many batches. Larger pools need less padding but
# make the rows of a batch more alike; with 50, more than 95 % of IMDb's tokens are no padding.
_POOL_BATCHES = 50


@dataclass(frozen=True)
class Batch:
    """Some rows, right-padded to the longest of them.

    tokens   (B, T) int64
    lengths  (B,) int64, the real tokens of each row. Padding is known from here alone.
    targets  (B,) int64 class ids, or (B, T) int64 next-token ids with -100 where no loss is taken
    at       of next-token ids, rows and positions, each (N,) int64, of the N on which loss is taken
    """

    tokens: Tensor
    lengths: Tensor
    targets: Tensor
    at: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # Here, in main memory: found on a GPU, their number would have to be waited for.
        if self.at is None and self.targets.dim() == 2:
            object.__setattr__(self, "at", (self.targets != IGNORE).nonzero(as_tuple=True))

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""

        def move(tensor: Tensor) -> Tensor:
            if device.type != "cuda":
                return tensor.to(device)
            return tensor.pin_memory().to(device, non_blocking=True)  # nobody waits for the copy

        at = self.at and (move(self.at[0]), move(self.at[1]))
        return Batch(move(self.tokens), move(self.lengths), move(self.targets), at)


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
    unbroken one would have seen. One batch may be smaller than the others.
    """
    lengths = np.asarray(lengths)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))  # 1. shuffle all rows
    pool_size = _POOL_BATCHES * batch_size
    batches = []
    for start in range(0, len(order), pool_size):  # 2. sort by length inside each pool
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size].tolist() for i in range(0, len(pool), batch_size)]
    random.shuffle(batches)  # 3. or every epoch would go from short rows to long ones
    return batches


def steps_from(
    first: int, steps: int, lengths: Sequence[int], batch_size: int, seed: int
) -> Iterator[tuple[int, list[int]]]:
    """Each step from `first` to `steps` - 1 and its rows. Which rows a step has depends on its
    number alone, so that a resumed run goes on with the rows that it would have had.

    >>> list(steps_from(1, 3, lengths=[5, 5, 5], batch_size=2, seed=0))
    [(1, [2, 0]), (2, [1])]
    """
    steps_per_epoch = math.ceil(len(lengths) / batch_size)
    for step in range(first, steps):
        epoch, place = divmod(step, steps_per_epoch)
        if place == 0 or step == first:
            batches = shuffled_batches(lengths, batch_size, seed, epoch)
        yield step, batches[place]


def cut_batch(
    rows: Sequence[int], lengths: Sequence[int], max_rows: int, max_tokens: int = 0
) -> list[list[int]]:
    """The `rows` of one batch, in their order, cut into micro-batches of at most `max_rows` rows
    and `max_tokens` tokens, padding included (0: no limit). A longer row gets a micro-batch of its
    own.

    >>> cut_batch([0, 1, 2, 3], lengths=[2, 2, 5, 9], max_rows=8, max_tokens=6)
    [[0, 1], [2], [3]]
    """
    micro_batches: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, int(lengths[row]))
        size = len(micro_batches[-1]) if micro_batches else max_rows
        # With this row, all rows of the micro-batch would be padded to `longest`.
        if size == max_rows or (max_tokens and (size + 1) * longest > max_tokens):
            micro_batches.append([])
            longest = int(lengths[row])
        micro_batches[-1].append(row)
    return micro_batches


def sorted_batches(lengths: Sequence[int], batch_size: int, max_tokens: int = 0) -> list[list[int]]:
    """The row numbers of each batch for evaluation and prediction: every row once, longest first,
    so that a batch that does not fit into memory fails at the start and not at the end.
    `max_tokens` is that of `cut_batch`."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    return cut_batch(order, lengths, batch_size, max_tokens)


def map_batches(
    compute: Callable[[list[int]], T],
    batches: Sequence[list[int]],
    desc: str = "",
    together: bool = False,
) -> list[T]:
    """What `compute` makes of the rows of each batch, in the order of the batches, on however many
    processes: each takes its part of the batches or, `together`, all of them. Evaluation and
    answering go through here. `desc` names a bar; without it none is shown.

    Raises Stopped between two batches if Ctrl-C or SIGTERM has come.
    """
    numbers = range(len(batches)) if together else share(range(len(batches)))
    if desc:
        numbers = tqdm(numbers, desc=desc, unit="batch", disable=None, leave=False)
    found: dict[int, T] = {}
    for number in numbers:
        found[number] = compute(batches[number])
        stop_if_asked()
    found = gather(found)
    return [found[number] for number in range(len(batches))]
