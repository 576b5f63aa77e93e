"""Many processes, as torchrun starts them. A process alone passes through here unchanged.

    torchrun --standalone --nproc-per-node=2 classification/train_gpt.py

All processes ("ranks", in torch's word) run the same script on the same data. Each takes its part
of the rows of every step, and gradients are added up before the update, so that all hold the same
weights at any time. Nothing but speed depends on how many there are.

Most functions here are collective: every process must call them, in the same order, or all wait.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2.support.errors import UserError

T = TypeVar("T")

# Longer than anything that rank 0 does alone. Whoever has ended is noticed at once, by its closed
# connection; this is for machines that have vanished.
_PATIENCE = datetime.timedelta(minutes=30)
_SECONDS_FOR_RANK_0 = 5.0


# --- which process is this?


def rank() -> int:
    """The number of this process among all, from 0; as torchrun says, before they have met."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes have met."""
    return dist.get_world_size() if dist.is_initialized() else 1


def init_processes(device: torch.device) -> torch.device:
    """Wait for the other processes that torchrun has started; the device of this one among those of
    its machine. Raises UserError if there are not enough of them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return device
    if device.type == "mps":
        raise UserError("--device mps is for one process; use --device cpu, or leave torchrun out")
    if device.type == "cuda":
        number, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= available:
            raise UserError(
                f"--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has {available} "
                "GPUs; start one process for each, or use --device cpu"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    # gloo too on GPUs: small numbers in main memory are exchanged without waiting for the GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                            timeout=_PATIENCE)  # fmt: skip
    all_reduce_max(0)  # wait until all have met: one that goes on alone might end before
    return device


def destroy_processes() -> None:
    """Undo `init_processes`."""
    if dist.is_initialized():
        dist.destroy_process_group()


# --- rank 0 writes and prints


class _NoTerminal(io.TextIOWrapper):
    """A stream on which tqdm shows no bar."""

    def isatty(self) -> bool:
        return False


def quiet_other_ranks() -> None:
    """Let rank 0 alone print, and show bars. Errors are printed still."""
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        sys.stderr = _NoTerminal(
            sys.__stderr__.buffer, errors="backslashreplace", line_buffering=True
        )


def let_rank_0_speak_first() -> str:
    """Call this before printing why a process ends. Most errors happen in all processes alike, and
    rank 0 prints them: when it has ended, torchrun ends the others while they wait here. Returns
    the prefix for an error that only this process has."""
    if rank() == 0:
        return ""
    time.sleep(_SECONDS_FOR_RANK_0)
    return f"process {rank()}: "


def on_rank_0(work: Callable[[], T]) -> T:
    """What `work` returns, or the UserError that it raises, on rank 0; the other processes wait for
    it and get the same. Everything that writes to the run folder goes through here."""
    if world_size() == 1:
        return work()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = work()
        except UserError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    result, error = answer
    if error is not None:
        raise error
    return result


def connection_lost(error: BaseException) -> bool:
    """Whether `error` says that another process is not there any more. gloo raises a plain
    RuntimeError."""
    many = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return many and (isinstance(error, dist.DistError) or "gloo" in str(error))


# --- sharing the work


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of `items`. All parts are equally long, so that all processes exchange
    equally often: where the items cannot be divided evenly, the first ones stand in two parts. Keep
    the result of each item under a key of its own, and `gather` counts it once.

    >>> share([5, 6, 7])
    [5, 6, 7]
    """
    if world_size() == 1:
        return items
    places = range(rank(), world_size() * math.ceil(len(items) / world_size()), world_size())
    return [items[place % len(items)] for place in places]


def gather(found: dict[int, T]) -> dict[int, T]:
    """What all processes have found, under its keys."""
    if world_size() == 1:
        return found
    parts: list[dict[int, T]] = [{} for _ in range(world_size())]
    dist.all_gather_object(parts, found)
    return {key: value for each in parts for key, value in each.items()}


def micro_batches(
    rows: Sequence[int], cut: Callable[[Sequence[int]], list[Sequence[int]]]
) -> list[tuple[Sequence[int], int]]:
    """This process's part of the `rows` of one step, as `cut` divides it into micro-batches, each
    with its weight, 1. All processes have equally many: one that runs out of rows gets filler
    micro-batches of weight 0, because every process must join each exchange of gradients.

    >>> micro_batches([3, 1, 2], lambda rows: [rows[:2], rows[2:]])
    [([3, 1], 1), ([2], 1)]
    """
    # The rows of a batch are sorted by length: every second (third ...) row is a fair share.
    parts = [cut(rows[first :: world_size()]) for first in range(world_size())]
    mine = [(micro_batch, 1) for micro_batch in parts[rank() if world_size() > 1 else 0]]
    return mine + [(rows[:1], 0)] * (max(map(len, parts)) - len(mine))


