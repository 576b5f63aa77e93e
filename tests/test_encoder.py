"""An encoder of transformers in GPT-2's place: it computes what transformers computes, learns what
a plain loop learns, and is saved, resumed, asked and compared as GPT-2 is."""

import signal

import pytest
import torch
from test_resume import at_event, in_child, sentences, what_counts
from tiny_encoders import POSITIONS, save_tiny_encoder
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from classification.data import IMDbDataset
from classification.evaluation import classification_loss
from gpt2.batching import collate, shuffled_batches
from gpt2.checkpoint import Recipe, load_checkpoint
from gpt2.optimization import TrainingConfig, learning_rate, parameter_groups
from gpt2.support import stopping
from gpt2.support.durable import MANIFEST
from gpt2.support.errors import UserError
from gpt2.support.run_folder import RunFolder
from gpt2.training import train
from gpt2.weights.encoders import (
    EncoderSettings,
    build_encoder,
    find_encoder,
)

FAMILIES = ("distilbert", "bert", "roberta", "minilm")
LABELS = ["bad", "good"]


@pytest.fixture(params=FAMILIES)
def encoder(request, tmp_path):
    return save_tiny_encoder(tmp_path / "encoder", request.param)


@pytest.fixture
def distilbert(tmp_path):
    return save_tiny_encoder(tmp_path / "tiny", "distilbert")


def build(folder, labels=LABELS, train="all", **settings):
    return build_encoder(find_encoder(EncoderSettings(str(folder))), labels, train, 1, **settings)


def reference(folder, model):
    """What transformers makes of the same folder, with the same new classifier."""
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    theirs.load_state_dict(model.network.state_dict())
    return theirs


# --- what it computes


def test_logits_are_those_of_transformers_on_ragged_batches(encoder):
    model, origin = build(encoder)
    assert "new head" in origin and str(encoder) in origin
    theirs, tokenizer = reference(encoder, model), AutoTokenizer.from_pretrained(encoder)
    with torch.no_grad():  # the trunk is the stored one, not a random one
        stored = AutoModelForSequenceClassification.from_pretrained(encoder).base_model
        one = tokenizer("a fine film", padding=False, return_tensors="pt")
        torch.testing.assert_close(
            stored.eval()(**one)[0], model.eval().network.base_model(**one)[0], rtol=0, atol=1e-5
        )
    texts = [*sentences(7, 3), "a", "what a film, a story " * 16]
    encoding = find_encoder(EncoderSettings(str(encoder))).encoding
    rows = IMDbDataset(texts, [0] * len(texts), encoding, POSITIONS)
    batch = collate([rows[row] for row in range(len(rows))])
    given = tokenizer(
        texts, padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt"
    )
    assert torch.equal(given["attention_mask"].sum(dim=1), batch.lengths)
    assert len(set(batch.lengths.tolist())) > 3 and batch.lengths.max() == POSITIONS
    model.eval()
    with torch.no_grad():
        expected = theirs(**given).logits
        logits = model(batch.tokens, batch.lengths)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        assert logits.std(dim=0).min() > 5e-4  # the texts differ
        for row, length in enumerate(batch.lengths):  # one by one, and with other pads
            alone = model(batch.tokens[row : row + 1, :length], length.unsqueeze(0))
            torch.testing.assert_close(alone[0], expected[row], rtol=0, atol=1e-5)
        real = torch.arange(POSITIONS) < batch.lengths.unsqueeze(1)
        others = batch.tokens.where(real, 1)
        torch.testing.assert_close(model(others, batch.lengths), expected, rtol=0, atol=1e-5)


