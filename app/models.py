"""The models behind the page. Many visitors share them: each batch and each token is a turn."""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from baselines.train_logreg import BagOfWords
from classification.data import load_splits
from classification.evaluation import parse_class_weights
from classification.predict import Answer, predict
from classification.sources import DataSettings
from classification.train_gpt import ClassificationSettings
from gpt2.checkpoint import Recipe
from gpt2.generation import stream_text
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2
from gpt2.support.device import DeviceSettings, choose_device
from gpt2.support.errors import UserError
from gpt2.support.results_folder import read_settings
from gpt2.support.run_folder import RunSettings
from gpt2.tokenizer import encode_text
from gpt2.weights.building import ModelSettings, build_model, choose_config
from gpt2.weights.loading import load_model
from gpt2.weights.model_folder import open_model_folder
from instruction.evaluation import AnswerSettings
from instruction.template import Template


class Turns:
    """A lock that is given in the order in which it was asked for. (With threading.Lock, who gives
    it back and asks again at once mostly gets it again, and a long upload would keep out everybody
    else.)"""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._now = 0
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._changed:
            number = next(self._numbers)
            self._changed.wait_for(lambda: self._now == number)
        try:
            yield
        finally:
            with self._changed:
                self._now += 1
                self._changed.notify_all()


@dataclass
class Log:
    """What visitors typed and got, one JSON object a line, if the page was started with --log;
    else nothing is kept."""

    file: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.file:
            with open(self.file, "a", encoding="utf-8"):  # fails now, and not with the first text
                pass

    def write(self, run: str, **record: Any) -> None:
        if not self.file:
            return
        line = {"time": round(time.time(), 3), "run": run} | record
        with self._lock, open(self.file, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


@dataclass
class Classifier:
    """A run of train_gpt.py."""

    name: str
    folder: Path
    model: GPT2
    recipe: Recipe
    precision: str
    batch_size: int
    turns: Turns
    _bag: BagOfWords | None = None
    _bag_tried: bool = False
    _bag_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def labels(self) -> list[str]:
        return self.recipe.settings["labels"]

    def classify(self, texts: list[str]) -> list[Answer]:
        """The answers of predict.py, batch by batch, each in its turn."""
        found = {place: answer for batch in self.batches(texts) for place, answer in batch}
        return [found[place] for place in range(len(texts))]

    def batches(self, texts: list[str]) -> Iterator[list[tuple[int, Answer]]]:
        """The same as it comes, the shortest texts first: with each answer the place of its text.
        Between two batches the work can be ended."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # less padding
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = [texts[place] for place in places]
            with self.turns.one():
                found = list(
                    predict(self.model, self.recipe, batch, self.batch_size, self.precision)
                )
            yield [(place, answer) for place, (_, answer) in zip(places, found, strict=True)]

    def bag(self) -> BagOfWords | None:
        """The bag of words of the run, fitted once more to its training rows when it is first asked
        for; None if these are not there any more, for a reason that visitors need not know."""
        with self._bag_lock:
            if not self._bag_tried:
                self._bag_tried = True
                try:
                    self._bag = self._fit_bag()
                except (UserError, OSError) as error:
                    print(f"{self.name} is shown without a bag of words: {error}", file=sys.stderr)
            return self._bag

    def _fit_bag(self) -> BagOfWords:
        data = read_settings(self.folder, DataSettings)
        task = read_settings(self.folder, ClassificationSettings)
        train = load_splits(data, data.split_seed).train
        targets = train["label"].to_numpy()
        counts = np.bincount(targets, minlength=len(self.labels))
        weights = parse_class_weights(task.class_weights, self.labels, counts)
        return BagOfWords(task.features).fit(train["text"], targets, len(self.labels), weights)


@dataclass
class Assistant:
    """A run of instruction_finetuning.py, or the model that it began with."""

    name: str
    folder: Path
    model: GPT2
    recipe: Recipe
    precision: str
    turns: Turns
    _before: Assistant | None = None
    _before_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def template(self) -> Template:
        return Template(**self.recipe.settings["template"])

    def prompt(self, instruction: str, text: str) -> list[int]:
        """What the model reads, as tokens. Raises UserError if that leaves no room for an
        answer."""
        prompt = encode_text(self.recipe.encoding, self.template.prompt(instruction, text))
        context = self.model.config.n_positions
        if len(prompt) >= context:
            raise UserError(
                f"{self.name}: with the template that is {len(prompt):,} tokens, which leaves no "
                f"room for an answer in the model's context of {context:,}"
            )
        return prompt

    def answer(self, prompt: list[int], sampling: AnswerSettings, seed: int) -> Iterator[str]:
        """The answer of respond.py, piece by piece, each token in its turn. Closing the iterator
        ends the work."""
        pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                stream = stream_text(
                    self.model, self.recipe.encoding, prompt, sampling, seed, self.precision
                )
                while not stop.is_set():
                    with self.turns.one():
                        piece = next(stream, None)
                    if piece is None:
                        break
                    pieces.put(piece)
                stream.close()
            except Exception as error:  # whatever it is, the visitor waits for it
                pieces.put(error)
            pieces.put(None)

        # In one thread from its first token to its last: autocast belongs to a thread, and Gradio
        # would fetch each piece in another one.
        threading.Thread(target=work, daemon=True).start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stop.set()

    def before(self) -> Assistant:
        """The model that the run began with, loaded when it is first asked for. Raises UserError if
        it is not there any more."""
        with self._before_lock:
            if self._before is None:
                settings = read_settings(self.folder, ModelSettings)
                seed = read_settings(self.folder, RunSettings).seed
                config, _ = choose_config(settings)
                model, _ = build_model(settings, config, LanguageModelHead, "all", seed)
                model = model.to(self.model.wte.weight.device).eval()
                self._before = Assistant(
                    f"{self.name}, before", self.folder, model, self.recipe, self.precision,
                    self.turns,
                )  # fmt: skip
            return self._before


def load_models(
    runs: list[Path], on: DeviceSettings, batch_size: int
) -> tuple[list[Classifier], list[Assistant]]:
    """The models of `runs`, by task. Raises UserError for what is no run of either."""
    device = choose_device(on.device)
    classifiers, assistants, turns = [], [], Turns()
    names = [run.resolve().name for run in runs]
    for run, name in zip(runs, names, strict=True):
        name = name if names.count(name) == 1 else str(run)
        is_assistant = run.is_dir() and open_model_folder(run).task == "instruction"
        model, recipe = load_model(run, "instruction" if is_assistant else "classification")
        model.to(device)
        if is_assistant:
            assistants.append(Assistant(name, run, model, recipe, on.precision, turns))
        else:
            classifiers.append(
                Classifier(name, run, model, recipe, on.precision, batch_size, turns)
            )
    return classifiers, assistants
