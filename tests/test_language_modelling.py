"""The chunked cross-entropy is cross-entropy, in its value and in its gradients."""

import pytest
import torch
from torch.nn import functional as F

from gpt2.batching import IGNORE, Batch
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import ChunkedCrossEntropy, language_model_loss
from gpt2.model import GPT2, GPT2Config


def inputs(dtype, count=1100, vocabulary=50):
    """More targets than two chunks of 512, and not a multiple."""
    torch.manual_seed(0)
    hidden = torch.randn(count, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, 16, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (count,))


def both(dtype, factor=1.0, train=(True, True)):
    """Loss and gradients of the chunked and of torch's own cross-entropy."""
    results = []
    for ours in (True, False):
        hidden, weight, targets = inputs(dtype)
        hidden.requires_grad_(train[0])
        weight.requires_grad_(train[1])
        if ours:
            loss = ChunkedCrossEntropy.apply(hidden, weight, targets)
        else:
            loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        (loss * factor).backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    return results


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_loss_and_gradients_are_those_of_cross_entropy(factor):
    for ours, theirs in zip(*both(torch.float64, factor), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused():
    """Through what stands before the loss it would be finite, and wrong."""
    hidden, weight, targets = inputs(torch.float64, count=5)
    loss = ChunkedCrossEntropy.apply(hidden**2, weight, targets)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_what_is_frozen_gets_no_gradient():
    for train in ((True, False), (False, True)):
        for ours, theirs in zip(*both(torch.float64, train=train), strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_it_is_as_near_as_torch_is():
    hidden, weight, targets = inputs(torch.float32)
    exact = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    exact_gradients = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours = ChunkedCrossEntropy.apply(hidden, weight, targets)
    gradients = torch.autograd.grad(ours, (hidden, weight))
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(exact.item(), rel=2e-3)
    for one, other in zip(gradients, exact_gradients, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()
    with torch.no_grad():
        assert ChunkedCrossEntropy.apply(hidden, weight, targets).item() == pytest.approx(
            exact.item()
        )


class HeadWithBias(LanguageModelHead):
    def forward(self, hidden, lengths):
        return super().forward(hidden, lengths) + 3 * torch.arange(50)


def test_a_head_of_ones_own_is_used_as_it_is():
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=50)
    torch.manual_seed(0)
    tokens = torch.tensor([[1, 2, 3], [4, 0, 0]])
    targets = torch.tensor([[2, 3, 49], [49, IGNORE, IGNORE]])
    batch = Batch(tokens, torch.tensor([3, 1]), targets)
    for make_head in (LanguageModelHead, HeadWithBias):
        model = GPT2(config, make_head(config)).eval()
        logits = model(tokens, batch.lengths).flatten(0, 1)
        expected = F.cross_entropy(logits, targets.flatten(), reduction="sum")
        loss, count = language_model_loss(model, batch)
        assert loss.item() == pytest.approx(expected.item()) and count == 4
