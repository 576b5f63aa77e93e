"""How much faster does a key-value cache make generation?

    python benchmarks/decoding_speed.py
    python benchmarks/decoding_speed.py --model mini --new-tokens 256 --rows 8

The same model, with random weights, continues the same prompts with the cache, which runs each
token through the model once, and without, which runs the whole text through it for every new token.
The two take turns, so that whatever else the machine does slows both; what counts is the ratio of
each pair and the median of these.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpt2.generation import SamplingSettings, generate
from gpt2.heads import LanguageModelHead, last_tokens
from gpt2.model import GPT2, SIZES
from gpt2.support.device import DeviceSettings, arithmetic, autocast, choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import format_table

NEVER = -1  # a stop token that no row meets: every run makes the same number of tokens


@dataclass
class DecodingSettings:
    """Decoding"""

    model: str = flag("gpt2", "shape, with random weights", choices=tuple(SIZES))
    new_tokens: int = flag(256, "tokens that each row gets", at_least=1)
    prompt_tokens: int = flag(32, "tokens that each row starts from", at_least=1)
    rows: int = flag(1, "rows at once", at_least=1)
    repeats: int = flag(5, "pairs of runs", at_least=1)
    seed: int = flag(1, "seed of weights and prompts", at_least=0, at_most=2**32 - 1)


@torch.no_grad()
def generate_without_cache(
    model: GPT2, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """The likeliest `new_tokens` after each of `prompts`, which have the same length: the plain
    way, with the whole text through the trunk for every token."""
    tokens = torch.tensor(prompts, device=model.wte.weight.device)  # (B, T)
    for _ in range(new_tokens):
        at = last_tokens(torch.full((len(prompts),), tokens.size(1), device=tokens.device))
        last = model.hidden_states(tokens, at=at)  # (B, C); no more than what is read
        chosen = model.head(last, None).argmax(dim=1, keepdim=True)  # (B, 1)
        tokens = torch.cat([tokens, chosen], dim=1)
    return tokens[:, -new_tokens:].tolist()


def main() -> None:
    settings, on = parse_flags([DecodingSettings, DeviceSettings], __doc__.splitlines()[0])
    config = SIZES[settings.model]
    if settings.prompt_tokens + settings.new_tokens > config.n_positions:
        raise UserError(
            f"--prompt-tokens {settings.prompt_tokens} and --new-tokens {settings.new_tokens} do "
            f"not fit together in {settings.model}'s context of {config.n_positions}"
        )
    device = choose_device(on.device)
    torch.manual_seed(settings.seed)
    model = GPT2(config, LanguageModelHead(config)).to(device).eval()
    shape = (settings.rows, settings.prompt_tokens)
    prompts = torch.randint(config.vocab_size, shape).tolist()
    greedy = SamplingSettings(max_new_tokens=settings.new_tokens)
    ways = {
        "without cache": lambda: generate_without_cache(model, prompts, settings.new_tokens),
        "with cache": lambda: generate(model, prompts, greedy, NEVER),
    }
    print(
        f"{settings.model}, random weights, batch of {settings.rows}, {settings.prompt_tokens} + "
        f"{settings.new_tokens} tokens, {arithmetic(device, on.precision)} on {device}, "
        f"{torch.get_num_threads()} threads"
    )
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(settings.repeats + 1):
        for way, run in ways.items():
            started = time.perf_counter()
            with autocast(device, on.precision):
                run()  # ends in lists of numbers, so the device is done
            if repeat:  # the first pair warms up
                seconds[way].append(time.perf_counter() - started)
        if repeat:
            shown = ", ".join(f"{way} {values[-1]:.2f} s" for way, values in seconds.items())
            print(f"pair {repeat}: {shown}", flush=True)
    total = settings.rows * settings.new_tokens
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    rows = [[way, f"{value:.2f}", f"{total / value:,.1f}"] for way, value in medians.items()]
    print("\n" + format_table(["median", "seconds", "tokens a second"], rows))
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    print(
        f"\nthe cache is {statistics.median(ratios):.1f} times as fast (median of "
        f"{len(ratios)} pairs, {min(ratios):.1f} to {max(ratios):.1f})"
    )


if __name__ == "__main__":
    run_script(main)
