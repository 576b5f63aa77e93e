"""Weights in other code than the one that trained them are another model: refused in one line, on
every way in and on the way to transformers."""

import json
import os

import pytest
import torch
from conftest import refused
from safetensors.torch import load_file, save_file
from test_checkpoint import CHECKPOINT, optimizer_of, save
from test_model import make_rougher
from test_pretrained import LABELS, SMALL, save_ours
from test_training import tiny_model
from torch import nn
from torch.nn import functional as F

import gpt2.model
from gpt2.checkpoint import (
    TrainingState,
    load_checkpoint,
    load_training,
    load_weights,
    save_checkpoint,
)
from gpt2.heads import POOLINGS, ClassificationHead, Head, LanguageModelHead
from gpt2.model import GPT2, MLP, Block, CausalSelfAttention
from gpt2.support.durable import MANIFEST
from gpt2.support.errors import UserError
from gpt2.support.same_logits import compute_logits, fixed_rows
from gpt2.weights.building import ModelSettings, build_model
from gpt2.weights.export import export

OTHER_CODE = "was made by other code, or of another architecture, than this checkout's"


# ---- architectures that have the same weights and compute something else


def parallel_block(self, x, cache=None, at=None):
    """Attention and MLP side by side, as README shows it."""
    x = x + self.attn(self.ln_1(x), cache) + self.mlp(self.ln_2(x))
    return x if at is None else x[at]


def relu(self, x):
    return self.c_proj(F.relu(self.c_fc(x)))


def unscaled_attention(q, k, v, dropout):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def last_token_doubled(self, hidden, lengths):
    hidden = hidden if hidden.dim() == 2 else hidden[torch.arange(len(hidden)), lengths - 1]
    return 2 * self.score(hidden)


def mean_over_pads(hidden, lengths, query=None):
    return hidden.mean(dim=1)


def changed_block(patch):
    patch.setattr(Block, "forward", parallel_block)


def changed_mlp(patch):
    patch.setattr(MLP, "forward", relu)


def changed_attention(patch):
    patch.setattr(gpt2.model, "causal_attention", unscaled_attention)


def changed_head(patch):
    patch.setattr(ClassificationHead, "forward", last_token_doubled)


def changed_pooling(patch):
    patch.setitem(POOLINGS, "mean", mean_over_pads)


CHANGES = [changed_block, changed_mlp, changed_attention, changed_head, changed_pooling]


@pytest.mark.parametrize("made_by_this", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_other_code_is_refused_on_every_way_in(change, made_by_this, tmp_path, monkeypatch):
    """Made by this code and read by a changed one, and the other way round."""
    run, folder = tmp_path, tmp_path / "best"
    model = make_rougher(tiny_model())
    optimizer, head = optimizer_of(model), ClassificationHead(model.config, 2)
    ways_in = [
        lambda: load_checkpoint(run, "classification"),
        lambda: load_training(folder, model, optimizer, "rows"),
        lambda: load_weights(folder, model),
        lambda: build_model(ModelSettings(str(run)), model.config, lambda _: head, "all", 1),
    ]
    with monkeypatch.context() as patch:
        if not made_by_this:
            change(patch)
        save(folder, model)
        for read in ways_in:  # the code that made it
            read()
    if made_by_this:
        change(monkeypatch)
    commit = json.loads((folder / "config.json").read_text())["git_commit"]
    for read in ways_in:
        with pytest.raises(UserError) as error:
            read()
        assert OTHER_CODE in str(error.value) and str(folder) in str(error.value)
        assert "\n" not in str(error.value)
        assert commit is None or f"commit {commit}" in str(error.value)


def test_scripts_answer_in_one_line(call_script, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        changed_block(patch)
        train = "classification/train_gpt.py"
        flags = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16,
                 "--max-steps", 1, "--max-length", 16, "--pooling", "last")  # fmt: skip
        done = call_script(train, *flags, "--out", "run")
        assert done.returncode == 0, done.stderr
        assert call_script("classification/predict.py", "run", "a film").returncode == 0
        refused(call_script("gpt2/weights/export.py", "run", "out"), "cannot be exported")
        # before any training
        done = call_script(train, *flags, "--out", "other", "--export", "out")
        refused(done, "cannot be exported", "something else from the same weights")
    refused(call_script("classification/predict.py", "run", "a film"), OTHER_CODE)
    refused(call_script("gpt2/weights/export.py", "run", "out"), OTHER_CODE)
    refused(call_script(train, "--model", "run"), OTHER_CODE)
    refused(call_script(train, "--resume", "run", "--max-steps", 2), OTHER_CODE)
    assert not (tmp_path / "out").exists() and not (tmp_path / "other").exists()


def test_classes_are_named(tmp_path, monkeypatch):
    class SidewaysBlock(Block):
        forward = parallel_block

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.model, "Block", SidewaysBlock)
        save(tmp_path / "best")
    classes = json.loads((tmp_path / "best/config.json").read_text())["classes"]
    assert classes == ["CausalSelfAttention", "ClassificationHead", "GPT2", "MLP", "SidewaysBlock"]
    with pytest.raises(UserError, match=f"{OTHER_CODE}.*use the code that made it, SidewaysBlock"):
        load_checkpoint(tmp_path, "classification")


def test_other_parameters_are_refused_with_the_class_that_has_them(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gpt2.model, "CausalSelfAttention", NormedAttention)
        save(tmp_path / "best")
    with pytest.raises(UserError, match=r"does not fit .*q_norm.*made it, NormedAttention"):
        load_checkpoint(tmp_path, "classification")


