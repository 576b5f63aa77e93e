"""From `--model` and `--init` to a model: which shape, encoding, weights and head."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch
from torch import nn

from gpt2.heads import Head, build_head, describe_head
from gpt2.lora import LoRA, add_adapters
from gpt2.model import GPT2, SIZES, GPT2Config
from gpt2.optimization import choose_trainable, parameter_groups
from gpt2.support.durable import whole_folder
from gpt2.support.errors import UserError
from gpt2.support.flags import flag
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import MINI_FOLDER, get_encoding
from gpt2.weights.hugging_face import RELEASED
from gpt2.weights.loading import check_base, pretrained, weights_sha256
from gpt2.weights.model_folder import ModelFolder, open_model_folder

_MINI_VOCABULARY = SIZES["mini"].vocab_size
_GPT2_VOCABULARY = SIZES["gpt2"].vocab_size


@dataclass
class ModelSettings:
    """Model"""

    model: str = flag(
        "mini",
        "mini (7 million parameters); gpt2, gpt2-medium, gpt2-large or gpt2-xl, downloaded; a "
        "folder: a run to go on from, or a GPT-2 in the Hugging Face layout; scratch: your own "
        "shape by --n-layer, --n-head and --n-embd, with mini's tokenizer",
        names=(*SIZES, "scratch"),
    )
    init: str = flag(
        "",
        "weights that training starts from; left out, pretrained where there are any",
        choices=("pretrained", "random"),
    )
    n_layer: int | None = flag(None, "blocks of a scratch model; 4 if left out", at_least=1)
    n_head: int | None = flag(None, "attention heads of a scratch model; 4", at_least=1)
    n_embd: int | None = flag(None, "width of a scratch model; 128", at_least=1)
    dropout: float = flag(
        0.0,
        "share of activations dropped in training, 0.1 as GPT-2 was trained; helps against "
        "overfitting, and costs time on a CPU",
        at_least=0,
        at_most=0.9,
    )


def model_name(settings: ModelSettings) -> str:
    """A short name for the run folder and the report; of a folder, the last part of its path."""
    if settings.model in SIZES or settings.model == "scratch":
        return settings.model
    folder = Path(settings.model).resolve()
    inside_a_run = folder.name in ("best", "last") and not (folder / "best").exists()
    return folder.parent.name if inside_a_run else folder.name


def initial_weights(settings: ModelSettings) -> str:
    """ "pretrained" or "random": what `--init` says or, left out, what there is. Raises UserError
    if pretrained weights are asked for where there are none."""
    name = settings.model
    there = name in RELEASED or (name not in SIZES and name != "scratch")
    if name == "mini":
        there = (MINI_FOLDER / "model.safetensors").is_file()
    if settings.init == "pretrained" and not there:
        raise UserError(f"--init pretrained: there are no weights for {name}; use --init random")
    return settings.init or ("pretrained" if there else "random")


def choose_config(settings: ModelSettings) -> tuple[GPT2Config, tiktoken.Encoding]:
    """The shape and the encoding that the flags name. Raises UserError for an impossible shape, an
    unknown name, or a folder without a model."""
    initial_weights(settings)
    shape = {"n_layer": settings.n_layer, "n_head": settings.n_head, "n_embd": settings.n_embd}
    if settings.model == "scratch":
        defaults = {"n_layer": 4, "n_head": 4, "n_embd": 128}
        chosen = {name: value or defaults[name] for name, value in shape.items()}
        try:
            config = GPT2Config(
                **chosen, n_positions=512, vocab_size=_MINI_VOCABULARY, dropout=settings.dropout
            )
        except ValueError as error:
            raise UserError(f"--model scratch: {error}") from None
        return config, get_encoding("mini")
    for name, value in shape.items():
        if value is not None:
            shown = name.replace("_", "-")
            raise UserError(
                f"--{shown} {value} goes with --model scratch; {settings.model} has a shape of "
                "its own"
            )
    if settings.model not in SIZES:
        found = find_model_folder(settings)
        return dataclasses.replace(found.config, dropout=settings.dropout), found.encoding()
    config = dataclasses.replace(SIZES[settings.model], dropout=settings.dropout)
    return config, _encoding_by_size(f"--model {settings.model}", config)


def _encoding_by_size(model: str, config: GPT2Config) -> tiktoken.Encoding:
    encodings = {_MINI_VOCABULARY: "mini", _GPT2_VOCABULARY: "gpt2"}
    if config.vocab_size not in encodings:
        raise UserError(
            f"{model} has a vocabulary of {config.vocab_size}, but there are tokens for "
            f"{' and '.join(map(str, encodings))} only"
        )
    return get_encoding(encodings[config.vocab_size])


def find_model_folder(settings: ModelSettings) -> ModelFolder:
    """The folder that `--model` names, when it is no built-in name. Raises UserError."""
    names = (*SIZES, "scratch")
    if not Path(settings.model).is_dir():
        close = difflib.get_close_matches(settings.model, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else f" (names: {', '.join(names)})"
        raise UserError(f"--model {settings.model}: neither a known name nor a folder{hint}")
    return open_model_folder(Path(settings.model))


def starting_point(settings: ModelSettings, run: RunFolder) -> ModelSettings:
    """The settings to build the model by: those given, or of a run to resume its own `last/`, so
    that what `--model` named when it began need not be there any more; but for adapters, which
    stand on it. Raises UserError if these weights are gone, or have changed."""
    last = whole_folder(run.folder / "last")
    if not (run.resume and last.is_dir() and (run.folder / "before.json").is_file()):
        return settings
    lora = open_model_folder(last).lora
    if lora:
        check_base(lora)
    return ModelSettings(model=lora.base if lora else str(last), dropout=settings.dropout)


def check_not_overwritten(settings: ModelSettings, run: Path) -> None:
    """Raises UserError if the new run in `run` would replace the one that `--model` names: a stop
    before its first checkpoint would leave neither."""
    if settings.model in SIZES or settings.model == "scratch":
        return
    source = Path(settings.model).resolve()
    if run.resolve() in (source, *source.parents):
        raise UserError(f"--out {run}: is what --model names; name another folder")


def choose_pooling(settings: ModelSettings, pooling: str) -> str:
    """`pooling` if it names one; else that of the classifier that `--model` names, or mean."""
    if not pooling and settings.model not in SIZES and settings.model != "scratch":
        pooling = find_model_folder(settings).head.get("pooling", "")
    return pooling or "mean"


def check_max_length(max_length: int, config: GPT2Config) -> None:
    """Raises UserError if rows of `max_length` tokens do not fit in the model's context."""
    if max_length > config.n_positions:
        raise UserError(
            f"--max-length {max_length} is beyond the model's context; --max-length "
            f"{config.n_positions} is the most it takes"
        )


