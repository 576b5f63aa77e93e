"""The README.md of an exported model, filled from the run's results.json."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from gpt2.checkpoint import Recipe
from gpt2.encoder import Encoder
from gpt2.support.tables import format_table, percent
from gpt2.weights.hugging_face import RELEASED

_PROJECT = "gpt2-finetuning"

_CLASSIFY = """\
from transformers import pipeline

classify = pipeline("text-classification", model="{name}")
print(classify([{example}], truncation=True))"""

_CONTINUE = """\
from transformers import pipeline

go_on = pipeline("text-generation", model="{name}")
print(go_on({example})[0]["generated_text"])"""

_ANSWER = """\
from transformers import pipeline

answer = pipeline("text-generation", model="{name}")
question = [{{"role": "user", "content": {example}}}]
print(answer(question, return_full_text=False)[0]["generated_text"])

about = [{{"role": "user", "content": "Is this positive?", "input": "What a day!"}}]
print(answer(about, return_full_text=False)[0]["generated_text"])"""

# What comes before, of adapters
_ADAPTED = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelFor{task}, AutoTokenizer

config = AutoConfig.from_pretrained("{name}")
base = AutoModelFor{task}.from_pretrained({base}, config=config)
model = PeftModel.from_pretrained(base, "{name}").merge_and_unload()
tokenizer = AutoTokenizer.from_pretrained("{name}")

"""


def model_card(
    name: str, model: nn.Module, recipe: Recipe, results: dict[str, Any], base: str = ""
) -> str:
    """Markdown with the YAML head that the hub reads. `results` may be empty: a checkpoint without
    its run has no figures to tell. `base`: what adapters stand on that are alone in the folder."""
    use = {"classification": _CLASSIFY, "instruction": _ANSWER}.get(recipe.task, _CONTINUE)
    example = results.get("data", {}).get("example", "Put a text here.")
    example = json.dumps(example if isinstance(example, str) else example[0], ensure_ascii=False)
    if base:
        task = "SequenceClassification" if recipe.task == "classification" else "CausalLM"
        use = _ADAPTED.replace("{task}", task).replace("{base}", json.dumps(base)) + use.replace(
            'model="{name}"', "model=model, tokenizer=tokenizer"
        )
    parts = [
        _head(model, recipe, results, base),
        f"# {name}",
        _what(model, recipe, results),
        f"## Use\n\n```python\n{use.format(name=name, example=example)}\n```",
        _data(results),
        _training(results),
        _evaluation(results),
        _section("Limits", _limits(model, recipe)),
        _section("Licences of what it was trained on", recipe.settings.get("trained_on", [])),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _head(model: nn.Module, recipe: Recipe, results: dict[str, Any], base: str) -> str:
    family = "encoder" if isinstance(model, Encoder) else "gpt2"
    kind = "classification" if recipe.task == "classification" else "generation"
    library = "peft" if base else "transformers"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: text-{kind}",
             f"tags:\n- {family}\n- {_PROJECT}"]  # fmt: skip
    if recipe.settings.get("trained_on"):
        lines.append("license: other")  # those that its last section names
    # not by the model's name, which a folder may have as well
    origin = results.get("model", {}).get("origin", "").removesuffix(", new head")
    for repository, _ in RELEASED.values():
        if origin == f"pretrained weights of {repository}":
            lines.append(f"base_model: {repository}")
    return "\n".join([*lines, "---"])


def _what(model: nn.Module, recipe: Recipe, results: dict[str, Any]) -> str:
    config, is_encoder = model.config, isinstance(model, Encoder)
    started = results.get("model", {})
    start = f", from {started['init']} weights ({started['name']})" if started else ""
    if recipe.task == "classification":
        labels = ", ".join(f"`{label}`" for label in recipe.settings["labels"])
        does = f"It classifies texts as one of: {labels}."
        does += "" if is_encoder else " It looks at the last token of a text."
    elif recipe.task == "instruction":
        does = "It answers instructions."
    else:
        does = "It continues texts."
    kind, shape = "GPT-2", f"{len(model.h)} blocks"
    if is_encoder:
        kind = type(model.network).__name__
    else:
        shape += f", {config.n_head} heads, width {config.n_embd}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"A {kind} with {parameters:,} parameters ({shape}, context {config.n_positions}, "
        f"{config.vocab_size:,} tokens), trained with {_PROJECT}{start}. {does}"
    )


