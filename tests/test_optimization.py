"""The rate of every step, of every layer and of what is trained, and which parameters decay."""

import json

import pytest
import torch
from test_training import run_training, tiny_model

from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.lora import LoRA, add_adapters
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import (
    TrainingConfig,
    choose_trainable,
    default_learning_rate,
    default_optimizer,
    learning_rate,
    make_optimizer,
    parameter_groups,
)
from gpt2.support.errors import UserError


@pytest.mark.parametrize(
    "warmup, steps, schedule, expected",
    [
        (0.0, 1, "cosine", [1.0]),
        (1.0, 1, "cosine", [1.0]),
        (1.0, 4, "linear", [0.25, 0.5, 0.75, 1.0]),
        (0.0, 4, "linear", [1.0, 0.75, 0.5, 0.25]),
        (0.5, 4, "cosine", [0.5, 1.0, 1.0, 0.5]),
        (0.25, 4, "constant", [1.0, 1.0, 1.0, 1.0]),
        (0.0, 10, "trapezoid", [1.0] * 9 + [0.5]),
        (0.5, 4, "trapezoid", [0.5, 1.0, 1.0, 1.0]),
        (0.1, 3, "linear", [1.0, 2 / 3, 1 / 3]),  # less than a step of warm-up is none
    ],
)
def test_learning_rate(warmup, steps, schedule, expected):
    config = TrainingConfig(learning_rate=1.0, warmup=warmup, schedule=schedule)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert rates == pytest.approx(expected)
    assert min(rates) > 0


def test_matrices_decay_and_biases_and_norms_do_not():
    model = tiny_model()
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_with_layer_decay_each_block_learns_slower_than_the_one_above(tmp_path):
    before = {name: p.clone() for name, p in tiny_model().named_parameters()}
    config = TrainingConfig(epochs=1, batch_size=8, max_steps=1, learning_rate=0.01, warmup=0,
                            weight_decay=0.0, layer_decay=0.5, precision="float32")  # fmt: skip
    model, _, _ = run_training(tmp_path, config)
    # AdamW's first step moves a parameter by its rate, whatever the gradient is, unless that is
    # next to nothing: the farthest element shows the rate.
    shares = {"wte.": 1 / 8, "wpe.": 1 / 8, "h.0.": 1 / 4, "h.1.": 1 / 2, "ln_f.": 1, "head.": 1}
    for name, parameter in model.named_parameters():
        share = next(share for part, share in shares.items() if name.startswith(part))
        moved = (parameter - before[name]).abs().max().item()
        assert moved == pytest.approx(0.01 * share, rel=1e-3), name
    tied = GPT2(model.config, LanguageModelHead(model.config))
    choose_trainable(tied, "head")
    (group,) = parameter_groups(tied, 0.1, layer_decay=0.5)
    assert group["params"] == [tied.wte.weight] and group["lr_scale"] == 1 / 8


MINI, LARGE = (GPT2Config(2, 2, n_embd, 16, 50) for n_embd in (64, 768))


def rate_for(config, make_head, train, pretrained=True, optimizer="adamw"):
    with torch.device("meta"):
        model = GPT2(config, make_head(config))
    return default_learning_rate(model, train, pretrained, optimizer)


def test_the_default_rate_depends_on_what_is_trained_and_on_the_model():
    def classifier(config):
        return ClassificationHead(config, 2)

    assert rate_for(MINI, classifier, "all") == 6e-4
    assert rate_for(MINI, classifier, "all", optimizer="muon") == 1.2e-3
    assert rate_for(MINI, LanguageModelHead, "all", optimizer="muon") == 2e-4
    assert rate_for(MINI, LanguageModelHead, "all") == 2e-4  # goes on with what it can do
    for make_head in (classifier, LanguageModelHead):
        assert rate_for(MINI, make_head, "all", pretrained=False) == 6e-4
        assert rate_for(LARGE, make_head, "all") == rate_for(LARGE, make_head, "last:1") == 5e-5
        assert rate_for(LARGE, make_head, "all", pretrained=False) == 6e-4
    of_mini = [rate_for(MINI, classifier, train) for train in ("all", "last:2", "last:1", "head")]
    assert of_mini == sorted(of_mini) and of_mini[-1] > 10 * of_mini[0]
    # a new head alone takes more; one that is the embeddings as well does not
    assert rate_for(LARGE, classifier, "head") > 10 * rate_for(LARGE, LanguageModelHead, "head")
    for part in ("last:1", "head"):
        assert rate_for(MINI, classifier, part) > rate_for(MINI, LanguageModelHead, part) == 2e-4


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
def test_the_default_optimizer_is_muon_for_all_weights_of_mini_alone(monkeypatch):
    def optimizer_for(config, pretrained=True, **settings):
        with torch.device("meta"):
            model = GPT2(config, ClassificationHead(config, 2))
        return default_optimizer(model, TrainingConfig(**settings), pretrained)

    assert optimizer_for(MINI) == "muon"
    assert optimizer_for(LARGE) == optimizer_for(MINI, pretrained=False) == "adamw"
    for train in ("head", "last:1", "lora"):
        assert optimizer_for(MINI, train=train) == "adamw"
    assert optimizer_for(MINI, shard=True) == "adamw"  # Muon needs whole matrices
    monkeypatch.delattr(torch.optim, "Muon")  # an older torch
    assert optimizer_for(MINI) == "adamw"


def test_the_rate_is_printed_and_saved_and_a_resumed_run_keeps_it(call_script, tmp_path):
    script = "classification/train_gpt.py"
    flags = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--max-steps", 1,
             "--max-length", 16)  # fmt: skip
    for name, given, expected in (
        ("head", ("--train", "head"), "0.01"),
        ("all", (), "0.0006"),
        ("given", ("--train", "head", "--learning-rate", 0.002), "0.002"),
    ):
        done = call_script(script, *flags, *given, "--out", name)
        assert done.returncode == 0, done.stderr
        assert f"AdamW, learning rate {expected}; " in done.stdout
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["settings"]["training"]["learning_rate"] == float(expected)
    config["settings"]["training"]["learning_rate"] = 0.5  # as if defaults had changed since
    (tmp_path / "head/config.json").write_text(json.dumps(config))
    done = call_script(script, "--resume", "head", "--max-steps", 2)
    assert done.returncode == 0 and "learning rate 0.5; " in done.stdout, done.stderr
    done = call_script(script, "--resume", "all", "--learning-rate", 0.01)
    assert done.returncode == 2 and "which has 0.0006" in done.stderr


def one_step(optimizer_name, **settings):
    """A model's parameters before and after one step, on gradients that are always the same."""
    config = TrainingConfig(optimizer=optimizer_name, weight_decay=0.0, **settings)
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    return before, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
def test_muon_moves_the_matrices_of_blocks_in_all_directions_alike_and_adamw_all_else():
    before, of_muon = one_step("muon")
    _, of_adamw = one_step("adamw")
    matrices = 0
    for name, after in of_muon.items():
        if not (name.startswith("h.") and after.dim() == 2):
            assert torch.equal(after, of_adamw[name]), name
            continue
        matrices += 1
        # Five Newton-Schulz iterations bring singular values to about 1 (Jordan et al. 2024: 0.7 to
        # 1.2); 0.2 sqrt(the longer side) makes the step as large as AdamW's (Liu et al. 2025).
        singular = torch.linalg.svdvals((before[name] - after) / 0.01)
        singular /= 0.2 * max(after.shape) ** 0.5
        assert 0.6 < singular.min() and singular.max() < 1.3, (name, singular)
    assert matrices == 8


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
def test_where_muon_cannot_be_had_a_line_says_so(monkeypatch):
    model = tiny_model()
    with pytest.raises(UserError, match="leave out --shard"):
        make_optimizer(model, TrainingConfig(optimizer="muon", shard=True))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match="needs torch 2"):
        make_optimizer(model, TrainingConfig(optimizer="muon"))
    monkeypatch.undo()
    choose_trainable(model, "head")
    with pytest.raises(UserError, match="none is trained"):
        make_optimizer(model, TrainingConfig(optimizer="muon"))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
def test_muon_alone_where_nothing_but_adapters_is_trained():
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=50)
    model = GPT2(config, LanguageModelHead(config))
    add_adapters(model, LoRA(rank=2))
    (muon,) = make_optimizer(model, TrainingConfig(optimizer="muon")).optimizers
    assert isinstance(muon, torch.optim.Muon)
