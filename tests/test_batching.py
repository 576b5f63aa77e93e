"""Batches: exact contents, every row once, order a function of (seed, epoch), little padding."""

import numpy as np
import pytest
import torch

from gpt2.batching import IGNORE, collate, cut_batch, shuffled_batches, sorted_batches


def test_collate_class_ids_exactly():
    batch = collate([(torch.tensor([3, 1]), torch.tensor(1)), (torch.tensor([9]), torch.tensor(0))])
    assert batch.tokens.tolist() == [[3, 1], [9, 0]]
    assert batch.lengths.tolist() == [2, 1]
    assert batch.targets.tolist() == [1, 0]
    assert batch.tokens.dtype == batch.lengths.dtype == batch.targets.dtype == torch.int64


def test_collate_token_targets_exactly():
    batch = collate(
        [(torch.tensor([3]), torch.tensor([4])), (torch.tensor([5, 6]), torch.tensor([IGNORE, 7]))]
    )
    assert batch.tokens.tolist() == [[3, 0], [5, 6]]
    assert batch.targets.tolist() == [[4, IGNORE], [IGNORE, 7]]


def test_a_row_without_tokens_is_refused():
    with pytest.raises(ValueError, match="without tokens"):
        collate([(torch.tensor([], dtype=torch.int64), torch.tensor(0))])


@pytest.mark.parametrize("rows, batch_size", [(1, 8), (8, 8), (9, 8), (1000, 8), (7, 1)])
def test_every_row_stands_in_one_batch(rows, batch_size):
    lengths = np.random.default_rng(0).integers(1, 500, rows)
    for batches in (
        shuffled_batches(lengths, batch_size, 1, 0),
        sorted_batches(lengths, batch_size),
    ):
        assert sorted(row for batch in batches for row in batch) == list(range(rows))
        assert max(map(len, batches)) <= batch_size
        assert len(batches) == -(-rows // batch_size)  # as many as the loop plans steps


def test_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 500, 300)
    first = shuffled_batches(lengths, 8, 1, 0)
    np.random.seed(9)  # process state must not matter
    torch.manual_seed(9)
    assert shuffled_batches(lengths, 8, 1, 0) == first
    assert shuffled_batches(lengths, 8, 1, 1) != first
    assert shuffled_batches(lengths, 8, 2, 0) != first


def test_little_padding_and_no_order_by_length():
    """Lengths as IMDb has them: rows of a batch are alike, batches come in random order."""
    lengths = np.random.default_rng(0).lognormal(5.4, 0.7, 20_000).clip(10, 512).astype(int)
    batches = shuffled_batches(lengths, 32, 1, 0)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert lengths.sum() / padded > 0.95
    longest = [lengths[batch].max() for batch in batches]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.15


def test_evaluation_starts_with_the_longest_rows():
    assert sorted_batches([3, 9, 5], 2) == [[1, 2], [0]]
    assert sorted_batches([3, 9, 5], 2, max_tokens=10) == [[1], [2, 0]]


def test_a_batch_is_cut_by_rows_and_by_padded_tokens():
    """Three rows of 4 would be 12 tokens, the limit; the row of 9 would make two of them 18."""
    lengths = [4, 4, 4, 4, 9, 1, 1]
    assert cut_batch(range(7), lengths, max_rows=8, max_tokens=12) == [
        [0, 1, 2],
        [3],
        [4],
        [5, 6],
    ]
    assert cut_batch(range(7), lengths, max_rows=3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert cut_batch(range(7), lengths, max_rows=2, max_tokens=9) == [[0, 1], [2, 3], [4], [5, 6]]
    assert cut_batch(range(7), lengths, max_rows=8, max_tokens=2) == [
        [0],
        [1],
        [2],
        [3],
        [4],
        [5, 6],
    ]
    assert cut_batch([], lengths, max_rows=8) == []
