"""The model: parity with transformers, padding, tying, freezing."""

import math

import pytest
import torch
from torch.nn import functional as F

import gpt2.model
from gpt2.heads import POOLINGS, ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, SIZES, GPT2Config, causal_attention
from gpt2.optimization import choose_trainable
from gpt2.support.errors import UserError

SMALL = GPT2Config(n_layer=3, n_head=2, n_embd=32, n_positions=160, vocab_size=97, dropout=0.1)


def make_model(head="language model", pooling="last", config=SMALL, seed=0):
    torch.manual_seed(seed)
    if head == "language model":
        return GPT2(config, LanguageModelHead(config)).eval()
    return GPT2(config, ClassificationHead(config, 3, pooling)).eval()


def ragged_batch(lengths=(5, 1, 9, 3), vocab_size=97):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (len(lengths), max(lengths)), generator=generator)
    return tokens, torch.tensor(lengths)


def to_transformers(model, reference):
    """Copy our weights into a transformers GPT-2, whose Conv1D holds matrices transposed."""
    weights = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            value = value.t()
        weights["score.weight" if name == "head.score.weight" else f"transformer.{name}"] = value
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("lm_head" in name for name in missing)  # tied
    reference.tie_weights()
    return reference.eval()


def transformers_config(config, **more):
    from transformers import GPT2Config as TheirConfig

    return TheirConfig(
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
        n_positions=config.n_positions, vocab_size=config.vocab_size, bos_token_id=0,
        eos_token_id=0, **more,
    )  # fmt: skip


def make_rougher(model):
    """Fresh weights are so small that a wrong GELU hardly shows, and fresh biases and norms do
    nothing; trained weights are not like that. Embeddings stay small, so that epsilon shows."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ("wte.weight", "wpe.weight"):
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def test_language_model_logits_equal_transformers():
    from transformers import GPT2LMHeadModel

    model = make_rougher(make_model())
    reference = to_transformers(model, GPT2LMHeadModel(transformers_config(SMALL)))
    tokens, lengths = ragged_batch((40, 40))
    ours, theirs = model(tokens, lengths), reference(tokens).logits
    assert ours.abs().max() > 0.1  # not a comparison of zeros
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_classifier_logits_equal_transformers_on_mixed_lengths():
    from transformers import GPT2ForSequenceClassification

    model = make_rougher(make_model("classification"))
    config = transformers_config(SMALL, num_labels=3, pad_token_id=96)
    reference = to_transformers(model, GPT2ForSequenceClassification(config))
    tokens, lengths = ragged_batch(vocab_size=96)  # no real token looks like a pad to transformers
    padded = torch.where(torch.arange(tokens.size(1)) < lengths[:, None], tokens, 96)
    torch.testing.assert_close(model(tokens, lengths), reference(padded).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_at_some_tokens_are_those_of_all_and_cost_no_more(checkpointing):
    """Values and gradients; the last MLP sees the tokens that are asked for and no others."""
    model = make_rougher(make_model()).double()
    model.activation_checkpointing = checkpointing
    tokens, _ = ragged_batch()
    at = torch.tensor([0, 1, 3, 3]), torch.tensor([4, 0, 1, 1])  # one of them twice
    widths = []
    for block in model.h:
        block.mlp.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape))
    some = model.hidden_states(tokens, at=at)  # (N, C)
    assert widths == [(4, 9, 32), (4, 9, 32), (4, 32)]
    every = model.hidden_states(tokens)[at]
    torch.testing.assert_close(some, every, atol=1e-12, rtol=1e-12)
    weights = torch.randn(some.shape, dtype=torch.float64)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((some * weights).sum(), parameters)
    wanted = torch.autograd.grad((every * weights).sum(), parameters)
    for gradient, expected in zip(ours, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "pooling, shape", [("last", (4, 32)), ("first", (4, 32)), ("mean", (4, 9, 32))]
)
def test_the_last_mlp_runs_for_the_pooled_tokens(pooling, shape):
    model, seen = make_model("classifier", pooling), []
    model.h[-1].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(*ragged_batch())
    assert seen == [shape]


@pytest.mark.parametrize("mutation", ["exact gelu", "epsilon", "transposed", "shifted positions"])
@torch.no_grad()
def test_parity_would_catch(mutation, monkeypatch):
    """What is known to go wrong in GPT-2 copies moves the logits by more than parity allows."""
    model = make_rougher(make_model())
    tokens, lengths = ragged_batch((40, 40))
    right = model(tokens, lengths)
    if mutation == "exact gelu":
        gelu = F.gelu
        monkeypatch.setattr(F, "gelu", lambda x, approximate: gelu(x))
    elif mutation == "epsilon":
        for block in model.h:
            block.ln_1.eps = block.ln_2.eps = 1e-6
    elif mutation == "transposed":
        weight = model.h[1].attn.c_proj.weight
        weight.copy_(weight.t().clone())
    else:
        model.wpe.weight.copy_(model.wpe.weight.roll(1, dims=0))
    assert (model(tokens, lengths) - right).abs().max() > 1e-4


@torch.no_grad()
def test_attention_equals_a_plain_softmax():
    attention = make_model().h[0].attn
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    q, k, v = (part.view(2, 7, 2, 16).transpose(1, 2) for part in attention.c_attn(x).split(32, 2))
    scores = q @ k.transpose(2, 3) / math.sqrt(16)
    scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
    expected = attention.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 32))
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_training_in_bfloat16_computes_the_same_attention():
    """On a CPU it takes other operations than float32, which the tests around this one see: some
    queries at a time, here in three parts, the last one short."""
    generator = torch.Generator().manual_seed(4)
    q, k, v, wanted = (torch.randn(2, 3, 300, 16, generator=generator) for _ in range(4))
    outputs, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [each.to(dtype).requires_grad_() for each in (q, k, v)]
        outputs.append(causal_attention(*inputs, dropout=0.0))
        gradients.append(torch.autograd.grad((outputs[-1] * wanted.to(dtype)).sum(), inputs))
    for exact, ours in zip((outputs[0], *gradients[0]), (outputs[1], *gradients[1]), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - exact).norm() < 0.01 * exact.norm()
    # nothing flows from a position to what stands to its right
    inputs = [each.bfloat16().requires_grad_() for each in (q, k, v)]
    for place in (20, 127, 128, 290):
        output = causal_attention(*inputs, dropout=0.0)[:, :, place]  # (B, n_head, head_size)
        of_keys, of_values = torch.autograd.grad(output.sum(), inputs[1:])
        assert of_keys[:, :, place + 1 :].abs().max() == 0
        assert of_values[:, :, place + 1 :].abs().max() == 0
        # Not of every key: in so few digits one may round to 0.
        assert of_values[:, :, : place + 1].abs().sum(dim=3).min() > 0
    # dropout drops weights, and leaves their mean
    torch.manual_seed(0)
    dropped = causal_attention(*inputs[:2], torch.ones_like(inputs[2]), dropout=0.5)
    assert dropped.min() < 0.9 < dropped.max() and abs(dropped.mean().item() - 1) < 0.02


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_padding_changes_nothing(pooling):
    """Rows padded to T, T+1 and T+100, with any token as padding, give the same logits."""
    model = make_rougher(make_model("classification", pooling))
    tokens, lengths = ragged_batch()
    expected = model(tokens, lengths)
    for extra, pad in ((0, 5), (1, 0), (1, 96), (100, 7)):
        padded = F.pad(tokens, (0, extra))
        padded = torch.where(torch.arange(padded.size(1)) < lengths[:, None], padded, pad)
        torch.testing.assert_close(model(padded, lengths), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one(pooling):
    model = make_rougher(make_model("classification", pooling))
    tokens, lengths = ragged_batch()
    batched = model(tokens, lengths)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], batched[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_token_sees_nothing_to_its_right():
    model = make_rougher(make_model())
    tokens, lengths = ragged_batch((9, 9))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 97
    torch.testing.assert_close(
        model(tokens, lengths)[:, :6], model(changed, lengths)[:, :6], atol=0, rtol=0
    )


def test_poolings_by_hand():
    """On hidden states that can be pooled in one's head."""
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]]])
    lengths = torch.tensor([2])
    assert POOLINGS["last"](hidden, lengths, None).tolist() == [[3.0, 6.0]]
    assert POOLINGS["first"](hidden, lengths, None).tolist() == [[1.0, 2.0]]
    assert POOLINGS["mean"](hidden, lengths, None).tolist() == [[2.0, 4.0]]
    assert POOLINGS["attention"](hidden, lengths, torch.zeros(2)).tolist() == [[2.0, 4.0]]
    sharp = POOLINGS["attention"](hidden, lengths, torch.tensor([0.0, 100.0]))
    torch.testing.assert_close(sharp, torch.tensor([[3.0, 6.0]]))


def test_the_output_embedding_is_tied_and_counted_once():
    model = make_model()
    assert model.head.weight.data_ptr() == model.wte.weight.data_ptr()
    model.to(torch.float64)
    assert model.head.weight.data_ptr() == model.wte.weight.data_ptr()
    assert [name for name, _ in model.named_parameters()].count("head.weight") == 0
    classifier = make_model("classification")
    pointers = {p.data_ptr() for p in classifier.head.parameters()}
    assert classifier.wte.weight.data_ptr() not in pointers


def test_initialisation_is_the_released_one():
    config = SIZES["mini"]
    torch.manual_seed(0)
    model = GPT2(config, LanguageModelHead(config))
    assert sum(p.numel() for p in model.parameters()) == 6_967_296
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    residual = 0.02 / math.sqrt(2 * 6)
    for block in model.h:
        assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert block.attn.c_proj.weight.std().item() == pytest.approx(residual, rel=0.03)
        assert block.mlp.c_proj.weight.std().item() == pytest.approx(residual, rel=0.03)
        assert block.attn.c_attn.bias.abs().max() == 0
        assert block.ln_1.eps == 1e-5


def test_sizes_are_the_released_ones():
    """GPT-2 paper, table 2, corrected as OpenAI's repository corrects it."""
    expected = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
                "gpt2-xl": 1_557_611_200}  # fmt: skip
    for name, parameters in expected.items():
        with torch.device("meta"):
            model = GPT2(SIZES[name], LanguageModelHead(SIZES[name]))
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_dropout_acts_in_training_only():
    model = make_model("classification")
    tokens, lengths = ragged_batch()
    assert torch.equal(model(tokens, lengths), model(tokens, lengths))
    model.train()
    assert not torch.equal(model(tokens, lengths), model(tokens, lengths))


@pytest.mark.parametrize(
    "train, expected",
    [
        ("head", ["head"]),
        ("last:1", ["h.2", "head", "ln_f"]),
        ("last:3", ["h.0", "h.1", "h.2", "head", "ln_f"]),
        ("all", ["h.0", "h.1", "h.2", "head", "ln_f", "wpe", "wte"]),
    ],
)
def test_what_to_train(train, expected):
    model = make_model("classification")
    choose_trainable(model, train)
    trained = {
        ".".join(name.split(".")[: 2 if name.startswith("h.") else 1])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert sorted(trained) == expected


@pytest.mark.parametrize("train", ["last:0", "last:4", "last:x", "body"])
def test_impossible_choices_of_what_to_train(train):
    with pytest.raises(UserError, match=r"--train .*last"):
        choose_trainable(make_model(), train)


def test_a_row_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="161 tokens do not fit in a context of 160"):
        make_model()(*ragged_batch((161,)))


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="multiple of n_head"):
        GPT2Config(n_embd=30, n_head=4)
    with pytest.raises(ValueError, match="n_layer"):
        GPT2Config(n_layer=0)
    with pytest.raises(ValueError, match="pooling 'max'"):
        ClassificationHead(SMALL, 2, "max")


def test_long_rows_are_for_torchs_kernel(monkeypatch):
    """Which is the faster one from 768 tokens on, forwards and back."""
    lengths = []
    monkeypatch.setattr(
        gpt2.model,
        "_attention_in_blocks",
        lambda q, k, v, dropout: lengths.append(q.size(2)) or q,
    )
    for length in (767, 768):
        q = torch.zeros(1, 1, length, 8, dtype=torch.bfloat16, requires_grad=True)
        assert causal_attention(q, q, q, dropout=0.0).shape == q.shape
    assert lengths == [767]


def test_frozen_blocks_keep_nothing_for_the_way_back():
    """Below the lowest trained block no activation is kept, and attention is the kernel that is the
    fastest one forwards; in bfloat16 on a CPU these are two kernels."""
    model, place, kept, in_blocks = make_model("classification").train(), [], set(), []
    choose_trainable(model, "last:1")
    for layer, block in enumerate(model.h):
        block.register_forward_pre_hook(lambda _, inputs, layer=layer: place.append(layer))
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        attention = gpt2.model._attention_in_blocks
        patch.setattr(
            gpt2.model,
            "_attention_in_blocks",
            lambda *inputs: in_blocks.append(place[-1]) or attention(*inputs),
        )
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.add(place[-1]) or tensor, lambda tensor: tensor
        ):
            model(*ragged_batch()).sum().backward()
    assert place == [0, 1, 2]
    assert kept == {2} and in_blocks == [2]