def build_model(
    settings: ModelSettings,
    config: GPT2Config,
    make_head: Callable[[GPT2Config], Head],
    train: str,
    seed: int,
    labels: Sequence[str] | None = None,
    lora: LoRA | None = None,
) -> tuple[GPT2, str]:
    """The model that training starts from, on the CPU, frozen but for what `train` names; and where
    its weights come from, in words. "lora" gives it adapters that are like `lora`.

    Random weights depend on `seed` alone. A head is taken over if it does the same: language models
    go on with theirs, a classifier with one of the same pooling and `labels`; else it is new.

    Raises UserError if the weights cannot be had, if the head would not come back from a
    checkpoint, or if `train` or `lora` names nothing that the model has.
    """
    torch.manual_seed(seed)
    if initial_weights(settings) == "random":
        if train == "lora":
            raise UserError("--train lora: adapts weights that have learnt something, not random")
        model, origin = GPT2(config, make_head(config)), "random weights"
    elif settings.model in SIZES:
        released = RELEASED.get(settings.model)
        model = pretrained(settings.model, config, make_head(config), take_head=False)
        origin = f"pretrained weights{f' of {released[0]}' if released else ''}"
        if not model.head.ties_wte:
            origin += ", new head"
    else:
        found, head = find_model_folder(settings), make_head(config)
        why_new = _why_new_head(found, head, labels)
        model = pretrained(settings.model, config, head, take_head=not why_new)
        taken = f"trunk, new head ({why_new})," if why_new else "trunk and head"
        origin = f"{taken} of {found.folder} ({found.task})"
    _check_rebuilt(model.head, config)
    if train == "lora":
        _put_adapters(model, settings, lora or LoRA())
        return model, origin
    choose_trainable(model, train)
    return model, origin


def _put_adapters(model: GPT2, settings: ModelSettings, lora: LoRA) -> None:
    """Put adapters on `model` that know whose weights they stand on."""
    base = settings.model
    if base not in SIZES:
        # not resolved: a link may be put where the folder was, and the run goes on
        base = os.path.abspath(find_model_folder(settings).folder)
    lora = dataclasses.replace(lora, base=base, base_sha256=weights_sha256(base))
    try:
        add_adapters(model, lora)
    except ValueError as error:
        raise UserError(f"--lora-on {lora.on}: {error}") from None


def _check_rebuilt(head: Head, config: GPT2Config) -> None:
    """Raises UserError, before any training, if what a checkpoint says of `head` does not build it
    again."""
    refusal = (
        f"the head {type(head).__name__} cannot be built again from what it gave "
        f"super().__init__(), {head.arguments}, which is all that a checkpoint keeps of it: "
    )
    try:
        with torch.random.fork_rng(devices=[]):  # the run draws what it would draw without this
            again = build_head(config, describe_head(head))
    except (TypeError, ValueError) as error:
        raise UserError(f"{refusal}{error}") from None
    shapes, shapes_again = (
        {name: tensor.shape for name, tensor in each.state_dict().items()} for each in (head, again)
    )
    if shapes != shapes_again:
        raise UserError(f"{refusal}its weights would have other names or shapes")


def _why_new_head(found: ModelFolder, head: Head, labels: Sequence[str] | None) -> str:
    """Why the head in the folder cannot go on, or "" if it can."""
    old, new = found.head, describe_head(head)
    if old["kind"] != new["kind"]:
        return f"the old one was a {old['kind']} head"
    if labels is not None and found.labels != list(labels):
        return f"the old one's labels were {', '.join(found.labels or ['unknown'])}"
    changed = [f"{name} was {old.get(name)}" for name in new if old.get(name) != new[name]]
    return f"the old one's {', '.join(changed)}" if changed else ""


def describe_parameters(model: nn.Module, weight_decay: float) -> str:
    """How many parameters there are, how many are trained, and how many of these decay."""
    parameters, trainable = count_parameters(model)
    decaying = sum(
        parameter.numel()
        for group in parameter_groups(model, weight_decay=1.0)  # 0 would make all of them alike
        for parameter in group["params"]
        if group["weight_decay"]
    )
    return (
        f"{parameters:,} parameters, {trainable:,} trained ({decaying:,} with weight decay "
        f"{weight_decay:g}, {trainable - decaying:,} without)"
    )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are trained. A tied tensor counts once."""
    parameters = list(model.parameters())
    return (
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )
