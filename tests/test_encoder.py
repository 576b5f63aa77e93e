"""An encoder of transformers in GPT-2's place: it computes what transformers computes, learns what
a plain loop learns, and is saved, resumed, asked and compared as GPT-2 is."""

import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import refused
from small_hub import SmallHub, turn_client_to
from test_resume import at_event, in_child, sentences, what_counts
from tiny_encoders import POSITIONS, save_tiny_encoder
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    FNetConfig,
    FNetForMaskedLM,
    pipeline,
)

from classification.data import IMDbDataset
from classification.evaluation import classification_loss
from gpt2.batching import collate, shuffled_batches
from gpt2.checkpoint import Recipe, load_checkpoint
from gpt2.encoder import describe_model
from gpt2.optimization import TrainingConfig, learning_rate, parameter_groups
from gpt2.support import stopping
from gpt2.support.durable import MANIFEST
from gpt2.support.errors import UserError
from gpt2.support.run_folder import RunFolder
from gpt2.training import train
from gpt2.weights.encoders import (
    RELEASED_ENCODERS,
    EncoderSettings,
    build_encoder,
    choose_encoder,
)

FAMILIES = ("distilbert", "bert", "roberta", "minilm")
LABELS = ["bad", "good"]
TRAIN = "baselines/train_encoder.py"
SHORT = "--max-train 32 --max-validation 8 --max-test 20 --max-steps 2 --max-length 32".split()


@pytest.fixture(autouse=True)
def nothing_slow(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *given, **named: None)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(params=FAMILIES)
def encoder(request, tmp_path):
    return save_tiny_encoder(tmp_path / "encoder", request.param)


@pytest.fixture
def distilbert(tmp_path):
    return save_tiny_encoder(tmp_path / "tiny", "distilbert")


def build(folder, labels=LABELS, train="all", **settings):
    return build_encoder(EncoderSettings(str(folder), **settings), labels, train, seed=1)


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
    _, encoding = choose_encoder(EncoderSettings(str(encoder)))
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
    _, encoding = choose_encoder(EncoderSettings(str(folder)))
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
    _, encoding = choose_encoder(EncoderSettings(str(encoder)))
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
    _, encoding = choose_encoder(EncoderSettings(str(encoder)))
    found = encoding.encode_ordinary(f"a {tokenizer.sep_token} b {tokenizer.pad_token}")
    assert not {tokenizer.sep_token_id, tokenizer.pad_token_id} & set(found)


# --- scripts


