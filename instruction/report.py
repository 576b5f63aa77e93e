"""results.json, report.md and the curves of one instruction tuning run."""

from __future__ import annotations

from typing import Any

from gpt2.reporting import format_table, percent, plot_curves
from gpt2.run_folder import RunFolder

_SHOWN = 20  # answers side by side

_SHARES = {
    "rouge_l": "ROUGE-L",
    "ends_with_eos": "ends by itself",
    "empty": "is empty",
    "repeats_template": "repeats the template",
    "loops": "loops",
    "format_adherence": "well formed",
    "task_success": "tasks solved",
}


def comparison_table(results: dict[str, Any]) -> str:
    """Before and after fine-tuning, on the test split."""
    before, after = results["before"]["test"], results["after"]["test"]
    rows = [
        ["loss (nats a response token)", f"{before['loss']:.4f}", f"{after['loss']:.4f}"],
        ["perplexity", f"{before['perplexity']:,.1f}", f"{after['perplexity']:,.1f}"],
    ]
    rows += [[name, percent(before[key]), percent(after[key])] for key, name in _SHARES.items()]
    kinds = after["task_success_by_kind"]
    rows += [
        [f"  {kind}", percent(before["task_success_by_kind"][kind]), percent(kinds[kind])]
        for kind in kinds
    ]
    header = [f"{results['data']['test']:,} test rows", "before", "after"]
    return format_table(header, rows)


def write_report(run: RunFolder, results: dict[str, Any]) -> None:
    """Write results.json, curves.png and report.md."""
    plot_curves(run.read_log(), ("loss", "perplexity"), run.folder / "curves.png")
    (run.folder / "report.md").write_text(_report(results), encoding="utf-8")
    run.write_json("results.json", results)  # the last one: a run that has it is complete


def _report(results: dict[str, Any]) -> str:
    data, model, training = results["data"], results["model"], results["training"]
    removed = ", ".join(f"{reason} {count:,}" for reason, count in data["removed"].items() if count)
    parts = [
        f"# {data['name']}: {model['name']} from {model['init']} weights",
        comparison_table(results),
        f"Losses are over the whole test split, shares over {len(results['answers'])} of its rows, "
        "answered greedily. "
        f"Data: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} "
        f"test rows; removed: {removed or 'none'}; responses truncated: "
        f"{sum(data['truncated'].values()):,}. Model: {model['parameters']:,} parameters, "
        f"{model['trainable']:,} trained. Training: {training['steps']} steps, "
        f"{training['epochs']:g} epochs, {training['seconds']:.0f} s, "
        f"{training['tokens_per_second']:,.0f} tokens a second, seed {training['seed']}. The "
        f"weights of step {training['best_step']}, the best on validation, were tested.",
        "## Curves\n\n![loss and perplexity over the steps](curves.png)",
        "## Answers, good and bad, as they are",
    ]
    for answer in results["answers"][:_SHOWN]:
        question = answer["instruction"] + (f"\n\n{answer['input']}" if answer["input"] else "")
        parts.append(f"### {' '.join(answer['instruction'].split())[:80]}")
        parts += [
            f"**{who}**\n\n{_quote(text)}"
            for who, text in (
                ("instruction", question),
                ("reference", answer["reference"]),
                ("before", answer["before"]),
                ("after", answer["after"]),
            )
        ]
    return "\n\n".join(parts) + "\n"


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in (text or "(nothing)").splitlines())
