"""What lies in a folder that `--model` names: a run of this project, or a GPT-2 of the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken

from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.lora import LoRA
from gpt2.model import SIZES, GPT2Config
from gpt2.support.durable import MANIFEST, whole_folder
from gpt2.support.errors import UserError
from gpt2.tokenizer import get_encoding, load_encoding
from gpt2.weights.hugging_face import CLASSIFIER, read_description
from gpt2.weights.peft_layout import CONFIG, read_adapters
from gpt2.weights.tokenizer_files import read_tokenizer_files


@dataclass
class ModelFolder:
    """A folder that `--model` names. `kind` is "checkpoint" (of a run of this project), "hugging
    face" (the layout) or "peft" (adapters, with the shape and the tokens of their base). A trained
    head can go on only where its description and labels are those of the new one."""

    folder: Path
    kind: str
    task: str  # as a checkpoint calls it; of a layout, its architecture
    config: GPT2Config
    head: dict[str, Any]  # as gpt2.heads.describe_head gives it
    labels: list[str] | None
    encoding: Callable[[], tiktoken.Encoding]
    lora: LoRA | None = None  # of a checkpoint of --train lora


def open_model_folder(folder: Path) -> ModelFolder:
    """What lies in `folder`: a run (its best checkpoint counts), a checkpoint, a GPT-2 in the
    Hugging Face layout, or adapters for one. Weights are not read yet. Raises UserError."""
    best = whole_folder(folder / "best")
    folder = best if best.is_dir() else folder
    if (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: this run has not saved a model")
    if is_encoder_checkpoint(folder):
        raise UserError(
            f"{folder}: is an encoder of baselines/train_encoder.py, which goes on from it"
        )
    if (folder / CONFIG).is_file():
        return _read_peft(folder)
    if (folder / "encoding.json").is_file() and (folder / "config.json").is_file():
        return _read_checkpoint(folder)
    return _read_layout(folder)


def is_encoder_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a checkpoint of a run of baselines/train_encoder.py."""
    return (folder / MANIFEST).is_file() and (folder / "tokenizer.json").is_file()


def _read_checkpoint(folder: Path) -> ModelFolder:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return ModelFolder(
            folder,
            "checkpoint",
            content["task"],
            GPT2Config(**content["model"]),
            content["head"],
            content["settings"].get("labels"),
            lambda: load_encoding(folder),
            LoRA(**content["lora"]) if content.get("lora") else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: not a checkpoint's ({error!r})") from None


def _read_peft(folder: Path) -> ModelFolder:
    adapters = read_adapters(folder)
    if adapters.base in SIZES:
        name = "mini" if adapters.base == "mini" else "gpt2"
        head = {"kind": LanguageModelHead.kind}
        config, labels, encoding = SIZES[adapters.base], None, lambda: get_encoding(name)
    else:
        base = open_model_folder(Path(adapters.base))
        config, head, labels, encoding = base.config, base.head, base.labels, base.encoding
    if adapters.head == "head.score.weight":
        classes = len(adapters.tensors[adapters.head])
        head = {"kind": ClassificationHead.kind, "num_classes": classes, "pooling": "last"}
        if (
            folder / "config.json"
        ).is_file():  # peft writes none; it may be put there for its names
            labels = read_description(folder).labels
    return ModelFolder(folder, "peft", "peft adapters", config, head, labels, encoding)


def _read_layout(folder: Path) -> ModelFolder:
    found = read_description(folder)
    classifier = found.architecture == CLASSIFIER
    head = {"kind": LanguageModelHead.kind}
    if classifier:
        head = {
            "kind": ClassificationHead.kind,
            "num_classes": len(found.labels or ()),
            "pooling": "last",
        }

    def encoding() -> tiktoken.Encoding:
        files = ("vocab.json", "tokenizer.json")
        if any((folder / name).is_file() for name in files):
            return read_tokenizer_files(folder, found.config.vocab_size, found.end_token)
        if found.config.vocab_size != SIZES["gpt2"].vocab_size:
            raise UserError(
                f"{folder}: has no tokenizer (vocab.json and merges.txt, or tokenizer.json) for "
                f"its vocabulary of {found.config.vocab_size:,}"
            )
        return get_encoding("gpt2")

    return ModelFolder(
        folder,
        "hugging face",
        found.architecture,
        found.config,
        head,
        found.labels if classifier else None,
        encoding,
    )