def all_reduce_sum(*values: Tensor | float) -> list[Any]:
    """The sum over all processes of each of `values`: of a tensor (), which stays on its device and
    is not waited for, or of a number; whole ones stay whole.

    >>> all_reduce_sum(torch.tensor(0.5), 3, 4)
    [tensor(0.5000), 3, 4]
    """
    if world_size() == 1:
        return list(values)
    sums: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            total = value.double()
            dist.all_reduce(total)
        else:  # in main memory, over gloo
            tensor = torch.tensor(value, dtype=torch.float64)
            dist.all_reduce(tensor)
            total = int(tensor) if tensor.item().is_integer() else tensor.item()
        sums.append(total)
    return sums


def all_reduce_max(number: int) -> int:
    """The largest `number` of all processes: this is how all learn what one has noticed."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def check_alike(name: str, value: str) -> None:
    """Raises UserError unless all processes have the same `value`: files of the same name may
    differ from machine to machine."""
    values = gather({rank(): value})
    others = [number for number in sorted(values) if values[number] != values[0]]
    if others:
        raise UserError(f"{name} of process {others[0]} are not those of process 0")


def seed_step(seed: int, step: int) -> None:
    """Seed the random numbers of one step (dropout's) from `seed`, `step` and the rank: a resumed
    run draws the same ones with nothing saved, and each process draws its own."""
    own = int(np.random.SeedSequence([seed, step, rank()]).generate_state(1)[0])
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


# --- the model on many processes


class Objective(nn.Module):
    """The loss of a model as a module. DistributedDataParallel exchanges only gradients of what its
    `forward` has computed, and a loss may call parts of the model directly."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Any:
        return self.loss(self.model, batch)


def to_device(model: nn.Module, device: torch.device, shard: bool) -> nn.Module:
    """Put `model` on `device`; with `shard`, only this process's part of each of its tensors. A
    block is gathered when it computes, and freed again (PyTorch's fully_shard; Rajbhandari et
    al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models").

    Raises UserError if there are no other processes to share it with.
    """
    if not shard:
        return model.to(device)
    if world_size() == 1:
        raise UserError(
            "--shard shares the model among processes, and this is the only one: start them with "
            "torchrun, or use --no-shard"
        )
    if device.type == "cpu" and torch.__version__ < (2, 13):
        raise UserError("--shard on CPUs needs torch 2.13; older ones add gradients up wrongly")
    # here, because it takes half a second that no other run need wait for
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = dist.init_device_mesh(device.type, (world_size(),))
    for block in model.h:
        fully_shard(block, mesh=mesh)  # moves it to the device, too
    fully_shard(model, mesh=mesh)
    if hasattr(model, "hidden_states"):  # what language models call
        register_fsdp_forward_method(model, "hidden_states")
    return model


def sharded(model: nn.Module) -> bool:
    """Whether each process holds but a part of `model`."""
    return hasattr(model, "reshard")


def reshard(model: nn.Module) -> None:
    """Free what an evaluation of a sharded model has left gathered: embeddings and head."""
    if sharded(model):
        model.reshard()


def parallel_objective(model: nn.Module, loss: Callable[[nn.Module, Any], Any]) -> nn.Module:
    """`loss` of `model` as a module whose backward pass leaves, on every process, the mean of all
    processes' gradients."""
    objective = Objective(model, loss)
    if world_size() == 1 or sharded(model):  # a sharded model exchanges by itself
        return objective
    return DistributedDataParallel(objective, gradient_as_bucket_view=True)


def sync_gradients(objective: nn.Module, now: bool) -> contextlib.AbstractContextManager:
    """A context for one micro-batch, forward and backward: with `now` the processes exchange their
    gradients at its end, otherwise they keep adding them up. (A sharded model exchanges every time:
    it has no room to keep whole gradients.)"""
    waits = isinstance(objective, DistributedDataParallel) and not now
    return objective.no_sync() if waits else contextlib.nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor of a sharded model gathered from all processes; any other tensor as it is."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor


def distribute_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, which all processes have, moved to the device of `parameter` and, if it has its
    shape, sharded in the same way."""
    tensor = tensor.to(parameter.device)
    if not _is_dtensor(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