def _data(results: dict[str, Any]) -> str:
    data = results.get("data")
    if not data:
        return "## Data\n\nNot known."
    removed = ", ".join(f"{reason} {count:,}" for reason, count in data["removed"].items() if count)
    splits = [f"{data[split]:,} {split}" for split in ("train", "validation", "test")
              if split in data]  # fmt: skip
    return f"## Data\n\n`{data['name']}`: {', '.join(splits)} rows; removed: {removed or 'none'}."


def _training(results: dict[str, Any]) -> str:
    training = results.get("training")
    if not training:
        return ""
    return (
        f"## Training\n\n{training['steps']:,} steps, {training['epochs']:g} epochs, "
        f"{training['tokens']:,} tokens in {training['seconds']:,.0f} s, seed {training['seed']}. "
        f"The weights are those of step {training['best_step']}, the best on the validation rows. "
        f"{results['model']['trainable']:,} of {results['model']['parameters']:,} parameters were "
        "trained."
    )


def _evaluation(results: dict[str, Any]) -> str:
    if "after" not in results:
        return ""
    split = "test" if "test" in results["after"] else "validation"
    columns = {"before training": results["before"][split], "after": results["after"][split]}
    if "baseline" in results:
        baseline = results["baseline"]
        columns[f"{baseline['name']} ({baseline['features']})"] = baseline["test"]
    names = [key for key, value in columns["after"].items() if isinstance(value, (int, float))]
    rows = [
        [name.replace("_", " "), *(_figure(name, column.get(name)) for column in columns.values())]
        for name in names
    ]
    header = [f"{results['data'][split]:,} {split} rows", *columns]
    return f"## Evaluation\n\n{format_table(header, rows)}{_penalty(results)}"


def _penalty(results: dict[str, Any]) -> str:
    """Of answers that the folder's generation settings alone do not give."""
    penalty = results.get("answering", {}).get("repetition_penalty", 1)
    if penalty == 1:
        return ""
    return (
        f"\n\nIt answered greedily, with a repetition penalty of {penalty:g} that counts the "
        "tokens of the answer alone. The generation settings in this folder have no penalty: that "
        "of transformers counts the prompt's tokens too, which is another thing."
    )


def _figure(name: str, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.4f}" if name in ("loss", "perplexity") else percent(value)


def _limits(model: nn.Module, recipe: Recipe) -> list[str]:
    context, longest = model.config.n_positions, recipe.settings["max_length"]
    always = "It says what its data make likely, with the errors and prejudices of these data."
    if recipe.task == "classification":
        truncation = recipe.settings["truncation"]
        kept = {
            "head": f"the first {longest:,} tokens",
            "tail": f"the last {longest:,} tokens",
            "head-tail": f"{longest:,} tokens (a quarter from the start, the rest from the end)",
        }[truncation]
        empty = (
            "A text without content has no token: alone the pipeline fails on it, and beside "
            "others it gets any label. Leave it out."
        )
        if isinstance(model, Encoder):
            empty = "So does a text without content. Leave it out."
        there = f"keeps the first {longest:,}" if truncation == "head-tail" else "cuts there too"
        return [
            f"It was trained on {kept} of each text. With `truncation=True` the pipeline {there}; "
            f"without, texts of more than {context:,} tokens fail.",
            "The tokenizer turns `<br>` and runs of white space into one space, as in training; "
            "HTML entities (`&amp;`) were replaced as well, which is left to the caller here.",
            f"Every text gets one of the labels, one that has nothing to do with them too. {empty}",
            always,
        ]
    if recipe.task != "instruction":
        return [f"Prompt and text together have at most {context:,} tokens.", always]
    example = json.dumps({"role": "user", "content": "...", "input": "..."})
    return [
        f"Prompt and answer together have at most {context:,} tokens; it was trained on rows of "
        f"at most {longest:,}.",
        f"Each instruction stands for itself. What it is about goes into the message: `{example}`.",
        "`<|endoftext|>` inside a prompt is the end token here.",
        "What it says may be false. " + always,
    ]
