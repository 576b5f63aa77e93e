"""What `throughput.py` compares: each function here lets one library do one task on the weights and
rows of a job, and says what that took.

Each goes through the rows twice. The first pass warms up: memory is allocated, kernels are chosen
and compiled. The second is timed.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.decoding_speed import NEVER
from benchmarks.measuring import Measured, PassTimer, Seen, second_of_two
from benchmarks.workload import Job, dataset_of
from classification.evaluation import classification_loss
from classification.predict import predict
from gpt2.batching import Batch, sorted_batches
from gpt2.checkpoint import Recipe
from gpt2.compiling import compile_blocks
from gpt2.generation import SamplingSettings, generate
from gpt2.language_modelling import language_model_loss
from gpt2.model import GPT2
from gpt2.optimization import TrainingConfig
from gpt2.support.device import arithmetic, autocast
from gpt2.support.run_folder import RunFolder
from gpt2.training import train
from gpt2.weights.loading import load_model

LEARNING_RATE, WEIGHT_DECAY, CLIP = 5e-5, 0.1, 1.0  # the same for all


class Enough(Exception):
    """Ends this project's loop before it evaluates and saves, which no contender does here: 2 GB
    written at the end of one run would slow the next."""


# ---- this project


def load_here(job: Job, compiled: bool) -> tuple[GPT2, Recipe]:
    """The model on its device; `compiled` as --compile does it."""
    model, recipe = load_model(job.run, job.data)
    model.to(job.device)
    if compiled:
        compile_blocks(model)
    return model, recipe


def train_here(job: Job, compiled: bool = False) -> Measured:
    """`train` of gpt2/training.py, the loop of this project's scripts."""
    model, recipe = load_here(job, compiled)
    dataset = dataset_of(job, recipe)
    task_loss = classification_loss if job.data == "classification" else language_model_loss
    seen = Seen()
    timer = PassTimer(seen, len(dataset), job.device)
    original_backward = Tensor.backward

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        timer.lap("data")
        seen.add(batch.lengths, batch.tokens.numel())
        result = task_loss(model, batch)
        timer.lap("forward")
        return result

    def backward(tensor: Tensor, *arguments: Any, **named: Any) -> None:
        original_backward(tensor, *arguments, **named)
        timer.lap("backward")

    def evaluate() -> dict[str, float]:
        if timer.ends:
            raise Enough
        return {"loss": 0.0}

    config = TrainingConfig(
        epochs=3,
        batch_size=job.settings.batch_size,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        clip=CLIP,
        evaluate_every=10**9,  # at the start and at the end, where the loop always does
        save_every="0",
        precision=job.on.precision,
    )
    run = RunFolder(job.folder / "log")
    run.folder.mkdir(exist_ok=True)
    with mock.patch.object(Tensor, "backward", backward), timer.attached():
        with contextlib.suppress(Enough):
            train(model, dataset, loss, evaluate, config, 1, run, recipe)
    measured = seen.measured(timer.seconds, passes=3)
    measured.shares = timer.shares
    return measured


