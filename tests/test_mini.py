"""The pre-trained `mini` that lies in the repository."""

import json

import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from classification.sources import SAMPLE
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.language_modelling import evaluate_loss
from gpt2.support.files import read_table
from gpt2.weights.building import ModelSettings, build_model, choose_config
from pretraining.corpus import TokenRows

FOLDER = REPOSITORY / "gpt2/mini"


def mini(make_head=LanguageModelHead, **settings):
    settings = ModelSettings(**settings)
    config, encoding = choose_config(settings)
    model, origin = build_model(settings, config, make_head, "all", 1)
    return model.eval(), encoding, origin


def test_mini_is_pretrained_and_random_weights_are_a_flag_away():
    """On film reviews that it has never read: far better than chance, where random weights are."""
    texts = read_table(SAMPLE)["text"].to_list()[:60]
    losses = {}
    for init in ("", "pretrained", "random"):
        model, encoding, origin = mini(init=init)
        rows = TokenRows(texts, encoding, max_length=512)
        losses[init] = evaluate_loss(model, rows, 8, "float32")["loss"]
        assert origin == ("random weights" if init == "random" else "pretrained weights")
    assert losses[""] == losses["pretrained"] < 5 < 8.5 < losses["random"]


def test_a_classifier_takes_the_trunk_and_a_new_head():
    model, _, origin = mini(lambda config: ClassificationHead(config, 2, "mean"))
    assert origin == "pretrained weights, new head"
    stored = load_file(FOLDER / "model.safetensors")
    assert torch.equal(model.wte.weight, stored["transformer.wte.weight"].float())
    assert model.wte.weight.dtype == torch.float32


def test_the_folder_is_small_and_says_what_it_is():
    """16 MB at most in a repository that everybody clones; the card tells what it is."""
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert sum(files.values()) < 16_000_000
    card = (FOLDER / "README.md").read_text()
    for heading in ("Data", "Training", "Validation perplexity", "Limits", "Licences"):
        assert f"## {heading}\n" in card
    config = json.loads((FOLDER / "config.json").read_text())
    shape = {"n_layer": 6, "n_head": 4, "n_embd": 256, "n_positions": 512, "vocab_size": 8192}
    assert shape.items() <= config.items()


def test_it_is_a_folder_in_the_layout_of_transformers():
    """The same logits there as here."""
    from transformers import GPT2LMHeadModel

    ours, encoding, _ = mini()
    theirs = GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokens = torch.tensor([encoding.encode_ordinary("This film is one of the best I have seen.")])
    with torch.no_grad():
        expected = theirs(tokens).logits
        logits = ours(tokens, torch.tensor([tokens.size(1)]))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
