"""A fine-tuned model out, as a folder that transformers loads without this project.

    python -m gpt2.weights.export RUN FOLDER
    python -m gpt2.weights.export RUN FOLDER --adapter  # of --train lora, for the library peft

The tokenizer that goes with it does to a text what prediction does here, as far as its own means
go, so that a pipeline gives this project's labels and the text that it generates greedily without a
repetition penalty.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import json
import re
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from gpt2.checkpoint import Recipe
from gpt2.encoder import Encoder, merge_encoder
from gpt2.generation import SamplingSettings
from gpt2.model import GPT2
from gpt2.support.durable import whole_folder
from gpt2.support.errors import UserError
from gpt2.support.files import write_json
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.weights.hugging_face import to_stored_names
from gpt2.weights.loading import load_model
from gpt2.weights.model_card import model_card
from gpt2.weights.model_folder import is_encoder_checkpoint, open_model_folder
from gpt2.weights.parity import check_parity
from gpt2.weights.peft_layout import write_adapters
from gpt2.weights.tokenizer_files import write_tokenizer_files

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# gpt2.support.files.clean_text, which prediction calls, without its first step: a tokenizer cannot
# turn "&#345;" into a letter. Python's white space is Unicode's and the four separators 1c to 1f.
_CLEANING = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Replace", "pattern": {"Regex": r"(?i)<br\s*/?>"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": r"[\s\x1c-\x1f]+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
}


@dataclass
class ExportSettings:
    """Export"""

    dtype: str = flag(
        "float32",
        "what the weights are stored in; the others take half the space",
        choices=tuple(DTYPES),
    )
    adapter: bool = flag(
        False,
        "of a run of --train lora: the adapters alone, in the layout of the library peft; without "
        "it they are merged into the weights",
    )


def check_export(folder: Path, model: nn.Module | None = None) -> None:
    """Raises UserError if nothing can be exported to `folder`, or not this `model`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; name a new one to export to")
    if isinstance(model, GPT2):  # an encoder is computed by transformers itself
        check_parity(model)


