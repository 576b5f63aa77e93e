"""Teach GPT-2 to follow instructions, with the model and the loop of classification.

Without any flag it runs on the built-in instructions, offline, in a minute or two.

    python instruction/instruction_finetuning.py
    python instruction/instruction_finetuning.py --data alpaca --epochs 1
    python instruction/instruction_finetuning.py --data mine.jsonl --output-column answer
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt2.batching import check_batch_size
from gpt2.building import (
    ModelSettings,
    build_model,
    check_max_length,
    check_not_overwritten,
    choose_config,
    count_parameters,
    describe_parameters,
    initial_weights,
    model_name,
    starting_point,
)
from gpt2.checkpoint import Checkpoint, load_weights
from gpt2.command_line import flag, parse_flags, run_script
from gpt2.device import arithmetic, choose_device
from gpt2.distributed import init_processes, rank, to_device
from gpt2.export import check_export, export
from gpt2.generation import SamplingSettings
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.optimization import TrainingConfig
from gpt2.reporting import describe_training, explain_not_finite, shorten
from gpt2.run_folder import RunFolder, RunSettings
from gpt2.training import NotFinite, train
from instruction.data import (
    DataSettings,
    InstructionDataset,
    describe_splits,
    load_splits,
    print_summary,
    source_name,
)
from instruction.evaluation import (
    Answer,
    answer_metrics,
    answer_prompts,
    judge_tasks,
    task_metrics,
    task_prompts,
)
from instruction.report import answer_records, comparison_table, task_records, write_report
from instruction.template import Template

# Answered at each evaluation, so that one sees the model learn.
FIXED_PROMPTS = (("Name three colours.", ""), ("Is this positive or negative?", "What a day!"))


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
    answer_tokens: int = flag(96, "tokens of each of these answers at most", at_least=1)


def main() -> None:
    data, model_settings, config, evaluation, run_settings = parse_flags(
        [DataSettings, ModelSettings, InstructionConfig, EvaluationSettings, RunSettings],
        "Teach GPT-2 to follow instructions, and compare its answers before and after.",
    )
    device = init_processes(choose_device(run_settings.device))
    seed = run_settings.seed
    template = Template()
    run = RunFolder.choose(
        run_settings, f"instruction-{source_name(data.data)}-{model_name(model_settings)}"
    )

    # ---- data, model, tokens
    check_not_overwritten(model_settings, run.folder)
    start = starting_point(model_settings, run)
    gpt2_config, encoding = choose_config(start)
    check_max_length(data.max_length, gpt2_config)
    if run_settings.export:
        check_export(Path(run_settings.export))
    splits = load_splits(data, template, encoding, data.split_seed)
    check_batch_size(data.data, len(splits.train), config.batch_size)
    model, origin = build_model(start, gpt2_config, LanguageModelHead, config.train, seed)
    to_device(model, device, config.shard)
    datasets = {
        split: InstructionDataset(
            frame.rows(),
            template,
            encoding,
            data.max_length,
            # Only training does: what is reported is always the loss on responses.
            train_on_prompt=config.train_on_prompt and split == "train",
        )
        for split, frame in splits.items()
    }
    print_summary(splits, datasets)
    parameters, trainable = count_parameters(model)
    print(
        f"model: {model_name(model_settings)}, {origin}, "
        f"{describe_parameters(model, config.weight_decay)}; "
        f"{arithmetic(device, config.precision)} on {device}"
    )
    run.start(
        {"data": data, "model": model_settings, "training": config, "evaluation": evaluation,
         "run": run_settings},
        str(device),
    )  # fmt: skip
    print(f"run folder: {run.folder}\n")

    # ---- fine-tuning, between two looks at the test split
    greedy = SamplingSettings(max_new_tokens=evaluation.answer_tokens)
    choice = np.random.default_rng(data.split_seed).permutation(len(splits.test))
    answered = choice[: evaluation.test_answers]  # the same rows for every --seed
    answered_rows = splits.test[answered]
    prompts = [datasets["test"].prompt(row) for row in answered]

    def answers_to(some_prompts: list[list[int]], progress: str = "") -> list[Answer]:
        return answer_prompts(
            model, encoding, some_prompts, greedy, config.rows_at_once, config.precision,
            progress=progress,
        )  # fmt: skip

    def loss_on(split: str, progress: str = "") -> dict[str, float]:
        return evaluate_loss(
            model,
            datasets[split],
            config.rows_at_once,
            config.precision,
            progress,
            config.micro_batch_tokens,
        )

    def look_at_test(when: str) -> dict[str, Any]:
        """The metrics, the answers to test rows and the answers to tasks."""
        answers = answers_to(prompts, f"test answers, {when}")
        task_answers = answers_to(task_prompts(encoding, template), f"tasks, {when}")
        metrics = loss_on("test", f"test loss, {when}")
        metrics |= answer_metrics(answers, answered_rows["output"].to_list(), template)
        metrics |= task_metrics(judge_tasks(task_answers))
        return {
            "test": metrics,
            "answers": [answer.text for answer in answers],
            "tasks": [answer.text for answer in task_answers],
        }

    def evaluate() -> dict[str, float]:
        fixed = [encoding.encode_ordinary(template.prompt(*prompt)) for prompt in FIXED_PROMPTS]
        for (instruction, text), answer in zip(FIXED_PROMPTS, answers_to(fixed), strict=True):
            tqdm.write(f"  {instruction} {text}".rstrip() + f"\n    -> {shorten(answer.text, 100)}")
        return loss_on("validation")

    model.eval()
    before = run.once("before.json", lambda: {"origin": origin} | look_at_test("before"))
    checkpoint = Checkpoint(
        "instruction",
        encoding,
        {"template": dataclasses.asdict(template), "max_length": data.max_length,
         "data": splits.name},
    )  # fmt: skip
    try:
        result = train(
            model, datasets["train"], language_model_loss, evaluate, config, seed, run, checkpoint
        )
    except NotFinite as error:
        raise explain_not_finite(error, splits.train["instruction"]) from None

    # ---- evaluation of the weights that did best on validation, and comparison
    load_weights(run.folder / "best", model)
    model.eval()
    after = look_at_test("after") | {"validation": loss_on("validation")}
    if rank() > 0:
        return
    results = {
        "task": "instruction",
        "data": describe_splits(splits)
        | {"truncated": {split: dataset.truncated for split, dataset in datasets.items()}},
        "model": {
            "name": model_name(model_settings),
            "init": initial_weights(model_settings),
            "origin": before["origin"],
            "max_length": data.max_length,
            "parameters": parameters,
            "trainable": trainable,
        },
        "before": {"test": before["test"]},
        "after": {"validation": after["validation"], "test": after["test"]},
        "training": dataclasses.asdict(result)
        | {"tokens_per_second": result.tokens / result.seconds, "seed": seed},
        "answers": answer_records(answered_rows, before["answers"], after["answers"]),
        "tasks": task_records(before["tasks"], after["tasks"]),
    }
    write_report(run, results)
    print(f"\n{comparison_table(results)}\n")
    print(describe_training(results["training"]))
    print(f"everything of this run: {run.folder / 'report.md'}")
    if run_settings.export:
        export(run.folder, Path(run_settings.export))
    script = os.path.relpath(os.path.join(os.path.dirname(__file__), "respond.py"))
    print("\nnext, ask the model yourself:")
    print(f'  python {script} {shlex.quote(str(run.folder))} "Name three colours."')


if __name__ == "__main__":
    run_script(main)
