"""Low-rank adapters on encoders of transformers."""

import json

import pytest
import torch
from conftest import refused
from safetensors.torch import load_file, save_file
from test_lora_runs import bytes_of, stopping_in_the_third_batch
from tiny_encoders import LABELS, SHORT, TRAIN, save_tiny_encoder
from tiny_encoders import distilbert as distilbert
from tiny_encoders import nothing_slow as nothing_slow
from transformers import pipeline

from gpt2.encoder import merge_encoder
from gpt2.lora import LoRA, LoRALinear
from gpt2.weights.encoders import EncoderSettings, build_encoder, find_encoder
from gpt2.weights.loading import load_model


def build(folder, labels=LABELS):
    return build_encoder(find_encoder(EncoderSettings(str(folder))), labels, "all", 1)


ALL_OF_BERT = {"attention.self.query", "attention.self.key", "attention.self.value",
               "attention.output.dense", "intermediate.dense", "output.dense"}  # fmt: skip
ALL_OF_DISTILBERT = {"attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
                     "ffn.lin1", "ffn.lin2"}  # fmt: skip


@pytest.mark.parametrize(
    "family, on, layers",
    [
        ("distilbert", LoRA.on, ALL_OF_DISTILBERT),
        ("bert", LoRA.on, ALL_OF_BERT),
        ("bert", "query, value", {"attention.self.query", "attention.self.value"}),
        ("roberta", "attention", {n for n in ALL_OF_BERT if n.startswith("attention")}),
        ("bert", "dense", {n for n in ALL_OF_BERT if n.endswith("dense")}),  # not the pooler's
    ],
)
def test_adapters_stand_where_they_should_and_begin_at_nothing(family, on, layers, tmp_path):
    folder = save_tiny_encoder(tmp_path / family, family)
    plain, _ = build(folder)
    found = find_encoder(EncoderSettings(str(folder)))
    model, _ = build_encoder(found, LABELS, "lora", 1, LoRA(rank=2, alpha=6, on=on))
    adapters = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    expected = {f"{block}.{layer}" for block in (0, 1) for layer in layers}
    assert {name.partition("layer.")[2] for name in adapters} == expected
    for name, parameter in model.named_parameters():
        in_head = "layer." not in name and "embeddings" not in name
        assert parameter.requires_grad == (in_head or "lora_" in name), name
    assert any(parameter.requires_grad for parameter in model.head.parameters())

    batch = torch.arange(24).view(2, 12), torch.tensor([12, 7])
    plain, model = plain.eval(), model.eval()
    assert torch.equal(model(*batch), plain(*batch))
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.lora_B, std=0.3)
    assert not torch.allclose(model(*batch), plain(*batch), atol=1e-3)
    torch.testing.assert_close(merge_encoder(model)(*batch), model(*batch), rtol=0, atol=1e-5)


def test_a_run_of_adapters_is_resumed_asked_compared_exported_and_tied_to_its_base(
    distilbert, tmp_path, call_script
):
    def run(script, *arguments):
        done = call_script(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = (TRAIN, "--model", "tiny", *SHORT, "--max-steps", 4, "--evaluate-every", 2, "--train",
             "lora", "--lora-rank", 2, "--lora-dropout", 0.2, "--precision", "float32")  # fmt: skip
    said = run(*flags, "--out", "unbroken", "--learning-rate", 0.02)
    assert "LoRA of rank 2 on layer; AdamW, learning rate 0.02" in said
    with stopping_in_the_third_batch():
        assert call_script(*flags, "--out", "run", "--learning-rate", 0.02).returncode == 143
    assert "going on after step 2 of 4" in run(TRAIN, "--resume", "run")
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "unbroken")
    saved = load_file(tmp_path / "run/best/model.safetensors")
    assert {name.split(".")[1] for name in saved if "lora_" not in name} == {
        "pre_classifier", "classifier",
    }  # fmt: skip
    assert sum("lora_" in name for name in saved) == 2 * 2 * len(ALL_OF_DISTILBERT)
    lora = json.loads((tmp_path / "run/best/config.json").read_text())["lora"]
    assert lora["base"] == str(distilbert) and len(lora["base_sha256"]) == 64

    text = "a great film, a fine story"
    asked = run("classification/predict.py", "run", text, "--json", "--raw")
    expected = json.loads(asked)["probabilities"]
    run("classification/evaluate.py", "run", "--out", "found", "--precision", "float32")
    found = json.loads((tmp_path / "found/results.json").read_text())["metrics"]["loss"]
    after = json.loads((tmp_path / "run/results.json").read_text())["after"]["test"]["loss"]
    assert found == pytest.approx(after, rel=1e-6)
    run("baselines/compare.py", "run", "unbroken", "--resamples", 100)
    run("gpt2/weights/export.py", "run", "exported")
    assert not any("lora" in name for name in load_file(tmp_path / "exported/model.safetensors"))
    [labels] = pipeline("text-classification", str(tmp_path / "exported"), top_k=None)([text])
    assert {each["label"]: each["score"] for each in labels} == pytest.approx(expected, abs=1e-4)
    # a new run goes on from the merged weights, or with adapters on that run
    ours, _ = load_model(tmp_path / "run", "classification")
    merged, origin = build(tmp_path / "run", ["negative", "positive"])
    assert origin.startswith("trunk and head of ") and not hasattr(merged, "lora")
    batch = torch.arange(24).view(2, 12), torch.tensor([12, 7])
    torch.testing.assert_close(merged.eval()(*batch), ours(*batch), rtol=0, atol=1e-5)
    run(TRAIN, "--model", "run", *SHORT, "--train", "lora", "--precision", "float32", "--out",
        "more")  # fmt: skip
    before = json.loads((tmp_path / "more/results.json").read_text())["before"]["test"]["loss"]
    assert before == pytest.approx(after, rel=1e-5)
    run("classification/predict.py", "more", text)

    # no base, a link to where it is now, another one
    commands = (
        ("classification/predict.py", "run", text),
        ("classification/predict.py", "more", text),
        ("gpt2/weights/export.py", "run", "again"),
        (TRAIN, "--resume", "run", "--max-steps", 6),
        (TRAIN, "--model", "run", *SHORT),
    )
    distilbert.rename(tmp_path / "moved")
    for command in commands:
        refused(call_script(*command), f"{distilbert}: is gone", f"ln -s NEW {distilbert}")
    distilbert.symlink_to(tmp_path / "moved")
    run(TRAIN, "--resume", "run", "--max-steps", 5)
    weights = load_file(distilbert / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()},
              distilbert / "model.safetensors", {"format": "pt"})  # fmt: skip
    for command in commands:
        refused(call_script(*command), f"{distilbert}: holds other weights now (SHA-256")


def test_names_that_no_layer_has_are_listed(distilbert, call_script):
    refused(
        call_script(TRAIN, "--model", "tiny", *SHORT, "--train", "lora", "--lora-on", "query"),
        "--lora-on query: 'query' stands in no linear layer's name; there are network, distilbert, "
        "transformer, layer, attention, q_lin, k_lin, v_lin, out_lin, ffn, lin1, lin2",
    )