def predict_here(job: Job, compiled: bool = False) -> Measured:
    """`predict` of classification/predict.py, from texts to probabilities."""
    model, recipe = load_here(job, compiled)
    texts = [text for text, _ in job.rows()]
    seen = Seen()

    def count(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        tokens, lengths = inputs
        seen.add(lengths, tokens.numel())

    model.register_forward_pre_hook(count)

    def one_pass() -> None:
        list(predict(model, recipe, texts, job.settings.batch_size, job.on.precision))

    return seen.measured(second_of_two(one_pass, job.device), passes=2)


def generate_here(job: Job, compiled: bool = False) -> Measured:
    """`generate` of gpt2/generation.py, with prompts of similar length in a batch."""
    model, recipe = load_here(job, compiled)
    dataset = dataset_of(job, recipe)
    prompts = [dataset.prompt(row) for row in range(len(dataset))]
    settings, seen = SamplingSettings(max_new_tokens=job.settings.new_tokens), Seen()

    def one_pass() -> None:
        for rows in sorted_batches([len(prompt) for prompt in prompts], job.settings.batch_size):
            batch = [prompts[row] for row in rows]
            with autocast(job.device, job.on.precision):
                answers = generate(model, batch, settings, NEVER)
            count_generated(seen, batch, answers)

    return seen.measured(second_of_two(one_pass, job.device), passes=2)


# ---- transformers and TRL; imported where they are used, for they take seconds and may be missing


def train_with_trainer(job: Job, tuned: bool = False, compiled: bool = False) -> Measured:
    """transformers' Trainer: as it comes, or with everything that makes it faster."""
    import transformers

    rows, tokenizer = rows_for_trainer(job)
    if job.data == "classification":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(job.exported)
        collator = transformers.DataCollatorWithPadding(tokenizer)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(job.exported)
        collator = transformers.DataCollatorForSeq2Seq(tokenizer)  # it pads labels with -100
    options = trainer_options(job)
    if tuned:
        on_gpu = job.device.type == "cuda"
        fields = transformers.TrainingArguments.__dataclass_fields__
        grouping = {"train_sampling_strategy": "group_by_length"}
        if "group_by_length" in fields:  # before transformers 5
            grouping = {"group_by_length": True}
        options |= grouping | {
            "bf16": job.bfloat16,
            "optim": "adamw_torch_fused",
            "torch_compile": compiled,
            "dataloader_num_workers": 2 if on_gpu else 0,  # a CPU has better things to do
            "dataloader_persistent_workers": on_gpu,
            "dataloader_pin_memory": on_gpu,
            "logging_strategy": "no",
            "logging_nan_inf_filter": False,  # it waits for the GPU at each step
        }
        model.config.use_cache = False  # no keys and values that nobody reads
        # Rows of similar length are looked for among 50 batches, but among a quarter of all rows if
        # these are fewer. Here it gets what it has on a whole data set, and what this project has.
        sampling = transformers.trainer_pt_utils
        sampling.get_length_grouped_indices = partial(
            sampling.get_length_grouped_indices, mega_batch_mult=50
        )
    return timed_trainer(
        job,
        transformers.Trainer,
        len(rows),
        model=model,
        args=transformers.TrainingArguments(**options),
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
    )


def train_with_sft(job: Job) -> Measured:
    """TRL's SFTTrainer with its defaults, on rows that are token ids already."""
    import datasets
    import transformers
    import trl

    datasets.disable_progress_bars()
    rows, tokenizer = rows_for_trainer(job)
    columns = [
        {
            "input_ids": row["input_ids"],
            "completion_mask": [int(label >= 0) for label in row["labels"]],
        }
        for row in rows
    ]
    config = trl.SFTConfig(
        # One more than the cut: <|endoftext|>, which this project's rows have as a target only.
        max_length=job.settings.max_length + 1,
        completion_only_loss=True,
        # Its default, but on a machine that emulates bfloat16: there a step takes many minutes.
        bf16=arithmetic(job.device, "auto") == "bfloat16",
        **trainer_options(job),
    )
    return timed_trainer(
        job,
        trl.SFTTrainer,
        len(rows),
        model=transformers.AutoModelForCausalLM.from_pretrained(job.exported),
        args=config,
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=tokenizer,
    )


def predict_with_pipeline(job: Job, tuned: bool = False, compiled: bool = False) -> Measured:
    """transformers' text-classification pipeline: as it comes, one text at a time, or tuned."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=job.exported, device=job.device)
    texts, seen = [text for text, _ in job.rows()], Seen()
    classify.model.register_forward_pre_hook(
        lambda _, __, named: seen.add_mask(named["attention_mask"]), with_kwargs=True
    )
    options: dict[str, Any] = {"truncation": True}
    if tuned:
        options["batch_size"] = job.settings.batch_size
        texts.sort(key=len, reverse=True)
        if job.bfloat16:
            classify.model.to(torch.bfloat16)
        classify.model.config.use_cache = False
    if compiled:
        classify.model.forward = torch.compile(classify.model.forward, dynamic=True)
    seconds = second_of_two(lambda: classify(texts, **options), job.device)
    return seen.measured(seconds, passes=2)


def generate_with_transformers(job: Job, tuned: bool = False) -> Measured:
    """`generate` of transformers, greedy, on batches padded on the left."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.exported).to(job.device).eval()
    model.generation_config.eos_token_id = None  # never stops: the same number of tokens for all
    _, recipe = load_model(job.run, job.data)
    dataset, seen = dataset_of(job, recipe), Seen()
    prompts = [dataset.prompt(row) for row in range(len(dataset))]
    batches = sorted_batches([len(prompt) for prompt in prompts], job.settings.batch_size)
    if not tuned:  # in the order in which they came
        batches = sorted_batches([0] * len(prompts), job.settings.batch_size)
    if tuned and job.bfloat16:
        model.to(torch.bfloat16)

    def one_pass() -> None:
        for rows in batches:
            batch = [prompts[row] for row in rows]
            width = max(map(len, batch))
            tokens = torch.zeros(len(batch), width, dtype=torch.int64)  # (B, T)
            mask = torch.zeros_like(tokens)
            for row, prompt in enumerate(batch):
                tokens[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            answers = model.generate(
                input_ids=tokens.to(job.device),
                attention_mask=mask.to(job.device),
                max_new_tokens=job.settings.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            count_generated(seen, batch, answers[:, width:].tolist())

    return seen.measured(second_of_two(one_pass, job.device), passes=2)


def rows_for_trainer(job: Job) -> tuple[list[dict[str, Any]], Any]:
    """The same token ids as transformers wants them, and the exported tokenizer, which pads them on
    the right."""
    from transformers import AutoTokenizer

    _, recipe = load_model(job.run, job.data)
    dataset = dataset_of(job, recipe)
    rows: list[dict[str, Any]] = []
    for tokens, targets in (dataset[row] for row in range(len(dataset))):
        if job.data == "classification":
            row = {"input_ids": tokens.tolist(), "label": targets.item()}
        else:  # the model shifts labels by itself: token t is the label at t, the first is none
            row = {
                "input_ids": [*tokens.tolist(), targets[-1].item()],
                "labels": [-100, *targets.tolist()],
            }
        row["attention_mask"] = [1] * len(row["input_ids"])
        rows.append(row)
    tokenizer = AutoTokenizer.from_pretrained(job.exported, padding_side="right")
    return rows, tokenizer


def trainer_options(job: Job) -> dict[str, Any]:
    """What every Trainer is told: the same work, and nothing but that."""
    return {
        "output_dir": str(job.folder / "trainer"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": job.settings.batch_size,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": CLIP,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": job.device.type == "cpu",
    }


def timed_trainer(job: Job, trainer_class: type, rows: int, **arguments: Any) -> Measured:
    """Train with a Trainer of `trainer_class` and time it."""
    seen = Seen()
    timer = PassTimer(seen, rows, job.device)

    class CountingTrainer(trainer_class):
        def training_step(self, model: nn.Module, inputs: dict, *rest: Any, **named: Any) -> Tensor:
            seen.add_mask(inputs["attention_mask"], last_is_target=job.data == "instruction")
            return super().training_step(model, inputs, *rest, **named)

    with timer.attached():
        CountingTrainer(**arguments).train()
    return seen.measured(timer.seconds, passes=2)


def count_generated(seen: Seen, prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Count the tokens of a batch that went through the model: the last of an answer never did."""
    pairs = zip(prompts, answers, strict=True)
    lengths = [len(prompt) + len(answer) - 1 for prompt, answer in pairs]
    seen.add(torch.tensor(lengths), max(lengths) * len(lengths))
