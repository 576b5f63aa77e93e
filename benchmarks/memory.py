"""Does it fit? What fine-tuning a GPT-2 takes, all weights or adapters, computed and measured.

python benchmarks/memory.py                              # every built-in size, computed
python benchmarks/memory.py --measure gpt2               # one of them, measured in two steps
python benchmarks/memory.py --measure gpt2 --train lora
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import dataclasses
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.lora import LoRA, add_adapters
from gpt2.model import GPT2, QUERIES_AT_ONCE, SIZES, GPT2Config, in_blocks
from gpt2.optimization import parameter_groups
from gpt2.support.device import DeviceSettings, arithmetic, autocast, choose_device, peak_memory
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import format_table
from gpt2.weights.building import count_parameters
from gpt2.weights.hugging_face import RELEASED

_GIB = 2**30


@dataclass
class MemorySettings:
    """Memory"""

    measure: str = flag("", "built-in size to measure: two steps on random weights and tokens")
    train: str = flag(
        "all", "what is trained: all weights, or adapters of rank 8 and a head",
        choices=("all", "lora"),
    )  # fmt: skip
    max_length: int = flag(512, "tokens of each row", at_least=1)
    batch_size: int = flag(8, "rows in memory at once (--micro-batch-size in training)", at_least=1)


def count_by_shape(config: GPT2Config) -> int:
    """The parameters of a language model of this shape, without making one."""
    with torch.device("meta"):
        return count_parameters(GPT2(config, LanguageModelHead(config)))[0]


def download_size(config: GPT2Config) -> int:
    """Bytes of a released model.safetensors: float32, and the causal mask of each block with it.
    What is missing, the file's header, is less than 100 kB."""
    return 4 * (count_by_shape(config) + config.n_layer * config.n_positions**2)


def count_adapters(config: GPT2Config) -> int:
    """The parameters of the adapters that --train lora puts on a model of this shape."""
    with torch.device("meta"):
        model = GPT2(config, LanguageModelHead(config))
        add_adapters(model, LoRA())
    return count_parameters(model)[1]


def training_memory(
    config: GPT2Config, rows: int, length: int, sixteen_bits: bool, keeps_scores: bool, train: str
) -> int:
    """Bytes that training takes on `rows` of `length` tokens at once, all real.

    A trained parameter takes 16 bytes: itself, its gradient and AdamW's two moments, 4 each; a
    frozen one 4; and both 2 for the copy that is multiplied in 16 bits. What a block keeps for
    the way back is, for each token and in widths of the model: both norms' inputs and outputs (4),
    query, key and value (3), what attention gave, as it came and reshaped (2), and the wide half of
    the MLP before and after GELU (4 + 4). In 16 bits all but the norms' 4 take half the bytes, and
    the norms' outputs are kept once more (2). Adapters in attention and MLP need the same. With
    `keeps_scores` attention written out, see gpt2/model.py, keeps what each token makes of those it
    may see, and of a few more.
    """
    trained, frozen = count_by_shape(config), 0
    if train == "lora":
        trained, frozen = count_adapters(config), trained
    weights = 16 * trained + 4 * frozen + (2 * (trained + frozen) if sixteen_bits else 0)
    block = 4 * 4 + (2 + 3 + 2 + 4 + 4) * 2 if sixteen_bits else (4 + 3 + 2 + 4 + 4) * 4
    kept = rows * length * config.n_embd * block
    if keeps_scores:
        pairs = min(length, (length + QUERIES_AT_ONCE) / 2) * length
        kept += int(rows * config.n_head * pairs * 2)
    return weights + config.n_layer * kept


def measure(
    config: GPT2Config,
    rows: int,
    length: int,
    precision: str,
    device: str,
    steps: int = 2,
    train: str = "all",
) -> tuple[float, int]:
    """Steps of training on `rows` of `length` random tokens: the seconds that one takes, the median
    of all but the first, and the peak of this process's memory, in bytes; on a GPU, of the GPU's
    memory that holds tensors."""
    place = choose_device(device)
    config = dataclasses.replace(config, dropout=0.0)  # as the scripts train
    model = GPT2(config, ClassificationHead(config, 2, "mean"))
    if train == "lora":
        add_adapters(model, LoRA())
    model.to(place)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, fused=True)
    tokens = torch.randint(config.vocab_size, (rows, length), device=place)
    lengths = torch.full((rows,), length, device=place)
    targets = torch.zeros(rows, dtype=torch.int64, device=place)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with autocast(place, precision):
            loss = F.cross_entropy(model(tokens, lengths).float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits until a GPU has done all of it
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), peak_memory(place)


def main() -> None:
    settings, on = parse_flags([MemorySettings, DeviceSettings], __doc__.splitlines()[0])
    if settings.measure and settings.measure not in SIZES:
        raise UserError(f"--measure {settings.measure}: not one of {', '.join(SIZES)}")
    device = choose_device(on.device)
    chosen = arithmetic(device, on.precision)
    rows = []
    for name, config in SIZES.items():
        if settings.max_length > config.n_positions:
            raise UserError(
                f"--max-length {settings.max_length} is beyond {name}'s {config.n_positions}"
            )
        if settings.measure not in ("", name):
            continue
        computed = training_memory(
            config,
            settings.batch_size,
            settings.max_length,
            sixteen_bits=chosen != "float32",
            keeps_scores=in_blocks(device, getattr(torch, chosen), settings.max_length),
            train=settings.train,
        )
        row = [
            name,
            f"{count_by_shape(config):,}",
            f"{download_size(config) / 1e9:.2f} GB" if name in RELEASED else None,
            f"{computed / _GIB:.1f} GiB",
        ]
        if settings.measure:
            seconds, peak = measure(
                config, settings.batch_size, settings.max_length, on.precision, on.device,
                train=settings.train,
            )  # fmt: skip
            row += [f"{peak / _GIB:.1f} GiB", f"{seconds:.1f} s"]
        rows.append(row)
    header = ["model", "parameters", "download", "computed", "measured", "a step"]
    what = "adapters of rank 8" if settings.train == "lora" else "all weights"
    print(f"training {what} on {settings.batch_size} rows of {settings.max_length} tokens, "
          f"{chosen} on {device}\n")  # fmt: skip
    print(format_table(header[: len(rows[0])], rows))


if __name__ == "__main__":
    run_script(main)
