"""--compile: torch.compile of the model's blocks. Nothing here changes what the model computes."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gpt2.model
from gpt2.model import GPT2, LayerCache
from gpt2.support.device import DeviceSettings
from gpt2.support.errors import UserError
from gpt2.support.flags import flag

# Pieces of code that torch may make of one function; with its own limit of 8 it would go on without
# compiling, after one warning. A block has one for training and one for evaluation, and each once
# more for a batch of one row, for rows of one token and with a cache.
_VARIANTS = 64


@dataclass
class InferenceSettings(DeviceSettings):
    """Device"""

    compile: bool = flag(
        False, "compile the model with torch.compile: seconds to minutes at the start, then faster "
        "batches, for many texts; needs a C++ compiler",
    )  # fmt: skip


def check_compiler(device: torch.device) -> None:
    """Raises UserError if torch.compile has not what it needs for `device`."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "c++", "clang++", "cl")
    if not any(map(shutil.which, compilers)):
        raise UserError("--compile needs a C++ compiler (g++ or clang++); leave it out")
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise UserError("--compile on a GPU needs the package triton; leave it out")


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile make one piece of code of what stands in a block: all blocks share it, and
    rows of every length. Parameters keep their names.

    Left as they are written: a block that gets `at`, for which another piece would be needed (it is
    the last one); and on a CPU attention in blocks of queries, which has more parts the longer the
    rows are.

    Raises UserError if `model` is an encoder, if there is no compiler, or if it fails when the
    model first runs.
    """
    if not isinstance(model, GPT2):
        raise UserError("--compile knows the blocks of GPT-2 alone; leave it out")
    check_compiler(next(model.parameters()).device)
    torch._dynamo.config.cache_size_limit = _VARIANTS
    # Not a piece of its own for a batch that has, by chance, as many rows as the model has heads.
    torch.fx.experimental._config.use_duck_shape = False
    if not hasattr(gpt2.model._attention_in_blocks, "_torchdynamo_disable"):
        gpt2.model._attention_in_blocks = torch.compiler.disable(gpt2.model._attention_in_blocks)
    for block in model.h:
        block.forward = _compiled(block.forward)


def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Block.forward` of one block, compiled where it can be."""
    compiled = torch.compile(forward, dynamic=True)

    def compiled_forward(
        x: Tensor, cache: LayerCache | None = None, at: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        if at is not None:
            return forward(x, cache, at)
        try:
            return compiled(x, cache)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--compile: {reason}; leave --compile out") from None

    return compiled_forward
