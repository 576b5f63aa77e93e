"""Likelihoods of label words from the cache are those of whole texts."""

import pytest
import torch

from classification.zero_shot import _log_likelihoods, check_zero_shot, zero_shot_log_probabilities
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.support.errors import UserError
from gpt2.tokenizer import get_encoding
from gpt2.weights.building import ModelSettings, build_model, choose_config


def test_likelihoods_of_words_are_those_of_whole_rows():
    torch.manual_seed(0)
    config = GPT2Config(2, 2, 16, 32, 50)
    model = GPT2(config, LanguageModelHead(config)).eval()
    prompts, words = [[5, 6, 7, 8], [9]], [[1, 2, 3], [4], [3, 1]]
    with torch.no_grad():
        found = _log_likelihoods(model, prompts, words)
        for row, prompt in enumerate(prompts):
            for column, word in enumerate(words):
                whole = torch.tensor([[*prompt, *word]])
                logits = model(whole, torch.tensor([whole.size(1)])).log_softmax(dim=2)[0]
                expected = sum(
                    logits[len(prompt) - 1 + place, token] for place, token in enumerate(word)
                )
                assert found[row, column].item() == pytest.approx(expected.item(), abs=1e-4)


def test_mini_knows_good_from_bad_before_any_label():
    settings = ModelSettings(model="mini")
    config, encoding = choose_config(settings)
    model, _ = build_model(settings, config, lambda c: ClassificationHead(c, 2), "all", 1)
    texts = [
        "A terrible, boring waste of time. I hated every minute of it.",
        "A wonderful, moving masterpiece. I loved every minute of it.",
        "word " * 2_000,  # longer than the context
    ]
    found = zero_shot_log_probabilities(
        model.eval(), encoding, texts, "{text} In short, the film was", ["terrible", "wonderful"],
        2, "float32",
    )  # fmt: skip
    assert found.shape == (3, 2) and found[:2].argmax(axis=1).tolist() == [0, 1]
    alone = zero_shot_log_probabilities(
        model, get_encoding("mini"), texts[:1], "{text} In short, the film was",
        ["terrible", "wonderful"], 8, "float32",
    )  # fmt: skip
    assert found[0].tolist() == pytest.approx(alone[0].tolist(), abs=1e-4)


def test_what_makes_no_question_is_refused():
    check_zero_shot("", [], ["a", "b"])
    for template, words, message in (
        ("no place", ["x", "y"], "{text}"),
        ("{text} is", ["x"], "in this order: a, b"),
        ("", ["x", "y"], "{text}"),
        ("{text} is", ["", "y"], "words of its own"),
        ("{text} is", ["y", " y"], "words of its own"),
    ):
        with pytest.raises(UserError, match=message):
            check_zero_shot(template, words, ["a", "b"])
    config = GPT2Config(1, 1, 8, 16, 8192)
    model = GPT2(config, LanguageModelHead(config)).eval()
    template = "a very long question " * 8 + "{text}"
    with pytest.raises(UserError, match="of the model's 16 tokens"):
        zero_shot_log_probabilities(
            model, get_encoding("mini"), ["Fine."], template, ["bad", "good"], 8, "float32"
        )
