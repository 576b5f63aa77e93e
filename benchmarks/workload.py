"""What the contenders of `throughput.py` work on: one set of weights, one set of rows."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classification.data import IMDbDataset
from classification.data import load_splits as load_reviews
from classification.sources import DataSettings as ReviewSettings
from gpt2.checkpoint import Recipe, TrainingState, save_checkpoint
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, SIZES, GPT2Config
from gpt2.support.device import DeviceSettings, arithmetic, choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import flag
from gpt2.weights.building import ModelSettings, build_model, choose_config, count_parameters
from gpt2.weights.export import export
from instruction.data import InstructionDataset
from instruction.data import load_splits as load_instructions
from instruction.sources import DataSettings as InstructionSettings
from instruction.template import Template

TASK_NAMES = ("training", "prediction", "instruction", "generation")
MORE_TASKS = ("savings", "instruction-savings")


@dataclass
class ThroughputSettings:
    """Throughput"""

    tasks: tuple[str, ...] = flag(TASK_NAMES, "what to compare", choices=(*TASK_NAMES, *MORE_TASKS))
    data: str = flag("sample", "reviews, as --data of classification/train_gpt.py")
    instructions: str = flag(
        "sample", "instructions, as --data of instruction/instruction_finetuning.py"
    )
    model: str = flag("gpt2", "shape, with random weights", choices=tuple(SIZES))
    rows: int = flag(64, "rows that each contender goes through", at_least=2)
    max_length: int = flag(256, "tokens kept of each row", at_least=2)
    batch_size: int = flag(8, "rows in a step, and in a batch of prediction", at_least=1)
    new_tokens: int = flag(64, "tokens that each prompt is answered with", at_least=1)
    rounds: int = flag(3, "turns of each contender", at_least=1)
    seed: int = flag(1, "seed of the weights", at_least=0, at_most=2**32 - 1)


@dataclass
class Job:
    """What a contender is told. `folder` is what `prepare` filled.

    data  "classification" or "instruction": which weights and rows
    """

    folder: Path
    data: str
    settings: ThroughputSettings
    on: DeviceSettings

    @property
    def device(self) -> torch.device:
        return choose_device(self.on.device)

    @property
    def bfloat16(self) -> bool:
        return arithmetic(self.device, self.on.precision) == "bfloat16"

    @property
    def run(self) -> Path:
        """A run folder of this project; its `best/` has the weights that all start from."""
        return self.folder / self.data

    @property
    def exported(self) -> Path:
        """The same weights as transformers has them."""
        return self.folder / self.data / "exported"

    def rows(self) -> list[Any]:
        """(text, class id) for classification, (instruction, input, output) for instructions."""
        return json.loads((self.run / "rows.json").read_text(encoding="utf-8"))


@dataclass
class Work:
    """How much there is to do: the tokens of each row, as this project's batches have them; of
    instructions those of each prompt and of each response with its end as well."""

    tokens: list[int]
    prompts: list[int]
    responses: list[int]


def prepare(job: Job) -> Work:
    """Fill `job.folder` with weights and rows. Raises UserError if there are fewer rows than asked
    for, or if they cannot be read."""
    settings, keep = job.settings, job.settings.rows
    shape = ModelSettings(model=settings.model, init="random")
    config, encoding = choose_config(shape)
    if job.data == "classification":
        splits = load_reviews(ReviewSettings(settings.data, max_train=keep), 1)
        rows = splits.train.select("text", "label").rows()
        beside = {"labels": splits.labels, "max_length": settings.max_length}

        def make_head(config: GPT2Config) -> ClassificationHead:
            # The last token's hidden state: transformers has no other pooling.
            return ClassificationHead(config, len(splits.labels), "last")
    else:
        template, make_head = Template(), LanguageModelHead
        chosen = InstructionSettings(
            settings.instructions, max_train=keep, max_length=settings.max_length
        )
        rows = load_instructions(chosen, template, encoding, 1).train.rows()
        beside = {"template": dataclasses.asdict(template), "max_length": settings.max_length}
    if len(rows) < keep:
        raise UserError(f"--rows {keep}: there are {len(rows)} training rows for {job.data}")

    model, _ = build_model(shape, config, make_head, "all", settings.seed)
    recipe = Recipe(job.data, encoding, beside)
    job.run.mkdir(parents=True)
    save_checkpoint(job.run / "best", model, recipe, TrainingState())
    export(job.run, job.exported)
    (job.run / "rows.json").write_text(json.dumps(rows), encoding="utf-8")

    dataset = dataset_of(job, recipe)
    prompts = getattr(dataset, "prompt_lengths", np.array([], dtype=np.int64))
    responses = dataset.lengths + 1 - prompts if len(prompts) else prompts
    return Work(dataset.lengths.tolist(), prompts.tolist(), responses.tolist())


def dataset_of(job: Job, recipe: Recipe) -> IMDbDataset | InstructionDataset:
    """The rows as token ids, cut at `--max-length`."""
    length = job.settings.max_length
    if job.data == "classification":
        texts, labels = zip(*job.rows(), strict=True)
        return IMDbDataset(texts, labels, recipe.encoding, length)
    template = Template(**recipe.settings["template"])
    return InstructionDataset(job.rows(), template, recipe.encoding, length)


def tokens_to_run(task: str, work: Work, new_tokens: int) -> int:
    """Real tokens that go through the model in one pass over the rows."""
    if task == "generation":  # the last token of an answer does not
        return sum(work.prompts) + len(work.prompts) * (new_tokens - 1)
    return sum(work.tokens)


def useful_work(task: str, config: GPT2Config, work: Work, new_tokens: int) -> float:
    """FLOPs of one pass over the rows, by the usual count: for each real token 2 for each weight
    of the blocks; in each block 4 C for each pair of tokens of which the later sees the earlier;
    2 C V for each token that is predicted. With the way back it is three times that.

    Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1; there, attention
    counts as if each token saw all others. The last block's MLP counts for every token, though this
    project runs it for those alone that are read.
    """
    with torch.device("meta"):
        model = GPT2(config, LanguageModelHead(config))
    weights = count_parameters(model)[0] - model.wte.weight.numel() - model.wpe.weight.numel()
    lengths, predicted = work.tokens, sum(work.responses)  # no responses in classification
    if task == "generation":
        lengths = [prompt + new_tokens - 1 for prompt in work.prompts]
        predicted = new_tokens * len(lengths)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    forward = (
        2 * weights * tokens_to_run(task, work, new_tokens)
        + 4 * config.n_embd * config.n_layer * pairs
        + 2 * config.n_embd * config.vocab_size * predicted
    )
    return forward * (1 if task in ("prediction", "generation") else 3)
