"""Chapter 5, what the language model knows without fine-tuning: how likely it finds a word for each
class after the text.

    --zero-shot "{text} In short, the film was" --label-words bad good

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; a word that is likely
after any text is held against it (Holtzman et al. 2021, "Surface Form Competition").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tiktoken
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.batching import map_batches, sorted_batches
from gpt2.model import GPT2, KeyValueCache
from gpt2.support.device import autocast
from gpt2.support.errors import UserError


def check_zero_shot(template: str, label_words: Sequence[str], labels: Sequence[str]) -> None:
    """Raises UserError unless the template has its place for the text and each class its own
    words."""
    if not template and not label_words:
        return
    if template.count("{text}") != 1:
        raise UserError(f"--zero-shot '{template}': must have {{text}} in it once")
    if len(label_words) != len(labels):
        raise UserError(
            f"--label-words: {len(label_words)} given, but there are {len(labels)} classes; give "
            f"one for each, in this order: {', '.join(labels)}"
        )
    words = {word.strip() for word in label_words}
    if "" in words or len(words) < len(label_words):
        raise UserError(
            f"--label-words: {', '.join(map(repr, label_words))}; each class needs words of its own"
        )


@torch.no_grad()
def zero_shot_log_probabilities(
    model: GPT2,
    encoding: tiktoken.Encoding,
    texts: Sequence[str],
    template: str,
    label_words: Sequence[str],
    batch_size: int,
    precision: str,
    desc: str = "",
) -> np.ndarray:
    """(rows, num_classes) float32: the log-probability of each class, from the likelihoods of its
    words after the filled template. `model` has a pretrained trunk, whatever its head, and must be
    in evaluation mode. Too long a text loses its middle.

    Raises UserError if template and words leave no room for a text."""
    before, after = template.split("{text}")
    prefix, suffix = encoding.encode_ordinary(before), encoding.encode_ordinary(after)
    words = [encoding.encode_ordinary(f" {word.strip()}") for word in label_words]
    room = model.config.n_positions - len(prefix) - len(suffix) - max(map(len, words)) - 1
    if room < 1:
        raise UserError(
            f"--zero-shot: of the model's {model.config.n_positions} tokens the template and "
            "--label-words leave nothing for a text; give shorter ones"
        )
    prompts = []
    for text in ["", *texts]:  # the empty text first: how likely the words are after nothing
        tokens = encoding.encode_ordinary(text)
        if len(tokens) > room:
            tokens = tokens[: room // 4] + tokens[len(tokens) - (room - room // 4) :]
        # <|endoftext|> stands before every document that the model has read.
        prompts.append([encoding.eot_token, *prefix, *tokens, *suffix])

    def of_batch(rows: list[int]) -> Tensor:
        with autocast(model.wte.weight.device, precision):
            return _log_likelihoods(model, [prompts[row] for row in rows], words).cpu()

    batches = sorted_batches([len(prompt) for prompt in prompts], batch_size)
    found = torch.cat(map_batches(of_batch, batches, desc))
    likelihoods = torch.empty_like(found)
    likelihoods[[row for rows in batches for row in rows]] = found  # as the rows came
    scores = likelihoods[1:] - likelihoods[0]
    return scores.log_softmax(dim=1).numpy()


def _log_likelihoods(
    model: GPT2, prompts: Sequence[Sequence[int]], words: Sequence[Sequence[int]]
) -> Tensor:
    """(B, number of words) float32: the log-likelihood of each word's tokens after each prompt. The
    prompts run through the model once; the words go on from the cache."""
    device = model.wte.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    rows, width = len(prompts), int(lengths.max())
    cache = KeyValueCache(model.config, rows, width + max(map(len, words)), like=model.wte.weight)
    tokens = torch.zeros(rows, width, dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    last = torch.arange(rows, device=device), lengths - 1
    first_logits = F.linear(model.hidden_states(tokens, cache, last), model.wte.weight)  # (B, V)
    first = first_logits.float().log_softmax(dim=1)

    found = []
    for word in words:
        likelihood = first[:, word[0]]  # (B,)
        if len(word) > 1:
            # Each word starts again where the prompts end, and writes over the word before it.
            cache.lengths, cache.width = lengths, width
            inputs = torch.tensor(word[:-1], device=device).expand(rows, -1)
            hidden = model.hidden_states(inputs, cache)  # (B, len(word) - 1, C)
            rest = F.linear(hidden, model.wte.weight).float().log_softmax(dim=2)
            for place, token in enumerate(word[1:]):
                likelihood = likelihood + rest[:, place, token]
        found.append(likelihood)
    return torch.stack(found, dim=1)
