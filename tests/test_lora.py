"""Low-rank adapters: the mathematics, and what is frozen."""

import pytest
import torch
from test_model import make_model, make_rougher, ragged_batch
from torch.func import functional_call
from torch.nn import functional as F

from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.lora import LoRA, LoRALinear, add_adapters, merged_parameters
from gpt2.model import GPT2, SIZES
from gpt2.optimization import TrainingConfig, make_optimizer


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


def test_a_new_head_of_ones_own_is_trained_whole():
    model = make_model("classification", "attention")
    add_adapters(model, LoRA(on="attn"))
    assert type(model.head) is ClassificationHead
    assert all(parameter.requires_grad for parameter in model.head.parameters())
