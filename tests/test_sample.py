"""pretraining/sample.py: a language model continues a text, and what is none is refused."""

import pytest
import torch
from conftest import refused
from test_pretrained import LABELS, SMALL, save_ours

from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.weights.building import ModelSettings, build_model, choose_config

SCRIPT = "pretraining/sample.py"


@torch.no_grad()
def test_greedy_text_is_what_the_model_finds_likeliest(call_script):
    """The plain way, without a cache, after the <|endoftext|> that begins every document."""
    settings = ModelSettings(model="mini")
    config, encoding = choose_config(settings)
    model = build_model(settings, config, LanguageModelHead, "all", seed=0)[0].eval()
    tokens = [encoding.eot_token, *encoding.encode_ordinary("The film")]
    for _ in range(6):
        logits = model(torch.tensor([tokens]), torch.tensor([len(tokens)]))  # (1, T, V)
        tokens.append(int(logits[0, -1].argmax()))
    done = call_script(SCRIPT, "mini", "The film", "--temperature", 0, "--max-new-tokens", 6,
                       "--precision", "float32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == encoding.decode(tokens[1:]) + "\n"


def test_each_sample_has_a_seed_of_its_own(call_script):
    flags = ("mini", "The film", "--max-new-tokens", 8, "--samples")
    both = call_script(SCRIPT, *flags, 2).stdout.split("\n\n")
    assert both[0].startswith("The film") and both[0] != both[1]
    second = call_script(SCRIPT, *flags, 1, "--seed", 2).stdout
    assert second.rstrip("\n") == both[1]


@pytest.mark.parametrize(
    "model, text, parts",
    [
        ("nothing", "", ["nothing: neither a known name nor a folder"]),
        ("scratch", "", ["scratch: has no pretrained weights"]),
        ("mini", "far " * 600, ["leaves no room", "512"]),
        ("classifier", "", ["classifier: is a classifier"]),
    ],
)
def test_what_cannot_continue_is_refused(call_script, tmp_path, model, text, parts):
    head = ClassificationHead(SMALL, 3, "last")
    (tmp_path / "classifier").mkdir()
    save_ours(tmp_path / "classifier/best", SMALL, head, {"labels": LABELS, "max_length": 16})
    done = call_script(SCRIPT, model, text)
    refused(done, *parts)
    assert not done.stdout