def test_20_steps_end_with_the_weights_of_a_plain_loop(encoder, tmp_path):
    """One that is written with transformers, its own tokenizer and its own loss, on the same rows;
    but for dropout, whose random numbers are the loop's own."""
    config = TrainingConfig(epochs=5, max_steps=20, batch_size=4, precision="float32",
                            learning_rate=1e-3, evaluate_every=20)  # fmt: skip
    texts, targets = sentences(24, 0), [row % 2 for row in range(24)]
    model, _ = build(encoder, dropout=0.0)
    theirs, tokenizer = reference(encoder, model), AutoTokenizer.from_pretrained(encoder)
    train_tiny(encoder, tmp_path / "run", config, model, texts, targets)

    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    others = [p for p in theirs.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    theirs.eval()  # without dropout; every family calls its own otherwise
    lengths = [len(tokenizer(text, padding=False)["input_ids"]) for text in texts]
    batches = [rows for epoch in range(5) for rows in shuffled_batches(lengths, 4, 1, epoch)]
    for step, rows in enumerate(batches[:20]):
        given = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
        loss = theirs(**given, labels=torch.tensor([targets[row] for row in rows])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 20, config)
        optimizer.step()
        optimizer.zero_grad()
    moved = 0.0
    start = build(encoder, dropout=0.0)[0].network.state_dict()
    for name, tensor in theirs.state_dict().items():
        # A bias of the keys moves every score of a row alike, so no attention: its gradient is what
        # rounding leaves of 0, and AdamW makes a step as large as any of that.
        if name.endswith(("key.bias", "k_lin.bias")):
            continue
        torch.testing.assert_close(model.network.state_dict()[name], tensor, rtol=0, atol=1e-5)
        moved = max(moved, (tensor - start[name]).abs().max().item())
    assert moved > 1e-3


def train_tiny(folder, run_folder, config, model=None, texts=(), targets=(), resume=False):
    """The run of a script, but small."""
    if model is None:
        last = run_folder / "last"
        model, _ = build(last if resume and last.is_dir() else folder)
        texts, targets = sentences(14, 14), [row % 2 for row in range(14)]
    encoding = find_encoder(EncoderSettings(str(folder))).encoding
    rows = IMDbDataset(texts, targets, encoding, POSITIONS)
    settings = {"labels": LABELS, "max_length": POSITIONS, "truncation": "head", "trained_on": []}

    def evaluate():
        with torch.no_grad():
            loss, count = classification_loss(model, collate([rows[row] for row in range(6)]))
        return {"loss": loss.item() / count}

    run = RunFolder(run_folder, resume=resume)
    run.start({"training": config}, "cpu")
    try:
        return train(model, rows, classification_loss, evaluate, config, 1, run,
                     Recipe("classification", encoding, settings))  # fmt: skip
    finally:
        stopping.release_signals()


@pytest.mark.parametrize("encoder", ["distilbert", "roberta"], indirect=True)
def test_killed_and_resumed_it_ends_with_the_bytes_of_an_unbroken_run(encoder, tmp_path):
    """With the dropout that the encoder brings, and at three places."""
    config = TrainingConfig(epochs=2, batch_size=4, micro_batch_size=3, evaluate_every=3,
                            save_every="2", precision="float32", learning_rate=1e-3,
                            layer_decay=0.8)  # fmt: skip
    train_tiny(encoder, tmp_path / "unbroken", config)
    expected = what_counts(tmp_path / "unbroken")
    for place in (2, 8, 11):
        folder = tmp_path / f"run {place}"

        def killed(folder=folder, place=place):
            at_event("loop", place, lambda: signal.raise_signal(signal.SIGKILL))
            train_tiny(encoder, folder, config)

        assert in_child(killed) == -signal.SIGKILL
        assert in_child(lambda folder=folder: train_tiny(encoder, folder, config, resume=True)) == 0
        assert what_counts(folder) == expected, place
    for name in ("best", "last"):
        ours = (tmp_path / "run 11" / name).iterdir()
        for file in (file for file in ours if file.name not in ("training.json", MANIFEST)):
            assert file.read_bytes() == (tmp_path / "unbroken" / name / file.name).read_bytes(), (
                file
            )


def test_blocks_computed_twice_give_the_same_gradient(encoder):
    rows = collate([(torch.tensor([11, 20, 21, 12]), torch.tensor(1))])
    gradients = []
    for on in (False, True):
        model, _ = build(encoder)
        model.train()
        model.activation_checkpointing = on
        torch.manual_seed(5)
        classification_loss(model, rows)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
        model.activation_checkpointing = False
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_are_not_rounded_to_bfloat16(distilbert):
    model, _ = build(distilbert)
    tokens, lengths = torch.tensor([[11, 20, 21, 12]]), torch.tensor([4])
    with torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(tokens, lengths).dtype == torch.float32


# --- layers


def test_layers_from_bottom_to_top(encoder):
    model, _ = build(encoder)
    layers = model.layers()
    assert len(layers) == 2 + model.network.config.num_hidden_layers
    everything = [id(p) for layer in layers for p in layer]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [[name_of[id(p)] for p in layer] for layer in layers]
    assert all(".embeddings." in name for name in names[0])
    for number, block in enumerate(names[1:-1]):
        assert block and all(f".layer.{number}." in name for name in block)
    assert any("classifier" in name for name in names[-1])
    scales = {group["lr_scale"] for group in parameter_groups(model, 0.1, layer_decay=0.5)}
    assert scales == {0.5**depth for depth in range(len(layers))}

    for train_flag, trained in (("head", layers[-1]), ("last:1", layers[-2] + layers[-1])):
        model, _ = build(encoder, train=train_flag)
        of_flag = [name for name, p in model.named_parameters() if p.requires_grad]
        assert sorted(of_flag) == sorted(name_of[id(p)] for p in trained)
    with pytest.raises(UserError, match=r"--train last:9 is not possible: the model has \d blocks"):
        build(encoder, train="last:9")


# --- tokens


@pytest.mark.parametrize("truncation", ["head", "tail", "head-tail"])
def test_special_tokens_stay_around_a_text_that_is_cut(encoder, truncation):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    encoding = find_encoder(EncoderSettings(str(encoder))).encoding
    text = "a film, a story, what a scene: dull, bad, great, good"
    rows = IMDbDataset([text, "a"], [0, 1], encoding, 10, truncation)
    tokens = rows[0][0].tolist()
    assert len(tokens) == rows.lengths[0] == 10 < rows.full_lengths[0]
    assert tokens[0] == tokenizer.cls_token_id and tokens[-1] == tokenizer.sep_token_id
    plain = encoding.encode_ordinary(text)
    kept = {"head": plain[:8], "tail": plain[-8:], "head-tail": plain[:2] + plain[-6:]}
    assert tokens[1:-1] == kept[truncation]
    whole = tokenizer("a", padding=False)["input_ids"]
    assert rows[1][0].tolist() == whole and rows.full_lengths[1] == len(whole) == 3


def test_the_name_of_a_special_token_inside_a_text_is_plain_text(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    encoding = find_encoder(EncoderSettings(str(encoder))).encoding
    found = encoding.encode_ordinary(f"a {tokenizer.sep_token} b {tokenizer.pad_token}")
    assert not {tokenizer.sep_token_id, tokenizer.pad_token_id} & set(found)


def test_a_checkpoint_computes_what_the_model_computed(encoder, tmp_path):
    config = TrainingConfig(epochs=1, max_steps=1, batch_size=4, learning_rate=1e-3)
    train_tiny(encoder, tmp_path / "run", config)
    model, recipe = load_checkpoint(tmp_path / "run", "classification")
    assert not model.training and recipe.encoding.before and recipe.settings["labels"] == LABELS
