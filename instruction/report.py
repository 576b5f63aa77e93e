"""results.json, report.md and the curves of one instruction tuning run."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from gpt2.support.run_folder import RunFolder
from gpt2.support.tables import format_table, percent, plot_curves
from instruction.evidence import describe_evidence
from instruction.tasks import TASKS

_SHOWN = 20  # answers side by side

_SHARES = {
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "ends_with_eos": "ends by itself",
    "empty": "is empty",
    "repeats_template": "repeats the template",
    "loops": "loops",
    "format_adherence": "well formed",
    "task_success": "tasks solved",
}


def comparison_table(results: dict[str, Any]) -> str:
    """Before and after fine-tuning, on the reported split; where all rows have one instruction,
    beside the first sentences of their inputs."""
    reported = results["data"]["reported"]
    header = [f"{results['data'][reported]:,} {reported} rows", "before", "after"]
    columns = [results["before"][reported], results["after"][reported]]
    if "first_sentences" in results:
        header.append("first 3 sentences")
        columns.append(results["first_sentences"][reported])
    said = [f"- {sentence}" for sentence in describe_evidence(results["evidence"])]
    return "\n".join([metrics_table(header, columns), "", *said])


def metrics_table(header: Sequence[str], columns: Sequence[dict[str, Any]]) -> str:
    """A line on each metric, with a column for each of `columns`; a dash where one has no such
    metric. A line below says how ROUGE is to be had, where it is missing."""

    def row(name: str, found: list[float | None], show: Callable[[float], str]) -> list[str | None]:
        return [name, *(None if value is None else show(value) for value in found)]

    def values(key: str) -> list[float | None]:
        return [column.get(key) for column in columns]

    rows = [
        row("loss (nats a response token)", values("loss"), "{:.4f}".format),
        row("perplexity", values("perplexity"), "{:,.1f}".format),
    ]
    for key, name in _SHARES.items():
        if any(key in column for column in columns):
            rows.append(row(name, values(key), percent))
    for kind in columns[0].get("task_success_by_kind", ()):
        shares = [column.get("task_success_by_kind", {}).get(kind) for column in columns]
        rows.append(row(f"tasks: {kind}", shares, percent))
    table = format_table(header, rows)
    if any("rouge_l" not in column for column in columns):
        table += "\n\n(ROUGE is left out; `pip install rouge-score` brings it)"
    return table


def answer_records(
    rows: pl.DataFrame, before: Sequence[str], after: Sequence[str]
) -> list[dict[str, Any]]:
    """For results.json: each of `rows` (instruction, input, output) with its two answers."""
    return [
        {"instruction": instruction, "input": text, "reference": output, "before": one,
         "after": other}
        for (instruction, text, output), one, other in zip(rows.rows(), before, after, strict=True)
    ]  # fmt: skip


def task_records(before: Sequence[str], after: Sequence[str]) -> list[dict[str, Any]]:
    """For results.json: each task with its two answers, and whether the later one solves it."""
    return [
        {"kind": task.kind, "instruction": task.instruction, "input": task.input,
         "before": one, "after": other, "solved": task.solved_by(other)}
        for task, one, other in zip(TASKS, before, after, strict=True)
    ]  # fmt: skip


def write_report(run: RunFolder, results: dict[str, Any]) -> None:
    """Write results.json, curves.png and report.md."""
    plot_curves(run.read_log(), ("loss", "perplexity"), run.folder / "curves.png")
    report = _report(results)  # a data set's name may be that of a file that is not UTF-8
    (run.folder / "report.md").write_text(report, encoding="utf-8", errors="backslashreplace")
    run.write_json("results.json", results)  # the last one: a run that has it is complete


def _report(results: dict[str, Any]) -> str:
    data, model, training = results["data"], results["model"], results["training"]
    answers, shown = results["answers"], results["answers"][:_SHOWN]
    removed = ", ".join(f"{reason} {count:,}" for reason, count in data["removed"].items() if count)
    parts = [
        f"# {data['name']}: {model['name']} from {model['init']} weights",
        comparison_table(results),
        f"Losses are over the whole {data['reported']} split, shares over {len(answers)} of its "
        f"rows, {how_answered(results['answering'])}; tasks are {len(results['tasks'])} "
        "instructions that a program judges. "
        f"Data: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} "
        f"test rows; removed: {removed or 'none'}; responses truncated: "
        f"{sum(data['truncated'].values()):,}. Model: {model['parameters']:,} parameters, "
        f"{model['trainable']:,} trained. Training: {training['steps']} steps, "
        f"{training['epochs']:g} epochs, {training['seconds']:.0f} s, "
        f"{training['tokens_per_second']:,.0f} tokens a second, seed {training['seed']}. The "
        f"weights of step {training['best_step']}, the best on validation, were tested.",
        "## Curves\n\n![loss and perplexity over the steps](curves.png)",
        f"## Answers, good and bad, as they are\n\nThe first {len(shown)} of {len(answers)}; "
        "results.json has all.\n\n" + side_by_side(
            ["instruction", "reference", "before", "after"],
            [[question(row), row["reference"], row["before"], row["after"]] for row in shown],
        ),
        "## Tasks that a program judges\n\n" + side_by_side(
            ["kind", "instruction", "before", "after", "solved"],
            [[row["kind"], question(row), row["before"], row["after"],
              "yes" if row["solved"] else "no"] for row in results["tasks"]],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def how_answered(answering: dict[str, Any]) -> str:
    """In words, for the fields of `AnswerSettings` that a run answered with."""
    penalty = answering["repetition_penalty"]
    with_penalty = "" if penalty == 1 else f" with a repetition penalty of {penalty:g}"
    return f"answered greedily{with_penalty}"


def question(row: dict[str, Any]) -> str:
    """What the row asks, as one text."""
    return row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")


def side_by_side(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of whole texts, shown as they are, line ends included."""
    cells = [[_verbatim(text) for text in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verbatim(text: str) -> str:
    """A text as one table cell in which Markdown and HTML find nothing to interpret."""
    escaped = re.sub(r"([\\`*_\[\]~#|!-])", r"\\\1", html.escape(text, quote=False))
    return "<br>".join(escaped.splitlines()) or "(nothing)"
