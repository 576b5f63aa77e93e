"""Pre-train GPT-2 on plain text, or adapt a pre-trained one to a domain before fine-tuning.

Without any flag it learns from the built-in reviews and instructions, offline, in about a minute: a
demonstration. What makes pre-training worth its time is text, much of it.

    python pretraining/pretrain.py
    python pretraining/pretrain.py --data reviews.parquet notes/ --epochs 3
    python pretraining/pretrain.py --data articles.jsonl:title,body --exclude test.jsonl:title,body
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import shlex
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from gpt2.checkpoint import Recipe, load_weights
from gpt2.generation import SamplingSettings, generate
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss, perplexity
from gpt2.one_run import begin, explaining_not_finite
from gpt2.optimization import TrainingConfig
from gpt2.support.device import autocast
from gpt2.support.distributed import rank
from gpt2.support.flags import flag, parse_flags
from gpt2.support.run_folder import RunFolder, RunSettings
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, plot_curves
from gpt2.training import train
from gpt2.weights.building import ModelSettings, check_max_length
from gpt2.weights.licences import licences
from pretraining.corpus import Corpus, CorpusSettings, TokenRows, item_name, read_corpus

# Continued at each evaluation of the built-in data, so that one sees the model learn; with other
# data, the beginnings of held-out documents. Sampled: the likeliest token each time would end in a
# loop, which says little about a language model.
SAMPLE_BEGINNINGS = ("This film", "The best way to", "Once upon a time")
SAMPLING = SamplingSettings(max_new_tokens=32, temperature=0.8, top_k=50)


@dataclass
class PretrainingConfig(TrainingConfig):
    """Training"""

    # Rows are as long as the context. What fine-tuning does on little data, 90 steps of 16 rows,
    # would take many minutes here.
    epochs: int = flag(3, "passes over the training tokens", at_least=1, may_change=True)
    batch_size: int = flag(8, "rows in each optimizer step", at_least=1)


def main() -> None:
    data, model_settings, config, run_settings = parse_flags(
        [CorpusSettings, ModelSettings, PretrainingConfig, RunSettings],
        "Pre-train GPT-2 on plain text, or adapt a pre-trained one to a domain.",
    )
    name = "-".join(dict.fromkeys(map(item_name, data.data)))
    run = begin(f"pretraining-{name}", model_settings, config, run_settings)
    max_length = data.max_length or run.config.n_positions
    check_max_length(max_length, run.config)

    # ---- chapter 1: data
    corpus = read_corpus(data, data.split_seed)

    beginnings = SAMPLE_BEGINNINGS
    if data.data != ("sample",):
        beginnings = [" ".join(text.split()[:4]) for text in corpus.validation["text"][:3]]

    # ---- chapter 2: model
    model, origin = run.build_model(LanguageModelHead)

    # ---- chapter 3: tokens
    rows = TokenRows(corpus.train["text"], run.encoding, max_length, "tokens")
    validation = {
        source: TokenRows(corpus.validation.filter(source=source)["text"], run.encoding, max_length)
        for source in corpus.sources
    }
    description = describe_corpus(corpus, rows, validation)
    print_summary(description, max_length)
    settings = {"data": data, "model": model_settings, "training": config, "run": run_settings}
    run.start_writing(model, origin, settings)

    # ---- chapter 4: training, between two looks at the validation documents
    def by_source() -> dict[str, dict[str, float]]:
        return {
            source: evaluate_loss(
                model, dataset, config.rows_at_once, config.precision, f"validation, {source}",
                config.micro_batch_tokens,
            )
            for source, dataset in validation.items()
        }  # fmt: skip

    def continuations() -> list[str]:
        end, seed = run.encoding.eot_token, run_settings.seed
        prompts = [[end, *run.encoding.encode_ordinary(text)] for text in beginnings]
        with autocast(run.device, config.precision):
            generated = generate(model, prompts, SAMPLING, end, range(seed, seed + len(prompts)))
        return [run.encoding.decode(tokens) for tokens in generated]

    def evaluate() -> dict[str, float]:
        samples = list(zip(beginnings, continuations(), strict=True))
        for beginning, text in samples:
            tqdm.write(f"  {beginning} ...\n    -> {' '.join(text.split())}")
        run.folder.keep_samples(samples)
        metrics = by_source()
        apart = {f"{name} perplexity": found["perplexity"] for name, found in metrics.items()}
        return mean_over_sources(metrics, validation) | (apart if len(apart) > 1 else {})

    model.eval()
    before = run.measure_before(
        lambda: {"origin": origin, "by_source": by_source(), "continuations": continuations()},
        [("train", corpus.train), ("validation", corpus.validation)],
    )
    recipe = Recipe(
        "pretraining",
        run.encoding,
        {"max_length": max_length, "trained_on": licences(run.start, list(data.data))},
    )
    with explaining_not_finite():
        result = train(
            model, rows, language_model_loss, evaluate, config, run_settings.seed, run.folder,
            recipe,
        )  # fmt: skip

    # ---- chapter 5: evaluation of the weights that did best on validation
    load_weights(run.folder.folder / "best", model)
    model.eval()
    after, continued = by_source(), continuations()

    # ---- chapter 6: comparison
    if rank() > 0:
        return
    results = {
        "task": "pretraining",
        "data": description | {"example": beginnings[0]},
        "model": run.describe_model(model, before["origin"]) | {"max_length": max_length},
        "before": {
            "validation": mean_over_sources(before["by_source"], validation),
            "validation_by_source": before["by_source"],
        },
        "after": {
            "validation": mean_over_sources(after, validation),
            "validation_by_source": after,
        },
        "training": run.describe_training(result),
        "continuations": [
            {"beginning": beginning, "before": text_before, "after": text_after}
            for beginning, text_before, text_after in zip(
                beginnings, before["continuations"], continued, strict=True
            )
        ],
    }
    write_report(run.folder, results)
    labelled = "imdb" if data.data == ("sample",) else "FILE"
    run.end(
        comparison_table(results),
        f"trained {result.steps} steps in {result.seconds:.1f} s on {result.tokens:,} tokens, "
        f"{result.tokens / result.seconds:,.0f} a second; best step {result.best_step}",
        "fine-tune it on rows with labels; those it is tested on it must not have read:\n"
        f"  python classification/train_gpt.py --data {labelled} "
        f"--model {shlex.quote(str(run.folder.folder))}",
    )


def mean_over_sources(
    metrics: dict[str, dict[str, float]], datasets: dict[str, TokenRows]
) -> dict[str, float]:
    """Loss and perplexity over the tokens of all sources together."""
    targets = sum(dataset.targets for dataset in datasets.values())
    loss = sum(metrics[source]["loss"] * datasets[source].targets for source in datasets) / targets
    return {"loss": loss, "perplexity": perplexity(loss)}


def describe_corpus(
    corpus: Corpus, rows: TokenRows, validation: dict[str, TokenRows]
) -> dict[str, Any]:
    """The part of results.json that says what the data was."""
    train_sources = corpus.train["source"].to_numpy()
    of_source = {source: train_sources == source for source in corpus.sources}
    return {
        "name": corpus.name,
        "train": len(corpus.train),
        "validation": len(corpus.validation),
        "train_rows": len(rows),
        "train_tokens": {
            source: int(rows.document_tokens[these].sum()) for source, these in of_source.items()
        },
        "validation_tokens": {source: dataset.targets for source, dataset in validation.items()},
        "removed": corpus.removed,
        "test_files": corpus.test_files,
        "notes": corpus.notes,
    }


def print_summary(description: dict[str, Any], max_length: int) -> None:
    """What the data is, before any time is spent on it."""
    print(f"data: {description['name']}")
    for note in description["notes"]:
        print(f"  {note}")
    width = max(map(len, description["train_tokens"]))
    for source, tokens in description["train_tokens"].items():
        print(
            f"  {source:<{width}} {tokens:>13,} training tokens, "
            f"{description['validation_tokens'][source]:>9,} for validation"
        )
    print(
        f"  {description['train']:,} training documents in {description['train_rows']:,} rows of "
        f"{max_length} tokens; {description['validation']:,} validation documents"
    )
    removed = [f"{reason} {count:,}" for reason, count in description["removed"].items() if count]
    print(f"  documents removed: {', '.join(removed) or 'none'}")
    for file in description["test_files"]:
        print(f"  {file} looks like a test split; --exclude {shlex.quote(file)} leaves it out")


def comparison_table(results: dict[str, Any]) -> str:
    """Before and after training, on the validation documents of each source and of all."""
    tokens = results["data"]["validation_tokens"]
    table = []
    for source in [*tokens, "all"]:
        if source == "all":
            before, after = (results[when]["validation"] for when in ("before", "after"))
        else:
            before, after = (
                results[when]["validation_by_source"][source] for when in ("before", "after")
            )
        table.append(
            [
                source,
                f"{sum(tokens.values()) if source == 'all' else tokens[source]:,}",
                f"{before['loss']:.4f}",
                f"{after['loss']:.4f}",
                f"{before['perplexity']:,.1f}",
                f"{after['perplexity']:,.1f}",
            ]
        )
    header = ["validation", "tokens", "loss before", "after", "perplexity before", "after"]
    return format_table(header, table if len(tokens) > 1 else table[:1])


def write_report(run: RunFolder, results: dict[str, Any]) -> None:
    """Write results.json, curves.png and report.md."""
    plot_curves(run.read_log(), ("loss", "perplexity"), run.folder / "curves.png")
    data, model, training = results["data"], results["model"], results["training"]
    removed = ", ".join(f"{reason} {count:,}" for reason, count in data["removed"].items() if count)
    train_tokens = ", ".join(f"{name} {count:,}" for name, count in data["train_tokens"].items())
    parts = [
        f"# {data['name']}: {model['name']} from {model['init']} weights",
        comparison_table(results),
        "Losses are in nats a token, over all validation documents. "
        f"Data: {data['train']:,} training documents (tokens: {train_tokens}), "
        f"{data['validation']:,} validation documents; documents removed: {removed or 'none'}. "
        f"Model: {model['parameters']:,} parameters, {model['trainable']:,} trained, rows of "
        f"{model['max_length']} tokens. Training: {training['steps']} steps, "
        f"{training['epochs']:g} epochs, {training['tokens']:,} tokens, "
        f"{training['seconds']:.0f} s, {training['tokens_per_second']:,.0f} tokens a second, seed "
        f"{training['seed']}. The weights of step {training['best_step']}, the best on validation, "
        "were measured.",
        "## Curves\n\n![loss and perplexity over the steps](curves.png)",
        "## Continuations, as they are",
    ]
    for row in results["continuations"]:
        parts.append(f"### {row['beginning']} ...")
        for who in ("before", "after"):
            quoted = "\n".join(f"> {line}" for line in (row[who] or "(nothing)").splitlines())
            parts.append(f"**{who}**\n\n{quoted}")
    report = "\n\n".join(parts) + "\n"  # a source's name may be that of a file that is not UTF-8
    (run.folder / "report.md").write_text(report, encoding="utf-8", errors="backslashreplace")
    run.write_json("results.json", results)  # the last one: a run that has it is complete


if __name__ == "__main__":
    run_script(main)
