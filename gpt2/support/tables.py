"""Tables and plots of the reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned Markdown table, readable on a terminal as well. Numbers stand to the right;
    None is shown as a dash.

    >>> print(format_table(["model", "accuracy"], [["majority", "50.0 %"], ["GPT-2", None]]))
    | model    | accuracy |
    | -------- | -------: |
    | majority |   50.0 % |
    | GPT-2    |        - |
    """
    cells = [[_cell(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join([first, *rest]) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value as one line that cannot be taken for two cells."""
    return "-" if value is None else " ".join(str(value).replace("|", "\\|").split())


def percent(share: float) -> str:
    """0.8765 -> "87.7 %"."""
    return f"{100 * share:.1f} %"


def shorten(text: str, limit: int) -> str:
    """`text` on one line, and its end left out where it has more than `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def describe_training(training: dict[str, Any]) -> str:
    """One line on the key `training` of results.json."""
    peak = training["peak_memory"]
    memory = f"{peak / 2**30:.1f} GiB of memory at most; " if peak else ""
    return (
        f"trained {training['steps']} steps in {training['seconds']:.1f} s, "
        f"{training['tokens_per_second']:,.0f} tokens a second, padding not counted; "
        f"{percent(training['useful_token_share'])} of all tokens useful; "
        f"{memory}best step {training['best_step']}"
    )


def save_picture(file: Path, inches: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Let `draw` draw on an empty matplotlib figure, and write it to `file`. What goes wrong is a
    warning: the results beside it are worth more than a picture."""
    try:
        os.environ.pop("MPLBACKEND", None)  # Jupyter names its own there, which may be missing here
        from matplotlib.figure import Figure  # here: it takes a second that `--help` need not wait

        figure = Figure(inches)
        draw(figure)
        figure.tight_layout()
        figure.savefig(file, dpi=120)
    except Exception as error:  # whatever a broken installation or a bad matplotlibrc raises
        file.unlink(missing_ok=True)  # half of it, or an earlier one
        print(f"warning: {file} is left out: {shorten(f'{type(error).__name__}: {error}', 160)}")


def plot_curves(records: Sequence[dict[str, Any]], metrics: Sequence[str], file: Path) -> None:
    """Draw one panel a metric over the steps of metrics.jsonl: validation, and for the loss
    training as well."""
    training = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "validation" in record]

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(metrics), squeeze=False)
        for axis, metric in zip(axes[0], metrics, strict=True):
            if metric == "loss":
                steps = [record["step"] for record in training]
                axis.plot(steps, [record["loss"] for record in training], label="training")
            axis.plot(
                [record["step"] for record in evaluations],
                [record["validation"][metric] for record in evaluations],
                marker="o",
                label="validation",
            )
            axis.set(xlabel="optimizer step", ylabel="loss (nats)" if metric == "loss" else metric)
            axis.grid(alpha=0.3)
            axis.legend()

    save_picture(file, (5 * len(metrics), 3.6), draw)
