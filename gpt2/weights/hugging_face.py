"""GPT-2's weights in the Hugging Face layout: read here, written by gpt2/weights/export.py.

The layout: a folder with config.json (the shape), model.safetensors (the weights, or several files
and an index) and the tokenizer's files. Parameter names are this project's, behind `transformer.`
or not; matrices stand transposed, because OpenAI's code multiplied from the other side (`Conv1D`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gpt2.lora import merged_parameters
from gpt2.model import GPT2, GPT2Config
from gpt2.support.errors import UserError
from gpt2.support.files import read_utf8
from gpt2.support.hub import download

# name -> repository and pinned commit
RELEASED = {
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
CLASSIFIER = "GPT2ForSequenceClassification"  # what config.json calls it; GPT2LMHeadModel otherwise
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# a head's weight here -> there; every other name gets `transformer.` in front
STORED_HEADS = {"head.weight": "lm_head.weight", "head.score.weight": "score.weight"}

# What config.json may say besides the shape, and the only values that gpt2/model.py computes.
_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # three names of one
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_SHAPE = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "tie_word_embeddings")
# The causal mask, which early versions stored with the weights.
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


def download_released(name: str) -> Path:
    """The folder of the hub's cache that holds model.safetensors of "gpt2", "gpt2-medium" ...
    Raises UserError if it is not there and cannot be downloaded."""
    repository, revision = RELEASED[name]
    way_out = (
        "if you have its files, name their folder: --model FOLDER; or start from random weights: "
        "--init random"
    )
    return download(repository, "model.safetensors", revision, "model", way_out).parent


@dataclass(frozen=True)
class Description:
    """What config.json says of a folder in the Hugging Face layout."""

    config: GPT2Config
    architecture: str
    labels: list[str] | None  # of a classifier, in the order of its logits
    end_token: int | None


def read_description(folder: Path) -> Description:
    """Read config.json. Raises UserError if it is missing, or if it describes anything that
    gpt2/model.py does not compute."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: has no config.json, so it is neither a run nor a model")
    try:
        content = json.loads(read_utf8(file))
        architecture = (content.get("architectures") or ["GPT2LMHeadModel"])[0]
        kind = content.get("model_type")
        if kind != "gpt2" or not architecture.startswith("GPT2"):
            raise UserError(f"{file}: {architecture} (model_type {kind}) is not a GPT-2")
        for name, allowed in _FIXED.items():
            value = content.get(name, allowed[0])
            if value not in allowed:
                raise UserError(f"{file}: {name} is {value}, but this GPT-2 has {allowed[0]} only")
        shape = {name: content[name] for name in _SHAPE if name in content}
        for name, value in shape.items():
            if type(value) is not (bool if name == "tie_word_embeddings" else int):
                raise ValueError(f"{name} is {value!r}")
        config = GPT2Config(**shape)
        if content.get("n_inner") not in (None, 4 * config.n_embd):
            raise UserError(
                f"{file}: n_inner is {content['n_inner']}, but this GPT-2 has 4 * n_embd only"
            )
        labels = content.get("id2label")
        if labels is not None:
            labels = [labels[str(number)] for number in range(len(labels))]
        return Description(config, architecture, labels, content.get("eos_token_id"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not the description of a GPT-2 ({error!r})") from None


@dataclass(frozen=True)
class StoredWeights:
    """Names and shapes of stored tensors, known before any of them is read."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


def open_weights(folder: Path) -> StoredWeights:
    """The weights of `folder`: safetensors, whole or in shards, or else PyTorch's own format, of
    which nothing but tensors is read. Raises UserError if they are missing or damaged."""
    path, files = _find_weights(folder)
    opener = _open_safetensors if files[0].suffix == ".safetensors" else _open_pickled
    return opener(path, files)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of `folder`. Raises UserError if there are none."""
    return _find_weights(folder)[1]


def _find_weights(folder: Path) -> tuple[Path, list[Path]]:
    """What to call the weights of `folder`, the file or the index of the files, and these files."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return folder / name, [folder / name]
        if index.is_file():
            return index, _shards(index)
    raise UserError(f"{folder}: has no weights (model.safetensors or pytorch_model.bin)")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(read_utf8(index))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard lies in another folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of shards ({error!r})") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index}: its {', '.join(missing)} is missing")
    return [index.parent / name for name in names]


def _open_safetensors(path: Path, files: Iterable[Path]) -> StoredWeights:
    file_of, shapes = {}, {}
    for file_path in files:
        try:
            with safe_open(file_path, "pt") as file:
                for name in file.keys():
                    file_of[name] = file_path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file_path}: cannot be read as safetensors ({error})") from None

    def read(name: str) -> Tensor:
        # The file is mapped into memory anew for each tensor. A page that was read counts as this
        # process's memory until the file is closed, so one mapping would grow to a second copy.
        with safe_open(file_of[name], "pt") as file:
            return file.get_tensor(name)

    return StoredWeights(path, shapes, read)


def _open_pickled(path: Path, files: Iterable[Path]) -> StoredWeights:
    weights: dict[str, Tensor] = {}
    for file_path in files:
        try:
            try:
                # weights_only: a pickle may run any code when it is read; this refuses to
                content = torch.load(file_path, "cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
                content = torch.load(file_path, "cpu", weights_only=True)
            if not all(isinstance(value, Tensor) for value in content.values()):
                raise ValueError("not everything in it is a tensor")
        except Exception as error:  # a damaged pickle may raise anything
            reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
            raise UserError(
                f"{file_path}: cannot be read as weights alone ({reason}); it is damaged or holds "
                "more than tensors, which is not run"
            ) from None
        weights |= content
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return StoredWeights(path, shapes, weights.__getitem__)


def load_pretrained(folder: Path, model: GPT2, with_head: bool) -> None:
    """Give `model`, which may be on the meta device, the weights of `folder`: those of the trunk,
    and those of its head `with_head`. A head of another kind that is stored is left out.

    One tensor after the other is read and put in its place, so that memory never holds more than
    the model and one tensor. Raises UserError, before `model` is touched, if a tensor is missing,
    unexpected or of another shape, naming every one.
    """
    stored = open_weights(folder)
    name_of, unexpected = _match_names(stored, model)
    wanted = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if with_head or not name.startswith("head.")
    }
    _check_names(stored, name_of, unexpected, wanted)
    if "head.weight" in name_of and model.config.tie_word_embeddings:
        # Some files hold the tied tensor twice.
        if not torch.equal(stored.read(name_of["head.weight"]), stored.read(name_of["wte.weight"])):
            raise UserError(
                f"{stored.path}: lm_head.weight differs from wte.weight, but config.json ties "
                "them (tie_word_embeddings)"
            )
    for name in wanted:
        set_parameter(model, name, _read(stored, name_of[name], name))
    model.tie()


def _match_names(stored: StoredWeights, model: GPT2) -> tuple[dict[str, str], list[str]]:
    """Our name -> the stored name, and the stored names that mean nothing here."""
    known = {name for name, _ in model.named_parameters()} | set(STORED_HEADS)
    heads = {there: here for here, there in STORED_HEADS.items()}
    name_of: dict[str, str] = {}
    unexpected = []
    for stored_name in sorted(stored.shapes):
        name = stored_name.removeprefix("transformer.")
        name = heads.get(name, name)
        if _MASK.fullmatch(name):
            continue
        if name in known and name not in name_of:
            name_of[name] = stored_name
        else:
            unexpected.append(stored_name)
    return name_of, unexpected


def _check_names(
    stored: StoredWeights,
    name_of: dict[str, str],
    unexpected: list[str],
    wanted: dict[str, tuple[int, ...]],
) -> None:
    problems = []
    missing = [name for name in wanted if name not in name_of]
    if missing:
        problems.append(f"missing: {_short(missing)}")
    if unexpected:
        problems.append(f"unexpected: {_short(unexpected)}")
    for name, shape in wanted.items():
        if name in name_of:
            found = stored.shapes[name_of[name]]
            expected = shape[::-1] if name.endswith(TRANSPOSED) else shape
            if found != expected:
                problems.append(f"{name_of[name]} is {list(found)}, must be {list(expected)}")
    if problems:
        raise UserError(f"{stored.path}: does not fit the model; {'; '.join(problems)}")


def _short(names: list[str]) -> str:
    """Every name, those of the same parameter in several blocks together.

    >>> _short(["wte.weight", "h.0.ln_1.bias", "h.1.ln_1.bias", "h.3.ln_1.bias"])
    'wte.weight, h.{0,1,3}.ln_1.bias'
    """
    blocks: dict[str, list[str]] = {}
    for name in names:
        block = re.search(r"\bh\.(\d+)\.", name)
        pattern = name if block is None else name.replace(block[0], "h.{}.", 1)
        blocks.setdefault(pattern, []).append(block[1] if block else "")
    return ", ".join(
        pattern.replace("{}", numbers[0] if len(numbers) == 1 else f"{{{','.join(numbers)}}}")
        for pattern, numbers in blocks.items()
    )


def _read(stored: StoredWeights, stored_name: str, name: str) -> Tensor:
    """A copy in float32, transposed if it has to be, that shares no memory with the file."""
    try:
        tensor = stored.read(stored_name)
        if not tensor.is_floating_point():
            raise ValueError(f"its numbers are {tensor.dtype}")
        tensor = tensor.t() if name.endswith(TRANSPOSED) else tensor
        return torch.empty(tensor.shape).copy_(tensor)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{stored.path}: {stored_name} cannot be read ({error})") from None


def set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in the place of the parameter `name` ("h.0.ln_1.weight"), without a copy."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))


def to_stored_names(model: GPT2) -> dict[str, Tensor]:
    """The parameters of `model`, with its adapters merged, under the names, and in the orientation,
    of the layout."""
    weights: dict[str, Any] = {}
    for name, parameter in merged_parameters(model).items():
        tensor = parameter.detach().cpu()
        tensor = tensor.t() if name.endswith(TRANSPOSED) else tensor
        weights[STORED_HEADS.get(name, f"transformer.{name}")] = tensor.contiguous()
    return weights