def test_a_head_whose_class_is_gone_is_named(tmp_path, monkeypatch):
    class ColdHead(ClassificationHead):
        def forward(self, hidden, lengths):
            return super().forward(hidden, lengths) / 3

    model = tiny_model()
    model.head = ColdHead(model.config, 2)
    save(tmp_path / "best", model)
    loaded, _ = load_checkpoint(tmp_path, "classification")
    assert type(loaded.head) is ColdHead
    monkeypatch.setattr("gpt2.heads._subclasses", lambda cls: [ClassificationHead])
    with pytest.raises(UserError, match=r"has no head 'ColdHead'.*use the code that made it"):
        load_checkpoint(tmp_path, "classification")


def test_rounding_and_older_checkpoints_are_no_reason(tmp_path):
    save(tmp_path / "best")
    file = tmp_path / "best/computed.safetensors"
    computed = load_file(file)
    largest = computed["logits"].abs().max()
    computed["logits"] += 1e-5 * largest * torch.randn(computed["logits"].shape)
    for rounded in (True, False):
        if rounded:
            save_file(computed, file)
        else:
            file.unlink()
        (tmp_path / "best" / MANIFEST).unlink()
        os.rename(tmp_path / "best", tmp_path / "old")  # without a manifest nothing is read
        _sign(tmp_path / "old")
        load_checkpoint(tmp_path / "old", "classification")
        os.rename(tmp_path / "old", tmp_path / "best")


def _sign(folder):
    from gpt2.support.durable import _sha256

    lines = [f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / MANIFEST).write_text("".join(lines))


# ---- what it asks of a model


class Odd(nn.Module):
    """Any module: no GPT-2, logits of a shape of its own, dropout."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 4)

    def forward(self, tokens, lengths):
        assert not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        return F.dropout(self.embedding(tokens), 0.5, self.training).view(len(tokens), -1, 2, 2)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_as_it_was(training):
    model = Odd().train(training)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        logits = compute_logits(model, *fixed_rows(4, 50))
    assert logits.shape == (2, 4, 2, 2) and logits.dtype == torch.float32
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 9), (1024, 50257)])
def test_the_rows_fit_any_vocabulary_and_context(shape):
    n_positions, vocab_size = shape
    tokens, lengths = fixed_rows(n_positions, vocab_size)
    assert tokens.max() < vocab_size and tokens.min() >= 0
    assert tokens.shape[1] <= n_positions
    assert 1 <= lengths.min() and lengths.max() <= tokens.shape[1]


def test_a_head_of_another_shape_saves_and_loads(tmp_path):
    class TwoQuestions(Head):
        """Two classes for each of three questions: logits (B, 3, 2)."""

        def __init__(self, config):
            super().__init__()
            self.score = nn.Linear(config.n_embd, 6)

        def forward(self, hidden, lengths):
            return self.score(hidden.mean(dim=1)).view(-1, 3, 2)

    model = tiny_model()
    model.head = TwoQuestions(model.config)
    save_checkpoint(tmp_path / "best", model, CHECKPOINT, TrainingState())
    loaded, _ = load_checkpoint(tmp_path, "classification")
    assert type(loaded.head) is TwoQuestions


# ---- on the way to transformers


class HeadWithBias(LanguageModelHead):
    def __init__(self, config):
        super().__init__(config)
        self.bias = nn.Parameter(torch.ones(config.vocab_size))

    def forward(self, hidden, lengths):
        return super().forward(hidden, lengths) + self.bias


class CappedHead(LanguageModelHead):
    def forward(self, hidden, lengths):
        return 5 * torch.tanh(super().forward(hidden, lengths) / 5)


class WideMLP(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.c_fc = nn.Linear(config.n_embd, 8 * config.n_embd)
        self.c_proj = nn.Linear(8 * config.n_embd, config.n_embd)


class NormedAttention(CausalSelfAttention):
    def __init__(self, config):
        super().__init__(config)
        self.q_norm = nn.LayerNorm(config.n_embd)


@pytest.mark.parametrize(
    "make_head, patched, parts",
    [
        (HeadWithBias, {}, ["no place for head.bias"]),
        (CappedHead, {}, ["GPT2LMHeadModel of transformers computes something else"]),
        (LanguageModelHead, {"MLP": WideMLP},
         ["h.0.mlp.c_fc.weight is [128, 16]", "must be [64, 16] in transformers"]),
        (LanguageModelHead, {"CausalSelfAttention": NormedAttention},
         ["no place for h.0.attn.q_norm.weight"]),
        (LanguageModelHead, {"causal_attention": unscaled_attention}, ["something else"]),
        (lambda config: ClassificationHead(config, 3, "last"), {"causal_attention":
         unscaled_attention}, ["GPT2ForSequenceClassification", "something else"]),
    ],
)  # fmt: skip
def test_what_transformers_computes_otherwise_is_not_exported(
    make_head, patched, parts, tmp_path, monkeypatch
):
    for name, value in patched.items():
        monkeypatch.setattr(gpt2.model, name, value)
    head = make_head(SMALL)
    save_ours(tmp_path / "best", SMALL, head, {"labels": LABELS, "max_length": 48})
    with pytest.raises(UserError) as error:
        export(tmp_path / "best", tmp_path / "out")
    for part in ["cannot be exported", *parts]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_edited_head_is_not_exported(tmp_path, monkeypatch):
    changed_head(monkeypatch)
    model = GPT2(SMALL, ClassificationHead(SMALL, 2, "last"))
    save_checkpoint(tmp_path / "best", model, CHECKPOINT, TrainingState())
    with pytest.raises(UserError, match="something else from the same weights"):
        export(tmp_path / "best", tmp_path / "out")