def test_trained_asked_evaluated_compared_and_beside_another(distilbert, tmp_path, call_script):
    def run(script, *arguments):
        done = call_script(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run(TRAIN, "--model", "tiny", *SHORT, "--out", "run", "--truncation", "head-tail")
    assert "encoder tiny after fine-tuning" in said and "GPT-2" not in said
    assert "learning rate 5e-05" in said and "new head (no old one), of tiny" in said
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["model"]["head"] == {
        "kind": "DistilBertForSequenceClassification", "num_classes": 2,
    }  # fmt: skip
    assert "GPT-2" not in (tmp_path / "run/report.md").read_text()
    asked = run("classification/predict.py", "run", "a fine film", "dull", "--json")
    assert len(asked.splitlines()) == 2 and "positive" in asked
    assert "20 rows" in run("classification/evaluate.py", "run")

    # a GPT-2 beside it, and it beside that
    gpt2 = "--model scratch --n-layer 1 --n-head 1 --n-embd 8".split()
    said = run("classification/train_gpt.py", *gpt2, *SHORT, "--out", "gpt2", "--beside", "run",
               "run:baseline")  # fmt: skip
    accuracy = results["after"]["test"]["accuracy"]
    row = next(line for line in said.splitlines() if line.startswith("| run run  "))
    assert f"{100 * accuracy:.1f} %" in row and " to " in row
    assert "- after fine-tuning against run run: " in said
    assert "- after fine-tuning against run run:baseline: " in said
    report = (tmp_path / "gpt2/report.md").read_text()
    assert row in report and "against run run: " in report
    kept = json.loads((tmp_path / "gpt2/results.json").read_text())
    assert kept["beside"]["run run"]["test"] == pytest.approx(results["after"]["test"])
    said = run(TRAIN, "--model", "tiny", *SHORT, "--beside", "gpt2")
    assert "| run gpt2  " in said
    compared = run("baselines/compare.py", "run", "gpt2")
    assert "gpt2 - run" in compared

    # what it began with may go, and the run goes on
    shutil.rmtree(tmp_path / "tiny")
    said = run(TRAIN, "--resume", "run", "--max-steps", 4)
    assert "going on after step 2 of 4" in said
    # a new run goes on from it; with other labels it gets a new head
    assert "trunk and head of run/best" in run(TRAIN, "--model", "run", *SHORT, "--out", "more")
    other = "text,label\n" + "".join(f"{w} {n},{n % 3}\n" for w in "abcdefg" for n in range(9))
    (tmp_path / "other.csv").write_text(other)
    said = run(TRAIN, "--model", "run", *SHORT, "--data", "other.csv", "--batch-size", 8)
    assert "trunk, new head (the old one's labels were negative, positive), of run/best" in said

    # what is no encoder's, or is one's
    refused(call_script(TRAIN, "--model", "gpt2"), "is a run of GPT-2", "train_gpt.py")
    for wrong in ("classification/train_gpt.py", "instruction/instruction_finetuning.py"):
        refused(call_script(wrong, "--model", "run"), "run/best: is an encoder", "train_encoder.py")
    (tmp_path / "run/best/tokenizer.json").write_text("{}")
    refused(call_script("classification/predict.py", "run", "a"), "tokenizer.json: is damaged")


@pytest.mark.parametrize("encoder", ["distilbert", "roberta"], indirect=True)
def test_exported_a_pipeline_of_transformers_gives_the_same_labels(encoder, tmp_path, call_script):
    done = call_script(TRAIN, "--model", "encoder", *SHORT, "--truncation", "tail", "--out", "run",
                       "--export", "at the end")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = call_script("gpt2/weights/export.py", "run", "later")
    assert done.returncode == 0, done.stderr
    texts = ["What<br />a   film", "dull [SEP] story </s> " * 9 + " and one thing more, I'd say"]
    done = call_script("classification/predict.py", "run", *texts, "--json", "--raw")
    expected = [json.loads(line)["probabilities"] for line in done.stdout.splitlines()]
    assert expected[0] != expected[1]
    for folder in ("at the end", "later"):
        classify = pipeline("text-classification", str(tmp_path / folder), top_k=None)
        for found, wanted in zip(classify(texts, truncation=True), expected, strict=True):
            assert {each["label"]: each["score"] for each in found} == pytest.approx(
                wanted, abs=1e-4
            )
    card = (tmp_path / "later/README.md").read_text()
    assert "ForSequenceClassification with" in card and "GPT-2" not in card
    refused(call_script("gpt2/weights/export.py", "run", "later"), "is not an empty folder")


def test_a_run_beside_it_must_have_the_same_rows(tmp_path, call_script):
    gpt2 = "--model scratch --n-layer 1 --n-head 1 --n-embd 8".split()
    done = call_script("classification/train_gpt.py", *gpt2, *SHORT, "--out", "one")
    assert done.returncode == 0, done.stderr
    for flags, reason in (
        (("--split-seed", 2), "row 0 is another one"),
        (("--max-test", 10), "it has 20 rows, not 10"),
        (("--beside", "nothing"), "nothing: no such run folder"),
    ):
        done = call_script(
            "classification/train_gpt.py", *gpt2, *SHORT, "--beside", "one", *flags, "--out", "two"
        )
        refused(done, reason)
        assert not (tmp_path / "two").exists()


def test_without_transformers_one_line_says_what_to_install(
    distilbert, tmp_path, call_script, monkeypatch
):
    done = call_script(TRAIN, "--model", "tiny", *SHORT, "--out", "run")
    assert done.returncode == 0, done.stderr
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    for command in (
        (TRAIN, "--model", "tiny"),
        ("classification/predict.py", "run", "a fine film"),
        ("classification/evaluate.py", "run"),
    ):
        refused(call_script(*command), "needs transformers", "pip install -e '.[encoder]'")


def test_gpt2_needs_no_transformers(script_environment):
    code = (
        "import sys, classification.train_gpt, classification.predict, baselines.train_encoder\n"
        "print([name for name in ('transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=script_environment, text=True,
                          capture_output=True, timeout=120)  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


# --- where weights come from


def test_downloaded_once_from_the_hub_and_then_read_without_it(
    distilbert, tmp_path, monkeypatch, call_script
):
    files = {file.name: file.read_bytes() for file in distilbert.iterdir()}
    files |= {"tf_model.h5": b"?", "modeling.py": b"raise SystemExit"}  # of no use here
    repository, revision, _ = RELEASED_ENCODERS["distilbert-base-uncased"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with SmallHub(repository, revision, files, "models") as hub:
        turn_client_to(hub, monkeypatch)
        hub.headless = 1  # an error of the hub's own: tried again
        done = call_script(TRAIN, *SHORT, "--out", "run", offline=False)
        assert done.returncode == 0, done.stderr
        assert f"of {repository} at {revision[:8]} (DistilBertForMaskedLM)" in done.stdout
        assert not [path for _, path in hub.requests if "modeling.py" in path or ".h5" in path]
        asked = len(hub.requests)
        # by its name on the hub, at its newest commit
        done = call_script(TRAIN, "--model", repository, *SHORT, "--max-steps", 1, offline=False)
        assert done.returncode == 0, done.stderr
        assert "/storage/" not in str(hub.requests[asked:])
        refused(call_script(TRAIN, "--model", "me/none", offline=False), "has no model me/none")
    done = call_script(TRAIN, *SHORT, "--max-steps", 1)
    assert done.returncode == 0, done.stderr
    refused(call_script(TRAIN, "--model", "bert-base-uncased"), "google-bert/bert-base-uncased is "
            "not in the cache", "--model FOLDER")  # fmt: skip
    card = json.loads((tmp_path / "run/best/config.json").read_text())["settings"]["trained_on"]
    assert card[0] == f"weights of {repository}: Apache-2.0"


def test_a_classifier_keeps_its_head_where_the_labels_are_the_same(tmp_path, distilbert):
    theirs = AutoModelForSequenceClassification.from_pretrained(
        distilbert, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}
    )
    theirs.save_pretrained(distilbert)
    model, origin = build(distilbert)
    assert origin.startswith("trunk and head of ")
    assert torch.equal(model.network.classifier.weight, theirs.classifier.weight)
    for labels in (["no", "yes"], ["good", "bad"], ["a", "b", "c"]):
        model, origin = build(distilbert, labels)
        assert origin.startswith("trunk, new head (the old one's labels were bad, good), of ")
        weight = model.network.classifier.weight
        assert weight.shape[0] == len(labels) and weight.std() < 0.03  # as a new one begins
        assert describe_model(model)["encoder"]["id2label"] == dict(enumerate(labels))


def test_other_formats_of_weights_and_what_is_refused(tmp_path, distilbert, call_script):
    tiny = (TRAIN, "--model", "tiny", *SHORT)
    expected = build(distilbert)[0].state_dict()
    weights = AutoModelForSequenceClassification.from_pretrained(distilbert).state_dict()
    stored = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
    (distilbert / "model.safetensors").unlink()
    refused(call_script(*tiny), "its weights cannot be read")
    torch.save(stored, distilbert / "pytorch_model.bin")
    assert all(torch.equal(expected[n], t) for n, t in build(distilbert)[0].state_dict().items())
    torch.save(stored | {"more": random.Random()}, distilbert / "pytorch_model.bin")
    refused(call_script(*tiny), "its weights cannot be read")
    name = "distilbert.transformer.layer.1.ffn.lin1.weight"
    for wrong in ({}, {name: torch.zeros(3, 3)}):
        rest = {key: tensor for key, tensor in stored.items() if key != name}
        torch.save(rest | wrong, distilbert / "pytorch_model.bin")
        refused(call_script(*tiny), "nothing that fits", name)
    config = json.loads((distilbert / "config.json").read_text())
    for changed, said in (
        ({"model_type": "gpt2"}, "gpt2 is no encoder"),
        ({"model_type": "unheard-of"}, "not an encoder's description"),
        ({"model_type": "bart"}, "bart is no encoder"),
        ({"model_type": "unheard-of", "auto_map": {"AutoConfig": "mine.Config"}}, "description"),
    ):
        (distilbert / "config.json").write_text(json.dumps(config | changed))
        (distilbert / "mine.py").write_text("raise SystemExit('ran')")
        refused(call_script(*tiny), said)
    (distilbert / "config.json").write_text(json.dumps(config))
    (distilbert / "tokenizer.json").unlink()
    refused(call_script(*tiny), "its tokenizer cannot be read")
    refused(call_script(TRAIN, "--model", "nothing"), "neither a folder nor an encoder of the hub")
    (tmp_path / "empty").mkdir()
    refused(call_script(TRAIN, "--model", "empty"), "has no config.json")


def test_an_encoder_that_sees_pads_is_refused(tmp_path, call_script, monkeypatch):
    """FNet mixes all tokens of a row, pads too."""
    save_tiny_encoder(tmp_path / "tiny", "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    fnet = FNetForMaskedLM(FNetConfig(vocab_size=200, **sizes, max_position_embeddings=POSITIONS))
    for parameter in fnet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    fnet.save_pretrained(tmp_path / "tiny")
    refused(call_script(TRAIN, "--model", "tiny", *SHORT), "change with the padding beside a text")


def test_what_fits_and_dropout(tmp_path, distilbert, call_script):
    refused(
        call_script(TRAIN, "--model", "tiny", "--max-length", 65),
        f"--max-length {POSITIONS} is the most it takes",
    )
    refused(call_script(TRAIN, "--model", "tiny", "--max-length", 2), "--max-length 2")
    roberta = save_tiny_encoder(tmp_path / "roberta", "roberta")
    assert choose_encoder(EncoderSettings(str(roberta)))[0].n_positions == POSITIONS
    assert build(distilbert)[0].network.config.dropout == 0.1  # its own
    model, _ = build(distilbert, dropout=0.3)
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.3}
    bert = BertConfig.from_pretrained(save_tiny_encoder(tmp_path / "bert", "bert"))
    assert bert.classifier_dropout is None
    model, _ = build(tmp_path / "bert", dropout=0.0)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_a_checkpoint_computes_what_the_model_computed(encoder, tmp_path):
    config = TrainingConfig(epochs=1, max_steps=1, batch_size=4, learning_rate=1e-3)
    train_tiny(encoder, tmp_path / "run", config)
    model, recipe = load_checkpoint(tmp_path / "run", "classification")
    assert not model.training and recipe.encoding.before and recipe.settings["labels"] == LABELS
