"""From `--model` to a model: which shape, which encoding, which head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import tiktoken
import torch
from torch import nn

from gpt2.command_line import UserError, flag
from gpt2.model import GPT2, SIZES, GPT2Config, choose_trainable
from gpt2.tokenizer import get_encoding

_MINI_VOCABULARY = SIZES["mini"].vocab_size


@dataclass
class ModelSettings:
    """Model"""

    model: str = flag(
        "mini",
        "shape: mini (7 million parameters), a released one, or scratch: your own by --n-layer, "
        "--n-head and --n-embd, with mini's tokenizer",
        choices=(*SIZES, "scratch"),
    )
    init: str = flag("random", "weights that training starts from", choices=("random",))
    n_layer: int | None = flag(None, "blocks of a scratch model; 4 if left out", at_least=1)
    n_head: int | None = flag(None, "attention heads of a scratch model; 4", at_least=1)
    n_embd: int | None = flag(None, "width of a scratch model; 128", at_least=1)
    dropout: float = flag(
        0.0,
        "share of activations dropped in training, 0.1 as GPT-2 was trained; helps against "
        "overfitting, and halves the speed on a CPU",
        at_least=0,
        at_most=0.9,
    )


def choose_config(settings: ModelSettings) -> tuple[GPT2Config, tiktoken.Encoding]:
    """The shape and the encoding that the flags name. Raises UserError for an impossible shape."""
    shape = {"n_layer": settings.n_layer, "n_head": settings.n_head, "n_embd": settings.n_embd}
    if settings.model != "scratch":
        for name, value in shape.items():
            if value is not None:
                shown = name.replace("_", "-")
                raise UserError(
                    f"--{shown} {value} goes with --model scratch; {settings.model} has a shape of "
                    "its own"
                )
        config = dataclasses.replace(SIZES[settings.model], dropout=settings.dropout)
        encodings = {_MINI_VOCABULARY: "mini", SIZES["gpt2"].vocab_size: "gpt2"}
        if config.vocab_size not in encodings:
            raise UserError(
                f"--model {settings.model} has a vocabulary of {config.vocab_size}, but there are "
                f"tokens for {' and '.join(map(str, encodings))} only"
            )
        return config, get_encoding(encodings[config.vocab_size])
    defaults = {"n_layer": 4, "n_head": 4, "n_embd": 128}
    chosen = {name: value or defaults[name] for name, value in shape.items()}
    try:
        config = GPT2Config(
            **chosen, n_positions=512, vocab_size=_MINI_VOCABULARY, dropout=settings.dropout
        )
    except ValueError as error:
        raise UserError(f"--model scratch: {error}") from None
    return config, get_encoding("mini")


def check_max_length(max_length: int, config: GPT2Config) -> None:
    """Raises UserError if rows of `max_length` tokens do not fit in the model's context."""
    if max_length > config.n_positions:
        raise UserError(
            f"--max-length {max_length} is beyond the model's context; --max-length "
            f"{config.n_positions} is the most it takes"
        )


def build_model(
    config: GPT2Config, make_head: Callable[[GPT2Config], nn.Module], train: str, seed: int
) -> GPT2:
    """A model with random weights that depend on `seed` alone, frozen but for what `train` names.
    Raises UserError if `train` names nothing that the model has."""
    torch.manual_seed(seed)
    model = GPT2(config, make_head(config))
    try:
        choose_trainable(model, train)
    except ValueError as error:
        raise UserError(f"--train {error}") from None
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are trained. A tied tensor counts once."""
    parameters = list(model.parameters())
    return (
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )
