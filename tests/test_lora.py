"""Low-rank adapters: the mathematics, what is frozen, checkpoints without the base, whole runs."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest
import torch
from conftest import refused
from safetensors import safe_open
from test_commands import use_tiny_mini
from test_model import make_model, make_rougher, ragged_batch
from torch.func import functional_call
from torch.nn import functional as F

from gpt2 import training
from gpt2.checkpoint import load_checkpoint
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.lora import LoRA, LoRALinear, add_adapters, merged_parameters
from gpt2.model import GPT2, SIZES
from gpt2.optimization import TrainingConfig, make_optimizer
from gpt2.support.errors import UserError
from gpt2.support.stopping import Stopped
from gpt2.weights.loading import load_model

TRAIN = "classification/train_gpt.py"
INSTRUCT = "instruction/instruction_finetuning.py"
PRETRAIN = "pretraining/pretrain.py"
FEW = ("--max-train", 32, "--max-validation", 4, "--batch-size", 8, "--precision", "float32")
SHORT = {
    TRAIN: (*FEW, "--max-test", 4, "--max-steps", 4, "--evaluate-every", 2, "--max-length", 16),
    INSTRUCT: (*FEW, "--max-test", 4, "--max-steps", 4, "--evaluate-every", 2, "--max-length", 128,
               "--test-answers", 2, "--answer-tokens", 2),
    PRETRAIN: (*FEW, "--max-steps", 4, "--evaluate-every", 2, "--max-length", 32),
}  # fmt: skip


def adapted(model, learnt=True, **lora):
    """`model` in float64 with adapters and, if they have learnt something, with a B that is not
    zero."""
    torch.manual_seed(3)
    add_adapters(make_rougher(model).double(), LoRA(**{"rank": 4} | lora))
    for module in model.modules():
        if learnt and isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B, std=0.1)
    return model


# ---- the mathematics


@pytest.mark.parametrize("head", ["language model", "classification"])
def test_adapters_equal_the_merged_matrices(head):
    model = adapted(make_model(head), alpha=12)
    plain = make_model(head).double()
    plain.load_state_dict(merged_parameters(model), strict=False)
    batch = ragged_batch()
    assert not torch.allclose(model(*batch), make_rougher(make_model(head)).double()(*batch))
    torch.testing.assert_close(model(*batch), plain(*batch), rtol=0, atol=1e-6)


def test_gradients_equal_those_through_the_merged_matrices():
    model = adapted(make_model("classification", "mean"))
    model(*ragged_batch()).square().sum().backward()

    leaves = {name: p.detach().requires_grad_(p.requires_grad)
              for name, p in model.named_parameters()}  # fmt: skip
    merged = dict(leaves)
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            a, b = merged.pop(f"{name}.lora_A"), merged.pop(f"{name}.lora_B")
            merged[f"{name}.weight"] = leaves[f"{name}.weight"] + 16 / 4 * b @ a
    plain = make_model("classification", "mean").double()
    functional_call(plain, merged, ragged_batch()).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith(("lora_A", "lora_B", "score.weight")):
            assert parameter.grad.abs().max() > 1e-6
            torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-9, atol=1e-12)
        else:
            assert parameter.grad is None and leaves[name].grad is None


@pytest.mark.parametrize("head", ["language model", "classification"])
def test_training_begins_with_the_logits_of_the_base_exactly(head):
    base = make_rougher(make_model(head)).double()
    model = adapted(make_model(head), learnt=False)
    assert torch.equal(model(*ragged_batch()), base(*ragged_batch()))


def test_dropout_is_on_what_the_adapter_reads_alone():
    torch.manual_seed(0)
    base = torch.nn.Linear(64, 8)
    layer = LoRALinear(base, LoRA(rank=4, dropout=0.5))
    x = torch.randn(100, 64)
    assert torch.equal(layer(x), base(x))  # B is zero
    torch.nn.init.ones_(layer.lora_B)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    torch.testing.assert_close(layer(x), F.linear(x, layer.merged_weight(), base.bias))


@pytest.mark.parametrize(
    "on, rank, expected",
    [
        ("c_attn", 8, 12 * 8 * (768 + 3 * 768)),  # 294,912, what peft adapts in a GPT-2
        ("attn", 8, 294_912 + 12 * 8 * (768 + 768)),
        ("mlp", 8, 2 * 12 * 8 * (768 + 4 * 768)),
        ("attn,mlp", 8, 1_179_648),
        ("attn,mlp", 1, 147_456),
        ("11", 8, 8 * (4 + 2 + 5 + 5) * 768),  # the last block alone
    ],
)
def test_parameters_counted_by_hand(on, rank, expected):
    with torch.device("meta"):
        model = GPT2(SIZES["gpt2"], LanguageModelHead(SIZES["gpt2"]))
    add_adapters(model, LoRA(rank, on=on))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert sum(p.numel() for p in model.parameters()) == 124_439_808 + expected


# ---- what is frozen


def test_what_is_frozen_has_no_gradient_and_no_optimizer_state():
    model = adapted(make_model("classification", "mean"), on="attn").float()
    optimizer = make_optimizer(model, TrainingConfig(learning_rate=1e-2, layer_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    model(*ragged_batch()).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        learns = name.endswith(("lora_A", "lora_B")) or name.startswith("head.")
        assert (parameter.grad is not None) == learns, name
        assert (parameter in optimizer.state) == learns, name
        assert torch.equal(parameter, before[name]) != learns, name
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1, 0.5, 0.25, 0.125}


def test_the_head_of_a_language_model_stays_with_the_embeddings():
    model = adapted(make_model("language model"))
    assert not model.head.weight.requires_grad and model.head.weight is model.wte.weight


def test_nothing_is_kept_below_the_lowest_adapter():
    """Embeddings, the whole first block and the second one's attention keep nothing for a backward
    pass when the lowest adapter is the second block's MLP. What stands above it keeps as much as
    ever, but for the inputs of matrices without an adapter."""

    def kept(model):
        """Numbers that autograd keeps, which are no parameter's, by the module that computes."""
        found, inside = {}, []
        own = {parameter.data_ptr() for parameter in model.parameters()}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *given, name=name: inside.append(name))
            module.register_forward_hook(lambda *given: (inside.pop(), None)[1])

        def pack(tensor):
            if tensor.data_ptr() not in own:
                found[inside[-1]] = found.get(inside[-1], 0) + tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(*ragged_batch()).sum().backward()
        return found

    whole = kept(make_model("classification", "mean"))
    assert {"h.0.ln_1", "h.0.attn", "h.0.mlp.c_fc", "h.1.attn.c_attn"} <= whole.keys()
    model = adapted(make_model("classification", "mean")).float()
    everywhere = kept(model)
    assert "h.0.ln_1" not in everywhere and "h.0.attn.c_attn" in everywhere
    in_attention = kept(adapted(make_model("classification", "mean"), on="attn").float())
    assert not {"h.2.mlp.c_fc", "h.2.mlp.c_proj"} & in_attention.keys()
    assert sum(in_attention.values()) < sum(whole.values())

    model.requires_grad_(False)
    for block, part in ((1, "mlp"), (2, "attn"), (2, "mlp")):
        for name, parameter in getattr(model.h[block], part).named_parameters():
            parameter.requires_grad_("lora" in name)
    above = kept(model)
    assert all(name.startswith(("h.1.mlp", "h.2", "ln_f", "head")) for name in above if name), above
    assert "h.1.mlp.c_fc" in above


# ---- runs, whose checkpoints hold no base


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """`mini`, but tiny."""
    use_tiny_mini(tmp_path / "mini", monkeypatch)
    return tmp_path / "mini"


def run(call_script, script, *flags):
    done = call_script(script, *SHORT[script], "--train", "lora", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bytes_of(folder):
    names = ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors",
             "best/config.json", "metrics.jsonl", "before.json")  # fmt: skip
    return {name: (folder / name).read_bytes() for name in names}


@contextmanager
def stopping_in_the_third_batch():
    """As SIGTERM does."""
    batches = []

    def stop():
        batches.append(1)
        if len(batches) == 3:
            raise Stopped(15, "--resume")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "stop_if_asked", stop)
        yield


@pytest.mark.parametrize("script", [TRAIN, INSTRUCT, PRETRAIN])
def test_stopped_and_resumed_a_run_has_the_bytes_of_an_unbroken_one(
    script, mini, call_script, tmp_path
):
    flags = ("--dropout", 0.1, "--lora-dropout", 0.2, "--lora-rank", 2, "--lora-on", "mlp,c_attn")
    said = run(call_script, script, *flags, "--out", "unbroken")
    assert "LoRA of rank 2 on mlp,c_attn" in said
    with stopping_in_the_third_batch():
        stopped = call_script(script, *SHORT[script], "--train", "lora", *flags, "--out", "run")
        assert stopped.returncode == 143
    resumed = call_script(script, "--resume", "run")
    assert resumed.returncode == 0 and "going on after step 2 of 4" in resumed.stdout
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "unbroken")

    with safe_open(tmp_path / "run/best/model.safetensors", "pt") as file:
        names = set(file.keys())
    ours = {f"h.{block}.{layer}.lora_{matrix}" for block in (0, 1) for matrix in "AB"
            for layer in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    assert names == ours | ({"head.score.weight"} if script == TRAIN else set())
    lora = json.loads((tmp_path / "run/best/config.json").read_text())["lora"]
    assert lora["base"] == "mini" and len(lora["base_sha256"]) == 64
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["model"]["trainable"] < results["model"]["parameters"] / 2
    refused(call_script(script, "--resume", "run", "--lora-rank", 4), "--lora-rank 4 contradicts")


def test_every_script_takes_such_a_run(mini, call_script, tmp_path):
    run(call_script, TRAIN, "--pooling", "last", "--out", "run", "--export", "exported")
    after = json.loads((tmp_path / "run/results.json").read_text())["after"]["test"]
    answer = call_script("classification/predict.py", "run", "a film", "--precision", "float32")
    assert answer.returncode == 0 and "a film" in answer.stdout, answer.stderr
    done = call_script("classification/evaluate.py", "run", "--out", "found", "--precision",
                       "float32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found/results.json").read_text())["metrics"]
    assert found["loss"] == pytest.approx(after["loss"], rel=1e-6)
    run(call_script, TRAIN, "--pooling", "last", "--out", "other", "--seed", 2)
    done = call_script("baselines/compare.py", "run", "other", "--resamples", 100)
    assert done.returncode == 0, done.stderr

    run(call_script, INSTRUCT, "--out", "ins")
    done = call_script("instruction/respond.py", "ins", "Say hello.", "--max-new-tokens", 2)
    assert done.returncode == 0, done.stderr
    done = call_script("instruction/evaluate.py", "ins", "--test-answers", 1, "--answer-tokens", 2)
    assert done.returncode == 0, done.stderr
    run(call_script, PRETRAIN, "--out", "pre")
    done = call_script("pretraining/sample.py", "pre", "A film", "--max-new-tokens", 2)
    assert done.returncode == 0, done.stderr


def test_an_export_has_the_merged_weights(mini, call_script, tmp_path):
    from transformers import AutoModelForSequenceClassification

    run(call_script, TRAIN, "--pooling", "last", "--out", "run")
    done = call_script("gpt2/weights/export.py", "run", "out")
    assert done.returncode == 0, done.stderr
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ours, _ = load_model(tmp_path / "run", "classification")
    tokens = torch.arange(24).view(2, 12)
    expected = ours(tokens, torch.tensor([12, 12]))
    assert not torch.allclose(expected, expected[:1])
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("train", ["all", "lora"])
def test_a_run_goes_on_from_merged_weights(train, mini, call_script, tmp_path):
    """With --train all the next run has a model of its own; with lora, adapters that stand on the
    run before."""
    run(call_script, TRAIN, "--pooling", "last", "--out", "first", "--lora-alpha", 64)
    said = run(call_script, TRAIN, "--model", "first", "--train", train, "--out", "second")
    assert "trunk and head of first/best (classification)" in said
    before, after = (json.loads((tmp_path / f"{name}/results.json").read_text())
                     for name in ("first", "second"))  # fmt: skip
    assert after["before"]["test"]["loss"] == pytest.approx(before["after"]["test"]["loss"])
    shutil.rmtree(tmp_path / "first/last")
    predict = ("classification/predict.py", "second", "a film")
    assert call_script(*predict).returncode == 0
    assert call_script(TRAIN, "--resume", "second", "--max-steps", 5).returncode == 0
    shutil.rmtree(tmp_path / "first")
    if train == "all":
        assert call_script(*predict).returncode == 0
    else:
        said = f"{tmp_path}/first/best: is gone", f"a link to where it is now: ln -s NEW {tmp_path}"
        refused(call_script(*predict), *said)
        refused(call_script(TRAIN, "--resume", "second", "--max-steps", 6), *said)


def test_a_base_that_moved_is_found_by_a_link(mini, call_script, tmp_path):
    done = call_script(PRETRAIN, *SHORT[PRETRAIN], "--out", "first")
    assert done.returncode == 0, done.stderr
    run(call_script, TRAIN, "--model", "first", "--out", "second")
    (tmp_path / "first").rename(tmp_path / "moved")
    refused(call_script("classification/predict.py", "second", "a film"), "is gone")
    os.symlink(tmp_path / "moved", tmp_path / "first")
    assert call_script("classification/predict.py", "second", "a film").returncode == 0
    resumed = call_script(TRAIN, "--resume", "second", "--max-steps", 5)
    assert resumed.returncode == 0, resumed.stderr


def test_another_base_is_refused(mini, call_script, tmp_path):
    run(call_script, TRAIN, "--pooling", "last", "--out", "run")
    weights = (mini / "model.safetensors").read_bytes()
    (mini / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    said = "mini: holds other weights now (SHA-256"
    for command in (
        ("classification/predict.py", "run", "a film"),
        ("classification/evaluate.py", "run"),
        ("gpt2/weights/export.py", "run", "out"),
        (TRAIN, "--resume", "run", "--max-steps", 5),
        (TRAIN, "--model", "run"),
    ):
        refused(call_script(*command), said)
    with pytest.raises(UserError, match="holds adapters, and not the weights"):
        load_checkpoint(tmp_path / "run", "classification")


def test_activation_checkpointing_changes_no_bit(mini, call_script, tmp_path):
    flags = ("--dropout", 0.1, "--lora-dropout", 0.2)
    run(call_script, TRAIN, *flags, "--out", "kept")
    run(call_script, TRAIN, *flags, "--activation-checkpointing", "--out", "again")
    assert bytes_of(tmp_path / "kept") == bytes_of(tmp_path / "again")


@pytest.mark.parametrize(
    "flags, parts",
    [
        (("--lora-on", "attn,ffn"), ["--lora-on attn,ffn: 'ffn' stands in no linear layer's name",
                                     "there are h, attn, c_attn, c_proj, mlp, c_fc"]),
        (("--init", "random"), ["--train lora: adapts weights that have learnt something"]),
        (("--model", "scratch"), ["--train lora: adapts weights that have learnt something"]),
        (("--train", "all", "--lora-rank", 4), ["--lora-rank 4 goes with --train lora"]),
        (("--lora-rank", 0), ["--lora-rank is 0"]),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_any_work(flags, parts, mini, call_script):
    refused(call_script(TRAIN, "--train", "lora", *flags), *parts)


def test_a_new_head_of_ones_own_is_trained_whole():
    model = make_model("classification", "attention")
    add_adapters(model, LoRA(on="attn"))
    assert type(model.head) is ClassificationHead
    assert all(parameter.requires_grad for parameter in model.head.parameters())
