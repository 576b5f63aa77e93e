"""An encoder through the scripts: trained, asked, compared, exported; and where its weights come
from."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import refused
from small_hub import SmallHub, turn_client_to
from tiny_encoders import LABELS, POSITIONS, SHORT, TRAIN, save_tiny_encoder
from tiny_encoders import distilbert as distilbert
from tiny_encoders import nothing_slow as nothing_slow
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    FNetConfig,
    FNetForMaskedLM,
    pipeline,
)

from gpt2.encoder import describe_model
from gpt2.weights.encoders import (
    RELEASED_ENCODERS,
    EncoderSettings,
    build_encoder,
    find_encoder,
    shape_of,
)


@pytest.fixture
def encoder(request, tmp_path):
    return save_tiny_encoder(tmp_path / "encoder", request.param)


def build(folder, labels=LABELS, **settings):
    return build_encoder(find_encoder(EncoderSettings(str(folder))), labels, "all", 1, **settings)


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
    # adapters name the commit that they stand on, and find it again
    done = call_script(TRAIN, *SHORT, "--train", "lora", "--out", "lora")
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "lora/best/config.json").read_text())
    assert saved["lora"]["base"] == f"{repository}@{revision}"
    done = call_script(TRAIN, "--resume", "lora", "--max-steps", 3)
    assert done.returncode == 0, done.stderr
    resumed = json.loads((tmp_path / "lora/last/config.json").read_text())
    assert resumed["settings"]["trained_on"] == saved["settings"]["trained_on"]
    assert resumed["settings"]["trained_on"][0] == f"weights of {repository}: Apache-2.0"
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
    assert shape_of(find_encoder(EncoderSettings(str(roberta)))).n_positions == POSITIONS
    assert build(distilbert)[0].network.config.dropout == 0.1  # its own
    model, _ = build(distilbert, dropout=0.3)
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.3}
    bert = BertConfig.from_pretrained(save_tiny_encoder(tmp_path / "bert", "bert"))
    assert bert.classifier_dropout is None
    model, _ = build(tmp_path / "bert", dropout=0.0)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
