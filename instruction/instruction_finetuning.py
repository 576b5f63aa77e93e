"""Teach GPT-2 to follow instructions, with the model and the loop of classification.

Without any flag it runs on the built-in instructions, offline, in a minute or two.

    python instruction/instruction_finetuning.py
    python instruction/instruction_finetuning.py --data alpaca --epochs 1
    python instruction/instruction_finetuning.py --data mine.jsonl --output-column answer
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import tiktoken
from tqdm import tqdm

from gpt2.batching import check_batch_size
from gpt2.checkpoint import Recipe, load_weights
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import (
    evaluate_loss,
    language_model_loss,
    perplexity,
    row_losses,
)
from gpt2.model import GPT2
from gpt2.one_run import begin, explaining_not_finite
from gpt2.optimization import TrainingConfig
from gpt2.support.distributed import rank
from gpt2.support.flags import flag, parse_flags
from gpt2.support.run_folder import RunSettings
from gpt2.support.script import beside, run_script
from gpt2.support.splits import data_name, short_text
from gpt2.support.tables import describe_training, shorten
from gpt2.training import train
from gpt2.weights.building import ModelSettings, check_max_length
from gpt2.weights.licences import licences
from instruction.data import (
    InstructionDataset,
    describe_splits,
    load_splits,
    print_summary,
)
from instruction.evaluation import (
    Answer,
    AnswerSettings,
    answer_metrics,
    answer_prompts,
    first_sentences,
    judge_tasks,
    rouge,
    task_metrics,
    task_prompts,
)
from instruction.evidence import weigh_evidence
from instruction.predictions import write_predictions
from instruction.report import answer_records, comparison_table, task_records, write_report
from instruction.sources import BUILT_IN, DataSettings
from instruction.template import Template

# Answered at each evaluation of the built-in data; other data have prompts of their own.
SAMPLE_PROMPTS = [("Name three colours.", ""), ("Is this positive or negative?", "What a day!")]


@dataclass
class InstructionConfig(TrainingConfig):
    """Training"""

    train_on_prompt: bool = flag(
        False, "learn the prompt's tokens too; may help where answers are a word or two"
    )


@dataclass
class EvaluationSettings:
    """Evaluation"""

    test_answers: int = flag(
        100, "test rows answered before and after, chosen by --split-seed; more take longer and "
        "make the shares surer", at_least=1,
    )  # fmt: skip
    report_on: str = flag(
        "test", "split that the table, the answers and predictions are about; validation leaves "
        "the test split unread, for a choice among settings", choices=("test", "validation"),
    )  # fmt: skip
    answer_tokens: int = flag(96, "tokens of each of these answers at most", at_least=1)
    repetition_penalty: float = flag(
        AnswerSettings.repetition_penalty, "above 1, tokens that stand in one of these answers "
        "already become less likely, as in respond.py; 1 is none",
        at_least=0.01, at_most=100, in_older_runs=1.0,
    )  # fmt: skip


# The script's flags; a sweep checks its own with them.
SETTINGS = [DataSettings, ModelSettings, InstructionConfig, EvaluationSettings, RunSettings]


def main() -> None:
    data, model_settings, config, evaluation, run_settings = parse_flags(
        SETTINGS,
        "Teach GPT-2 to follow instructions, and compare its answers before and after.",
    )
    name = f"instruction-{data_name(data.data, BUILT_IN)}"
    run = begin(name, model_settings, config, run_settings)
    check_max_length(data.max_length, run.config)
    template = Template()

    # ---- chapter 1: data
    splits = load_splits(data, template, run.encoding, data.split_seed)
    data.revision = splits.revision  # recorded, so that a resumed run reads the same rows
    check_batch_size(data.data, len(splits.train), config.batch_size)

    # ---- chapter 2: model
    model, origin = run.build_model(LanguageModelHead)

    # ---- chapter 3: tokens
    datasets = {
        split: InstructionDataset(
            frame.rows(),
            template,
            run.encoding,
            data.max_length,
            # Only training does: what is reported is always the loss on responses.
            train_on_prompt=config.train_on_prompt and split == "train",
        )
        for split, frame in splits.items()
    }
    print_summary(splits, datasets)
    settings = {"data": data, "model": model_settings, "training": config,
                "evaluation": evaluation, "run": run_settings}  # fmt: skip
    run.start_writing(model, origin, settings)

    # ---- chapter 4: fine-tuning, between two looks at the split that the report is about
    reported = evaluation.report_on
    reported_rows = dict(splits.items())[reported]
    sampling = AnswerSettings(
        evaluation.answer_tokens, repetition_penalty=evaluation.repetition_penalty
    )
    answering = Answering(model, run.encoding, template, sampling, config)
    shown = SAMPLE_PROMPTS if data.data == "sample" else example_prompts(splits.validation)
    choice = np.random.default_rng(data.split_seed).permutation(len(reported_rows))
    answered = choice[: evaluation.test_answers]  # the same rows for every --seed
    answered_rows = reported_rows[answered]
    prompts = [datasets[reported].prompt(row) for row in answered]

    def look(when: str) -> dict[str, Any]:
        found = answering.look(prompts, answered_rows["output"].to_list(), when)
        found["row_losses"] = {}
        for split in dict.fromkeys(["validation", reported]):  # both, unless they are the same
            losses, targets = row_losses(
                model, datasets[split], config.rows_at_once, config.precision,
                f"{split} loss, {when}", config.micro_batch_tokens,
            )  # fmt: skip
            found["row_losses"][split] = {"losses": losses.tolist(), "targets": targets.tolist()}
            mean = float(losses.sum() / targets.sum())
            found[split] = {"loss": mean, "perplexity": perplexity(mean)}
        found[reported] |= found.pop("metrics")
        return found

    def evaluate() -> dict[str, float]:
        run.folder.keep_samples(answering.show(shown))
        return evaluate_loss(
            model, datasets["validation"], config.rows_at_once, config.precision,
            max_tokens=config.micro_batch_tokens,
        )  # fmt: skip

    model.eval()
    before = run.measure_before(lambda: {"origin": origin} | look("before"), splits.items())
    recipe = Recipe(
        "instruction",
        run.encoding,
        {"template": dataclasses.asdict(template), "max_length": data.max_length,
         "instruction": data.instruction, **splits.columns, "turns": data.turns,
         "trained_on": licences(run.start, [data.data], data.revision)},
    )  # fmt: skip
    with explaining_not_finite(splits.train["instruction"]):
        result = train(
            model, datasets["train"], language_model_loss, evaluate, config, run_settings.seed,
            run.folder, recipe,
        )  # fmt: skip

    # ---- chapter 5: evaluation of the weights that did best on validation
    load_weights(run.folder.folder / "best", model)
    model.eval()
    after = look("after")

    # ---- chapter 6: comparison
    if rank() > 0:
        return
    truncated = {split: dataset.truncated for split, dataset in datasets.items()}
    results = {
        "task": "instruction",
        "data": describe_splits(splits)
        | {"truncated": truncated, "example": shown[0], "reported": reported},
        "model": run.describe_model(model, before["origin"]) | {"max_length": data.max_length},
        "answering": dataclasses.asdict(sampling),
        "before": {reported: before[reported]},
        "after": {split: after[split] for split in ("validation", reported)},
        "evidence": weigh_evidence(before, after, reported),
        "training": run.describe_training(result),
        "answers": answer_records(answered_rows, before["answers"], after["answers"]),
        "tasks": task_records(before["tasks"], after["tasks"]),
    }
    if data.instruction:  # what a summary is to be better than
        copied = [first_sentences(text) for text in answered_rows["input"]]
        if found := rouge(copied, answered_rows["output"].to_list()):
            results["first_sentences"] = {reported: found}
    for split, found in after["row_losses"].items():
        earlier = before.get("row_losses", {}).get(split)  # older runs kept none
        write_predictions(run.folder.folder, dict(splits.items())[split], split, earlier, found)
    write_report(run.folder, results)
    instruction, text = shown[0]
    if data.instruction:  # respond.py knows it
        instruction, text = short_text([text]), ""
    example = shlex.quote(instruction) + (f" --input {shlex.quote(text)}" if text else "")
    respond = f"python {beside(__file__, 'respond.py')} {shlex.quote(str(run.folder.folder))}"
    run.end(
        comparison_table(results),
        describe_training(results["training"]),
        f"ask the model yourself:\n  {respond} {example}",
    )


def example_prompts(validation: pl.DataFrame) -> list[tuple[str, str]]:
    """(instruction, input) of two of the rows: the first short one without input and, where there
    is one, the first with a short input; or else of one, that with the shortest input. They are
    answered at each evaluation."""
    alone = validation.filter(pl.col("input") == "")["instruction"]
    found = [(short_text(alone), "")] if len(alone) else []
    about = validation.filter(pl.col("input").str.len_chars().is_between(1, 70))
    if not about.is_empty():
        shortest = about.sort(pl.col("instruction").str.len_chars(), maintain_order=True)
        found.append(shortest.select("instruction", "input").row(0))
    shortest = validation.sort(pl.col("input").str.len_chars(), maintain_order=True)
    return found or [shortest.select("instruction", "input").row(0)]


@dataclass
class Answering:
    """How `model` answers at this moment."""

    model: GPT2
    encoding: tiktoken.Encoding
    template: Template
    sampling: AnswerSettings
    config: TrainingConfig

    def answers_to(self, prompts: list[list[int]], desc: str = "") -> list[Answer]:
        """An answer to each prompt, token ids."""
        return answer_prompts(
            self.model, self.encoding, prompts, self.sampling, self.config.rows_at_once,
            self.config.precision, desc=desc,
        )  # fmt: skip

    def look(self, prompts: list[list[int]], references: list[str], when: str) -> dict[str, Any]:
        """The metrics of the answers to test prompts and to tasks, and these answers."""
        answers = self.answers_to(prompts, f"test answers, {when}")
        tasks = self.answers_to(task_prompts(self.encoding, self.template), f"tasks, {when}")
        metrics = answer_metrics(answers, references, self.template)
        return {
            "metrics": metrics | task_metrics(judge_tasks(tasks)),
            "answers": [answer.text for answer in answers],
            "tasks": [answer.text for answer in tasks],
        }

    def show(self, prompts: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Print the answers to (instruction, input), so that one sees the model learn. Returns
        (question, answer)."""
        texts = [self.template.prompt(*prompt) for prompt in prompts]
        answers = self.answers_to([self.encoding.encode_ordinary(text) for text in texts])
        questions = [" ".join(f"{instruction} {text}".split()) for instruction, text in prompts]
        for question, answer in zip(questions, answers, strict=True):
            tqdm.write(f"  {shorten(question, 100)}\n    -> {shorten(answer.text, 100)}")
        return list(zip(questions, [answer.text for answer in answers], strict=True))


if __name__ == "__main__":
    run_script(main)
