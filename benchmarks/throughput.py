"""How fast is this project, next to transformers and TRL on the same weights and rows?

    python benchmarks/throughput.py
    python benchmarks/throughput.py --data ../shared/imdb --tasks training prediction
    python benchmarks/throughput.py --model mini --rows 16 --max-length 64 --rounds 1
    python benchmarks/throughput.py --tasks savings instruction-savings

A GPT-2 with random weights is written down twice, as this project keeps models and as transformers
does. Then the contenders of each task take turns, each in a process of its own, so that whatever
else the machine does slows all of them and its peak memory is its own. What counts is the ratio of
each round and the median of these. `benchmarks/contenders.py` has what each of them runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import importlib.util
import shutil
import statistics
import tempfile
from concurrent.futures.process import BrokenProcessPool

import torch
from tqdm import tqdm

from benchmarks.measuring import Measured, in_own_process, matrix_rates, run_contender
from benchmarks.tasks import OURS, OURS_COMPILED, TASKS, Contender, Task
from benchmarks.workload import Job, ThroughputSettings, prepare, tokens_to_run, useful_work
from gpt2.model import SIZES
from gpt2.support.device import DeviceSettings, arithmetic, choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, percent
from gpt2.weights.building import check_max_length


def available(task: Task, job: Job) -> list[Contender]:
    """The contenders of `task` that can run here; says of the others why they do not."""
    chosen = []
    for contender in task.contenders:
        missing = [name for name in contender.needs if not importlib.util.find_spec(name)]
        if missing:
            print(
                f"  {contender.name}: left out, not installed: {', '.join(missing)} "
                "(pip install -e '.[bench]')"
            )
        elif contender.compiles and not (
            shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        ):
            print(f"  {contender.name}: left out, because torch.compile needs a C++ compiler")
        elif contender.in_bfloat16 and not job.bfloat16:
            print(f"  {contender.name}: left out, because in float32 there is no such saving")
        else:
            chosen.append(contender)
    return chosen


def compare(
    chosen: list[Contender], job: Job, expected: tuple[int, int]
) -> dict[str, list[Measured]]:
    """Let the `chosen` take turns; what each measured, round by round. `expected` are the rows and
    the real tokens that each must have seen. A contender that fails is left out of all rounds; this
    project must not."""
    runs: dict[str, list[Measured]] = {contender.name: [] for contender in chosen}
    rounds = job.settings.rounds
    bar = tqdm(total=rounds * len(chosen), unit="run", disable=None, leave=False)
    for number in range(1, rounds + 1):
        for contender in [each for each in chosen if each.name in runs]:
            bar.set_description(contender.name)
            try:
                measured = in_own_process(run_contender, contender.run, job, contender.options)
                if (measured.rows, measured.real_tokens) != expected:
                    seen = measured.rows, measured.real_tokens
                    raise ValueError(f"it saw {seen} rows and tokens instead of {expected}")
                runs[contender.name].append(measured)
            except Exception as error:
                if contender.name == OURS and isinstance(error, BrokenProcessPool):
                    raise UserError(f"{OURS}: {_explain(error)}; lower --batch-size") from None
                if contender.name == OURS:
                    raise
                bar.write(f"  {contender.name}: left out, {_explain(error)}")
                del runs[contender.name]
            bar.update()
        shown = [f"{name} {measured[-1].seconds:.2f} s" for name, measured in runs.items()]
        bar.write(f"round {number}: {', '.join(shown)}")
    bar.close()
    return runs


def _explain(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process died, perhaps of lack of memory"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def result_table(
    task: str, runs: dict[str, list[Measured]], new_tokens: int, work: float, rate: float
) -> str:
    """Medians over the rounds. `work` are the FLOPs of one pass, `rate` is what the machine can do
    in a second."""
    answers = task == "generation"
    header = ["", "seconds", "from - to", "rows/s", f"{'new ' if answers else ''}tokens/s",
              "padding", "useful GFLOP/s", "of the rate", "peak memory"]  # fmt: skip
    rows = []
    for name, measured in runs.items():
        all_seconds = [run.seconds for run in measured]
        seconds = statistics.median(all_seconds)
        one = measured[0]
        tokens = one.rows * new_tokens if answers else one.real_tokens
        rows.append(
            [
                name,
                f"{seconds:.2f}",
                f"{min(all_seconds):.2f} - {max(all_seconds):.2f}",
                f"{one.rows / seconds:.2f}",
                f"{tokens / seconds:,.0f}",
                percent(1 - one.real_tokens / one.all_tokens),
                f"{work / seconds / 1e9:,.1f}",
                percent(work / seconds / rate),
                f"{statistics.median(run.peak_memory for run in measured) / 2**30:.2f} GiB",
            ]
        )
    return format_table(header, rows)


def ratios(runs: dict[str, list[Measured]]) -> str:
    """How many times as fast this project is, in each round and in the median of these."""
    lines = []
    for own in [name for name in (OURS, OURS_COMPILED) if name in runs]:
        for name, measured in runs.items():
            if name in (own, OURS_COMPILED):
                continue
            times = [
                theirs.seconds / ours.seconds
                for theirs, ours in zip(measured, runs[own], strict=True)
            ]
            lines.append(
                f"{own} is {statistics.median(times):.2f} times as fast as {name} (median of "
                f"{len(times)}, {min(times):.2f} to {max(times):.2f})"
            )
    return "\n".join(lines)


def where_the_time_goes(measured: list[Measured]) -> str:
    """The parts of a training step, medians over the rounds."""
    shares = {
        part: statistics.median(run.shares[part] for run in measured) for part in measured[0].shares
    }
    shown = ", ".join(f"{part} {percent(share)}" for part, share in shares.items())
    return f"time of {OURS}: {shown}; update has the clipping with it, data the logging"


def main() -> None:
    settings, on = parse_flags([ThroughputSettings, DeviceSettings], __doc__.splitlines()[0])
    config = SIZES[settings.model]
    check_max_length(settings.max_length, config)
    longest = settings.max_length + settings.new_tokens
    if "generation" in settings.tasks and longest > config.n_positions:
        raise UserError(
            f"--max-length {settings.max_length} and --new-tokens {settings.new_tokens} do not fit "
            f"together in {settings.model}'s context of {config.n_positions}"
        )
    device = choose_device(on.device)
    faster = "bfloat16, " if arithmetic(device, on.precision) == "bfloat16" else ""
    print(
        f"{settings.model}, random weights, all trained; rows cut at {settings.max_length} tokens, "
        f"batches of {settings.batch_size}; {arithmetic(device, on.precision)} on {device}, "
        f"{torch.get_num_threads()} threads"
    )
    rates: list[dict[str, float]] = []
    prepared = {}
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        for name in settings.tasks:
            task = TASKS[name]
            job = Job(Path(folder), task.data, settings, on)
            if task.data not in prepared:
                prepared[task.data] = in_own_process(prepare, job)
            work = prepared[task.data]
            source = settings.data if task.data == "classification" else settings.instructions
            print(f"\n{task.title}: {source}, {settings.rows} rows, {sum(work.tokens):,} tokens")
            for contender in task.contenders:
                print(f"  {contender.name}: {contender.does.format(faster=faster)}")
            rates.append(in_own_process(matrix_rates, device))
            tokens = tokens_to_run(name, work, settings.new_tokens)
            runs = compare(available(task, job), job, (settings.rows, tokens))
            rates.append(in_own_process(matrix_rates, device))

            # Before and after these runs: the machine may not have been the same all along.
            rate = max(statistics.mean(each[dtype] for each in rates[-2:]) for dtype in rates[-1])
            flops = useful_work(name, config, work, settings.new_tokens)
            print(f"\n{result_table(name, runs, settings.new_tokens, flops, rate)}\n")
            print(ratios(runs))
            if runs[OURS][0].shares:
                print(where_the_time_goes(runs[OURS]))
    print()
    for dtype in rates[0]:
        measured = [each[dtype] / 1e9 for each in rates]
        print(
            f"matrix rate in {dtype}: {statistics.median(measured):,.0f} GFLOP/s (median of "
            f"{len(measured)}, {min(measured):,.0f} to {max(measured):,.0f})"
        )


if __name__ == "__main__":
    run_script(main)
