"""What a model computes, on two fixed rows: the same weights in other code are another model."""

from __future__ import annotations

import contextlib
import sys

import torch
from torch import Tensor, nn

from gpt2.support.distributed import reshard

# Rounding alone, from machine to machine, moves logits by about a millionth of the largest (float32
# against float64: 1e-7 to 1e-6). An exact GELU in the place of its approximation, as small a change
# as there is, moves those of mini by 1e-3; another head or order of operations by far more.
_OF_THE_LARGEST = 1e-4
_AT_LEAST = 1e-5  # where all logits are near 0, they are differences of larger numbers


def fixed_rows(context: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Two rows of tokens (2, T) int64 that fit the context and the vocabulary, and their lengths
    (2,). The second is shorter, so that it counts what becomes of pads."""
    tokens = torch.tensor([[1, 2, 3, 5, 8, 13], [21, 34, 55, 0, 0, 0]]) % vocab_size
    return tokens[:, :context], torch.tensor([6, 3]).clamp(max=context)


@torch.no_grad()
def compute_logits(model: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The logits of `model`, any module with `forward(tokens, lengths)`, in evaluation mode and in
    float32, on the CPU; the model stays in the mode it was in. Of a sharded model all processes
    must call this."""
    device = next(model.parameters()).device
    was_training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")  # TF32 rounds as much as an exact GELU changes
    with torch.autocast(device.type, enabled=False), _as_written():
        logits = model(tokens.to(device), lengths.to(device)).float().cpu()
    torch.set_float32_matmul_precision(precision)
    model.train(was_training)
    reshard(model)
    return logits.contiguous()


def _as_written() -> contextlib.AbstractContextManager:
    """A compiled model computes two short rows as it is written: compiling for them takes long."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def same_logits(logits: Tensor, expected: Tensor) -> bool:
    """Whether two computations of logits differ by no more than rounding."""
    allowed = _AT_LEAST + _OF_THE_LARGEST * expected.nan_to_num().abs().max().item()
    return logits.shape == expected.shape and torch.allclose(
        logits, expected, rtol=0, atol=allowed, equal_nan=True
    )


def how_changed(logits: Tensor, expected: Tensor) -> str:
    """The largest difference, in words."""
    if logits.shape != expected.shape:
        return f"logits of shape {list(expected.shape)} are {list(logits.shape)} here"
    largest = (logits - expected).abs().argmax()
    return f"a logit of {expected.flatten()[largest]:.4g} is {logits.flatten()[largest]:.4g} here"


def own_classes(model: nn.Module) -> list[str]:
    """The names of the classes that `model` is made of, torch's own left out (fully_shard puts
    some in front of a sharded model's)."""
    names = set()
    for module in model.modules():
        own = [
            cls.__name__
            for cls in type(module).__mro__
            if cls.__module__.split(".")[0] not in ("torch", "builtins")
        ]
        names.update(own[:1])
    return sorted(names)
