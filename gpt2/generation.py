"""Text from a language model, token by token, with a key-value cache."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor, nn

from gpt2.model import GPT2, KeyValueCache
from gpt2.support.device import autocast
from gpt2.support.distributed import sharded
from gpt2.support.flags import flag


@dataclass
class SamplingSettings:
    """Generation"""

    max_new_tokens: int = flag(128, "tokens of an answer at most", at_least=1)
    temperature: float = flag(
        0.0, "0 takes the likeliest token each time; 1 samples as the model says; more is wilder",
        at_least=0,
    )  # fmt: skip
    top_k: int = flag(0, "sample among the k likeliest tokens only; 0 among all", at_least=0)
    top_p: float = flag(
        1.0, "sample among the likeliest tokens that together have this probability", above=0,
        at_most=1,
    )  # fmt: skip
    repetition_penalty: float = flag(
        1.0, "above 1, tokens that have been generated already become less likely; those of the "
        "prompt do not", at_least=0.01, at_most=100,
    )  # fmt: skip


@contextlib.contextmanager
def casting_once(model: nn.Module) -> Iterator[None]:
    """Inside, under torch.no_grad(), autocast casts each weight once for as long as it lasts. By
    itself it does so with those alone that require a gradient, and with frozen ones each time."""
    # Of a model in parts each process would keep the whole.
    weights = [] if sharded(model) else list(model.parameters())
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


class PromptTooLong(ValueError):
    """The prompt leaves no room for an answer in the model's context."""


@torch.no_grad()
def generate_steps(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    stop_token: int,
    seeds: Sequence[int] | None = None,
) -> Iterator[list[int | None]]:
    """The next token of each prompt, step by step; None for a row that has ended.

    A row ends with `stop_token`, which is yielded, after `max_new_tokens`, or when it fills the
    context. Each row samples with the random numbers of its own seed (left out: 0 for all), so that
    no row depends on those that it shares a batch with. The model must be in evaluation mode.

    Raises PromptTooLong if a prompt leaves no room for one token, ValueError if one is empty.
    """
    context = model.config.n_positions
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == 0:
        raise ValueError("a prompt needs at least one token")
    if max(lengths) >= context:
        raise PromptTooLong(
            f"a prompt of {max(lengths)} tokens leaves no room for more in the model's "
            f"context of {context}"
        )
    device = model.wte.weight.device
    rows = len(prompts)
    capacity = min(context, max(lengths) + settings.max_new_tokens)
    cache = KeyValueCache(model.config, rows, capacity, like=model.wte.weight)
    tokens = torch.zeros(rows, max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(device)
    # What was generated, without the prompt: an answer may well use the words of its question.
    seen = torch.zeros(rows, model.config.vocab_size, dtype=torch.bool, device=device)
    seeds = seeds or [0] * rows
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    with casting_once(model):
        # --- the prompts, all at once; what follows each row's last token
        after = torch.tensor(lengths, device=device)  # (B,)
        at = torch.arange(rows, device=device), after - 1
        last = model.hidden_states(tokens, cache, at)  # (B, C)
        cache.lengths, cache.width = after, max(lengths)

        running = [True] * rows
        goes_on = torch.ones_like(after, dtype=torch.bool)  # (B,); `running` on the device
        for step in range(settings.max_new_tokens):
            logits = model.head(last, cache.lengths).float()  # (B, V)
            chosen = choose_tokens(logits, seen, settings, generators)  # (B,)
            seen.scatter_(1, chosen.unsqueeze(1), True)
            tokens_of_rows = chosen.tolist()  # the one time in each step that a GPU is waited for
            yield [token if on else None for token, on in zip(tokens_of_rows, running, strict=True)]
            running = [
                on and token != stop_token and lengths[row] + step + 1 < context
                for row, (on, token) in enumerate(zip(running, tokens_of_rows, strict=True))
            ]
            if not any(running) or step + 1 == settings.max_new_tokens:
                return
            # A row that has ended writes over its own beginning while others go on.
            goes_on &= (chosen != stop_token) & (cache.lengths + 1 < context)
            cache.lengths = cache.lengths * goes_on
            cache.width = max(n + step for n, on in zip(lengths, running, strict=True) if on)
            last = model.hidden_states(chosen.unsqueeze(1), cache).squeeze(1)  # (B, C)
            cache.lengths = cache.lengths + 1


def generate(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    stop_token: int,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """The answer to each prompt as token ids, `stop_token` included where the model came to it.
    See `generate_steps`."""
    answers: list[list[int]] = [[] for _ in prompts]
    for step in generate_steps(model, prompts, settings, stop_token, seeds):
        for answer, token in zip(answers, step, strict=True):
            if token is not None:
                answer.append(token)
    return answers


def stream_text(
    model: GPT2,
    encoding: tiktoken.Encoding,
    prompt: Sequence[int],
    settings: SamplingSettings,
    seed: int = 0,
    precision: str = "auto",
) -> Iterator[str]:
    """What follows the tokens of `prompt`, piece by piece, as soon as each is known, up to
    <|endoftext|>. A piece never ends inside a character, even where a token does. Raises
    PromptTooLong."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with autocast(model.wte.weight.device, precision):
        for (token,) in generate_steps(model, [prompt], settings, encoding.eot_token, [seed]):
            if token == encoding.eot_token:
                break
            yield decoder.decode(encoding.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)


def choose_tokens(
    logits: Tensor, seen: Tensor, settings: SamplingSettings, generators: list[torch.Generator]
) -> Tensor:
    """One token (B,) int64 for each row of `logits` (B, V) float32, as `settings` say. `seen`
    (B, V) bool marks the tokens that have been generated in the row, for the repetition penalty."""
    logits = penalise_repetition(logits, seen, settings.repetition_penalty)
    if settings.temperature < 1e-6:  # dividing by less could overflow, and would choose the same
        return logits.argmax(dim=1)
    logits = keep_top_k(logits / settings.temperature, settings.top_k)
    probabilities = keep_top_p(logits, settings.top_p).softmax(dim=1)
    # What torch.multinomial does for one token, but that waits twice for a GPU, to check the row.
    exponential = torch.stack(
        [
            torch.empty_like(row).exponential_(generator=generator)
            for row, generator in zip(probabilities, generators, strict=True)
        ]
    )  # (B, V)
    return (probabilities / exponential).argmax(dim=1)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits of `seen` tokens. Keskar et al. 2019, "CTRL", section 4.1; dividing a
    negative logit, as written there, would raise it. `repetition_penalty` of transformers counts
    the tokens of the prompt too, which are not among `seen` here."""
    if penalty == 1:
        return logits
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The `k` largest logits of each row; the others become -inf. 0 keeps all."""
    if k == 0 or k >= logits.size(1):
        return logits
    largest = logits.topk(k, dim=1)  # by place, not by value: equal logits would be k + 1
    return torch.full_like(logits, -torch.inf).scatter(1, largest.indices, largest.values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The likeliest tokens up to the one with which they together reach the probability `p`; the
    others become -inf. Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration",
    section 3.1."""
    if p == 1:
        return logits
    ordered, order = logits.sort(dim=1, descending=True)
    probabilities = ordered.softmax(dim=1)
    before = probabilities.cumsum(dim=1) - probabilities  # of all that are likelier
    left_out = before >= p
    left_out[:, 0] = False  # the likeliest stays, even where `p` is 0 in float32
    ordered = ordered.masked_fill(left_out, -torch.inf)
    return torch.empty_like(logits).scatter(1, order, ordered)
