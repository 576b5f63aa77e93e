"""Let a language model continue a text.

    python pretraining/sample.py mini "The film begins"
    python pretraining/sample.py runs/films "The film begins" --samples 3 --temperature 1
    python pretraining/sample.py gpt2 "Once upon a time" --max-new-tokens 200

The model is what `--model` of the training scripts takes: a name, a run of
`pretraining/pretrain.py`, or a GPT-2 in the Hugging Face layout. Without a text it begins a
document of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
from dataclasses import dataclass

from gpt2.generation import PromptTooLong, SamplingSettings, stream_text
from gpt2.heads import LanguageModelHead
from gpt2.model import SIZES
from gpt2.support.device import DeviceSettings, choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.weights.building import (
    ModelSettings,
    build_model,
    choose_config,
    find_model_folder,
    initial_weights,
)


@dataclass
class SampleSettings(SamplingSettings):
    """Generation"""

    # Plain language models, taken at their likeliest word, soon repeat themselves (Holtzman et al.
    # 2020, "The Curious Case of Neural Text Degeneration").
    temperature: float = flag(
        0.8, "1 samples as the model says; less is tamer, 0 takes the likeliest token each time",
        at_least=0,
    )  # fmt: skip
    top_k: int = flag(50, "sample among the k likeliest tokens only; 0 among all", at_least=0)
    samples: int = flag(1, "continuations, each from the next seed", at_least=1)
    seed: int = flag(1, "another seed, another text", at_least=0, at_most=2**31)


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="a name or a folder, as for --model")
        parser.add_argument("text", metavar="TEXT", nargs="?", default="", help="what to continue")

    settings, on, arguments = parse_flags(
        [SampleSettings, DeviceSettings],
        "Let a language model continue a text.",
        add_arguments=add_arguments,
    )
    device = choose_device(on.device)
    chosen = ModelSettings(model=arguments.model)
    if initial_weights(chosen) == "random":
        raise UserError(f"{chosen.model}: has no pretrained weights to sample from")
    if (
        chosen.model not in SIZES
        and find_model_folder(chosen).head["kind"] != LanguageModelHead.kind
    ):
        raise UserError(f"{chosen.model}: is a classifier; sampling takes a language model")
    config, encoding = choose_config(chosen)
    model, _ = build_model(chosen, config, LanguageModelHead, train="all", seed=0)
    model.to(device).eval()

    # <|endoftext|> stands before every document that the model has read.
    prompt = [encoding.eot_token, *encoding.encode_ordinary(arguments.text)]
    for seed in range(settings.seed, settings.seed + settings.samples):
        pieces = stream_text(model, encoding, prompt, settings, seed, on.precision)
        try:
            first = next(pieces)
        except PromptTooLong as error:
            raise UserError(str(error)) from None
        print(arguments.text, first, sep="", end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print("\n" if settings.samples > 1 else "")


if __name__ == "__main__":
    run_script(main, is_filter=True)