def export(run: Path, folder: Path, dtype: str = "float32", adapter: bool = False) -> None:
    """Write the best model of `run`, a run folder or checkpoint, to the new `folder` in the Hugging
    Face layout, or with `adapter` its adapters in that of peft, and print how to use it. `dtype` is
    what the weights are stored in.

    Raises UserError if `run` holds no model or no adapters, if transformers computes something else
    from its weights, or if `folder` is taken or cannot be written; there is then no half of it.
    """
    best = whole_folder(run / "best")
    source, task = best if best.is_dir() else run, "classification"
    if not is_encoder_checkpoint(source):
        found = open_model_folder(run)
        if found.kind != "checkpoint":
            raise UserError(f"{run}: is not a run of this project, but in the Hugging Face layout")
        source, task = found.folder, found.task
    check_export(folder)
    model, recipe = load_model(source, task)
    check_export(folder, model)
    if adapter and isinstance(model, Encoder):
        raise UserError(f"{run}: --adapter is for GPT-2; export an encoder without it")
    beside = [run / "results.json", source.parent / "results.json"]
    results = next((json.loads(f.read_text("utf-8")) for f in beside if f.is_file()), {})

    temporary = Path(f"{os.path.abspath(folder)}.new-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier process that had our number
    try:
        temporary.mkdir(parents=True)
        base = ""
        if isinstance(model, Encoder):
            model = merge_encoder(model)
            _write_encoder(temporary, model, recipe, dtype)
        else:
            base = _write_gpt2(temporary, model, recipe, dtype, adapter)
        card = model_card(folder.resolve().name, model, recipe, results, base)
        (temporary / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        for file in temporary.iterdir():  # safetensors makes files only their owner reads
            shutil.copymode(temporary / "config.json", file)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: cannot be written ({reason})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"exported to {folder}; see {folder / 'README.md'}")


def _write_encoder(folder: Path, model: Encoder, recipe: Recipe, dtype: str) -> None:
    """Weights and shape as transformers itself writes them; the tokenizer cleans texts and cuts
    them where training did."""
    model.network.to(DTYPES[dtype]).save_pretrained(folder)
    recipe.encoding.save(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    steps = [*_CLEANING["normalizers"], *filter(None, [tokenizer["normalizer"]])]
    write_json(file, tokenizer | {"normalizer": {"type": "Sequence", "normalizers": steps}})
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, settings | _as_in_training(recipe))


def _as_in_training(recipe: Recipe) -> dict[str, Any]:
    """What a classifier's tokenizer is told of cutting and padding."""
    return {
        "model_max_length": recipe.settings["max_length"],
        "padding_side": "right",
        "truncation_side": "left" if recipe.settings["truncation"] == "tail" else "right",
        # "<|endoftext|>" inside a text is thirteen characters, as it was in training.
        "split_special_tokens": True,
    }


def _write_gpt2(folder: Path, model: GPT2, recipe: Recipe, dtype: str, adapter: bool) -> str:
    """Returns what the adapters stand on, if nothing else is written of the weights."""
    base = write_adapters(folder, model, DTYPES[dtype]) if adapter else ""
    if not adapter:
        stored = to_stored_names(model)
        weights = {name: tensor.to(DTYPES[dtype]) for name, tensor in stored.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder, model, recipe)
    write_json(folder / "config.json", _config(model, recipe, dtype))
    if "labels" not in recipe.settings:
        write_json(folder / "generation_config.json", _generation_config(recipe))
    return base


def _config(model: GPT2, recipe: Recipe, dtype: str) -> dict[str, Any]:
    config, end = model.config, recipe.encoding.eot_token
    labels = recipe.settings.get("labels")
    content = {
        "architectures": [model.head.counterpart()],
        "model_type": "gpt2",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.n_positions,
        "vocab_size": config.vocab_size,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": end,
        "eos_token_id": end,
        # The classifier of transformers knows a pad by its id, and looks at the last other token.
        # That is safe with a token that no text is cut into, which split_special_tokens sees to.
        "pad_token_id": end,
        "torch_dtype": dtype,
    }
    if labels:
        content["problem_type"] = "single_label_classification"
        content["id2label"] = {str(number): label for number, label in enumerate(labels)}
        content["label2id"] = {label: number for number, label in enumerate(labels)}
    return content


def _generation_config(recipe: Recipe) -> dict[str, Any]:
    end = recipe.encoding.eot_token
    return {
        "do_sample": False,
        "max_new_tokens": SamplingSettings().max_new_tokens,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _write_tokenizer(folder: Path, model: GPT2, recipe: Recipe) -> None:
    encoding = recipe.encoding
    end = encoding.decode([encoding.eot_token])
    special = {name: end for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    settings: dict[str, Any] = {
        # GPT2Tokenizer would read vocabulary and merges alone and leave the normalizer out.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    if "labels" in recipe.settings:
        settings |= _as_in_training(recipe)
        write_tokenizer_files(encoding, folder, _CLEANING)
    else:
        settings |= {"model_max_length": model.config.n_positions, "padding_side": "left"}
        write_tokenizer_files(encoding, folder)
    if "template" in recipe.settings:
        settings["chat_template"] = chat_template(**recipe.settings["template"])
        (folder / "chat_template.jinja").write_text(settings["chat_template"], encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)


def chat_template(with_input: str, without_input: str) -> str:
    """The prompt template in Jinja. A message of the user is an instruction, with what it is about
    as the message's `input`, if there is any; an answer ends with the end token.

    >>> print(chat_template("{instruction} ({input}): ", "{instruction}: "))
    {%- for message in messages -%}
    {%- if message.role == 'user' -%}
    {%- if message.input -%}
    {{- '' + message.content + ' (' + message.input + '): ' -}}
    {%- else -%}
    {{- '' + message.content + ': ' -}}
    {%- endif -%}
    {%- elif message.role == 'assistant' -%}
    {{- message.content + eos_token -}}
    {%- else -%}
    {{- raise_exception('the roles are user and assistant') -}}
    {%- endif -%}
    {%- endfor -%}
    """
    return "\n".join(
        [
            "{%- for message in messages -%}",
            "{%- if message.role == 'user' -%}",
            "{%- if message.input -%}",
            "{{- " + _jinja_string(with_input) + " -}}",
            "{%- else -%}",
            "{{- " + _jinja_string(without_input) + " -}}",
            "{%- endif -%}",
            "{%- elif message.role == 'assistant' -%}",
            "{{- message.content + eos_token -}}",
            "{%- else -%}",
            "{{- raise_exception('the roles are user and assistant') -}}",
            "{%- endif -%}",
            "{%- endfor -%}",
        ]
    )


def _jinja_string(prompt: str) -> str:
    """The expression in Jinja that gives `prompt` with its placeholders filled."""
    values = {"{instruction}": "message.content", "{input}": "message.input"}
    parts = re.split(r"(\{instruction\}|\{input\})", prompt)
    # ascii() writes a string as Python does, and Jinja reads the same escapes.
    return " + ".join(values.get(part) or ascii(part) for part in parts)


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or checkpoint")
        parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder")

    settings, arguments = parse_flags(
        [ExportSettings],
        "Write a fine-tuned model as a folder that transformers loads.",
        add_arguments=add_arguments,
    )
    export(arguments.run, arguments.folder, settings.dtype, settings.adapter)


if __name__ == "__main__":
    run_script(main)
