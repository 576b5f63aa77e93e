"""How time and memory of a training step grow with the length of its rows, their number, and the
size of the model.

From one middle, each of the three is varied alone. Random weights and tokens, all weights trained,
no padding; each point in a process of its own, so that its peak memory is its own.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --model mini --lengths 64 128 --batch-sizes 4 --models mini
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import dataclasses
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measuring import in_own_process
from benchmarks.memory import count_by_shape, measure
from gpt2.model import SIZES
from gpt2.support.device import DeviceSettings, arithmetic, choose_device, out_of_memory
from gpt2.support.errors import UserError
from gpt2.support.files import write_json
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, save_picture


@dataclass
class ScalingSettings:
    """Scaling"""

    model: str = flag("gpt2", "size in the middle", choices=tuple(SIZES))
    max_length: int = flag(256, "tokens of each row in the middle", at_least=1)
    batch_size: int = flag(8, "rows in the middle", at_least=1)
    models: tuple[str, ...] = flag(
        ("mini", "gpt2", "gpt2-medium"), "sizes to go through", choices=tuple(SIZES)
    )
    lengths: tuple[int, ...] = flag((128, 256, 512, 1024), "lengths to go through", at_least=1)
    batch_sizes: tuple[int, ...] = flag((1, 2, 4, 8, 16), "numbers of rows", at_least=1)
    steps: int = flag(4, "steps of each point; the first does not count", at_least=2)
    out: str = flag("runs/scaling", "folder for scaling.json, scaling.md and scaling.png")


@dataclass(frozen=True)
class Point:
    """What is measured: steps of `batch_size` rows of `max_length` tokens."""

    model: str
    max_length: int
    batch_size: int


def sweeps(settings: ScalingSettings) -> dict[str, list[Point]]:
    """The points of each panel, by the field that varies in it."""
    middle = Point(settings.model, settings.max_length, settings.batch_size)
    values = {
        "max_length": settings.lengths,
        "batch_size": settings.batch_sizes,
        "model": settings.models,
    }
    return {
        field: [dataclasses.replace(middle, **{field: value}) for value in values[field]]
        for field in values
    }


def check(points: list[Point]) -> None:
    """Raises UserError for a point with rows longer than its model's context."""
    for point in points:
        context = SIZES[point.model].n_positions
        if point.max_length > context:
            raise UserError(
                f"--lengths and --max-length: {point.max_length} tokens do not fit in "
                f"{point.model}'s context of {context}; ask for fewer"
            )


def plot(
    measured: dict[Point, tuple[float, int]], swept: dict[str, list[Point]], file: Path
) -> None:
    """Seconds above, memory below, one column for each of what varies; both axes logarithmic, where
    a straight line is a power and a slope of 1 is proportion."""
    labels = {"max_length": "tokens of a row", "batch_size": "rows", "model": "parameters"}

    def draw(figure: Any) -> None:
        from matplotlib import ticker

        axes = figure.subplots(2, 3, sharex="col", sharey="row")
        for (field, points), (above, below) in zip(swept.items(), axes.T, strict=True):
            points = [point for point in points if point in measured]
            places = [getattr(point, field) for point in points]
            ticks = [str(place) for place in places]
            if field == "model":
                places = [count_by_shape(SIZES[name]) for name in places]
            above.plot(places, [measured[point][0] for point in points], marker="o")
            below.plot(places, [measured[point][1] / 2**30 for point in points], marker="o")
            below.set_xlabel(labels[field])
            for axis in (above, below):
                axis.set_xscale("log")
                axis.set_yscale("log")
                axis.grid(alpha=0.3, which="both")
                axis.set_xticks(places, ticks)
                axis.set_xticks([], minor=True)
            if field == "model":
                below.tick_params(axis="x", labelrotation=25)
        axes[0, 0].set_ylabel("seconds a step")
        axes[1, 0].set_ylabel("peak memory (GiB)")
        for axis in axes[:, 0]:
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")

    save_picture(file, (9.6, 5.6), draw)


def main() -> None:
    settings, on = parse_flags([ScalingSettings, DeviceSettings], "How time and memory grow.")
    swept = sweeps(settings)
    points = list(dict.fromkeys(point for points in swept.values() for point in points))
    check(points)
    device = choose_device(on.device)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    measured: dict[Point, tuple[float, int]] = {}
    for point in tqdm(points, unit="point", disable=None, leave=False):
        try:
            measured[point] = in_own_process(
                measure, SIZES[point.model], point.batch_size, point.max_length, on.precision,
                str(device), settings.steps,
            )  # fmt: skip
        except (RuntimeError, MemoryError) as error:
            died = isinstance(error, BrokenProcessPool)
            if not died and not out_of_memory(error):
                raise
            why = "its process died, perhaps of lack of memory" if died else "out of memory"
            tqdm.write(
                f"left out: {point.model}, {point.batch_size} rows of {point.max_length}: {why}"
            )
    if not measured:
        raise UserError("no point could be measured; lower --batch-size and --max-length")
    rows = []
    for point, (seconds, peak) in measured.items():
        tokens = point.batch_size * point.max_length
        rows.append([point.model, point.max_length, point.batch_size, f"{seconds:.3f}",
                     f"{tokens / seconds:,.0f}", f"{peak / 2**30:.2f} GiB"])  # fmt: skip
    table = format_table(
        ["model", "tokens of a row", "rows", "seconds a step", "tokens/s", "peak memory"], rows
    )
    found = [
        dataclasses.asdict(point) | {"seconds": seconds, "peak_memory": peak}
        for point, (seconds, peak) in measured.items()
    ]
    where = f"{arithmetic(device, on.precision)} on {device}, {torch.get_num_threads()} threads"
    write_json(out / "scaling.json", {"where": where, "points": found})
    (out / "scaling.md").write_text(table + "\n", encoding="utf-8")
    plot(measured, swept, out / "scaling.png")
    print(f"{where}\n\n{table}\n\n{out / 'scaling.png'}")


if __name__ == "__main__":
    run_script(main)
