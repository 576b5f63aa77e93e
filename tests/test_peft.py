"""Adapters go out to the library peft and come back from it, with the same logits."""

import json
import re

import pytest
import torch
from conftest import REPOSITORY, refused
from safetensors.torch import load_file, save_file
from test_lora_runs import SHORT, TRAIN
from test_pretrained import (
    LABELS,
    SMALL,
    TEMPLATE,
    load_ours,
    save_ours,
    save_theirs,
    small_encoding,
    their_model,
)

from gpt2.checkpoint import Recipe, TrainingState, save_checkpoint
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.lora import LoRA, LoRALinear
from gpt2.support.errors import UserError
from gpt2.weights.building import ModelSettings, build_model, choose_config
from gpt2.weights.export import export

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[test]'")

TASKS = {
    "LMHeadModel": (
        LanguageModelHead, {"max_length": 48, "template": TEMPLATE}, "instruction", None,
    ),
    "ForSequenceClassification": (
        lambda config: ClassificationHead(config, 3, "last"),
        {"max_length": 48, "labels": LABELS}, "classification", LABELS,
    ),
}  # fmt: skip
TOKENS, LENGTHS = torch.arange(40).view(4, 10), torch.full((4,), 10)


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


@pytest.fixture
def base(task, tmp_path):
    """A folder with a model of transformers and its tokenizer."""
    more = {}
    if "Classification" in task:
        more = {"num_labels": 3, "id2label": dict(enumerate(LABELS)), "pad_token_id": 299}
    return save_theirs(their_model(SMALL, task, **more), tmp_path / "base")


def read_base(task, folder):
    import transformers

    return getattr(transformers, f"GPT2{task}").from_pretrained(folder).eval()


def make_rough(parameters):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("on", ["attn,mlp", "c_attn", "1"])
def test_ours_go_out(task, base, on, tmp_path, capsys):
    make_head, settings, task_name, labels = TASKS[task]
    config, _ = choose_config(ModelSettings(model=str(base)))
    model, _ = build_model(
        ModelSettings(model=str(base)), config, make_head, "lora", 1, labels, LoRA(4, 12, on=on)
    )
    make_rough(parameter for parameter in model.parameters() if parameter.requires_grad)
    recipe = Recipe(task_name, small_encoding(), settings)
    save_checkpoint(tmp_path / "best", model.eval(), recipe, TrainingState())
    export(tmp_path / "best", tmp_path / "out", adapter=True)
    assert not (tmp_path / "out/model.safetensors").exists()

    with torch.no_grad():
        expected, before = model(TOKENS, LENGTHS), read_base(task, base)(TOKENS).logits
        theirs = peft.PeftModel.from_pretrained(read_base(task, base), tmp_path / "out")
        assert not torch.allclose(before, expected, atol=1e-2)
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-5)
        merged = theirs.merge_and_unload()
        torch.testing.assert_close(merged(TOKENS).logits, expected, rtol=0, atol=1e-5)

        # the card's own lines
        card = (tmp_path / "out/README.md").read_text()
        code = re.search(r"```python\n(.*?)\n\n", card, re.DOTALL)[1]
        code += "\n" + re.search(r"\n\n(config = .*?)\n\n", card, re.DOTALL)[1]
        names = {}
        exec(code.replace('"out"', f'"{tmp_path}/out"'), names)
        torch.testing.assert_close(names["model"](TOKENS).logits, expected, rtol=0, atol=1e-5)
        if labels:
            assert names["model"].config.id2label == dict(enumerate(LABELS))

        # and they come back
        ours, origin = load_ours(tmp_path / "out", make_head, labels)
        assert origin == f"trunk and head of {tmp_path / 'out'} (peft adapters)"
        torch.testing.assert_close(ours(TOKENS, LENGTHS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [None, ["c_attn", "c_proj"], ["mlp.c_fc"]])
def test_theirs_come_in(task, base, target, tmp_path):
    make_head, _, _, labels = TASKS[task]
    kind = "SEQ_CLS" if labels else "CAUSAL_LM"
    settings = peft.LoraConfig(kind, r=2, lora_alpha=10, target_modules=target)
    theirs = peft.get_peft_model(read_base(task, base), settings).eval()
    make_rough(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapters")
    ours, origin = load_ours(tmp_path / "adapters", make_head, labels)
    assert "trunk and head of" in origin
    assert not any(isinstance(module, LoRALinear) for module in ours.modules())
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS, LENGTHS), theirs(TOKENS).logits, rtol=0, atol=1e-5)
    if labels:  # other classes: their adapters, a new head
        _, origin = load_ours(tmp_path / "adapters", make_head, ["x", "y", "z"])
        assert "trunk, new head (the old one's labels were bad, fair, good)" in origin


@pytest.fixture
def adapters(tmp_path):
    """A folder that peft has written, for the weights of `mini`."""
    from transformers import GPT2LMHeadModel

    folder = REPOSITORY / "gpt2/mini"
    model = GPT2LMHeadModel.from_pretrained(folder)
    theirs = peft.get_peft_model(model, peft.LoraConfig("CAUSAL_LM", r=2))
    make_rough(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters"


def test_training_goes_on_from_them(adapters, call_script, tmp_path):
    """With adapters of its own that stand on them: they and their base must stay."""
    flags = (*SHORT[TRAIN], "--max-steps", 1, "--model", "adapters", "--train", "lora")
    done = call_script(TRAIN, *flags, "--pooling", "last", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "trunk, new head (the old one was a language model head), of adapters" in done.stdout
    predict = ("classification/predict.py", "run", "a film")
    assert call_script(*predict).returncode == 0
    refused(call_script("gpt2/weights/export.py", "run", "out", "--adapter"),
            "not in the Hugging Face layout", "without --adapter they are merged")  # fmt: skip
    assert call_script("gpt2/weights/export.py", "run", "out").returncode == 0
    tensors = load_file(adapters / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()},
              adapters / "adapter_model.safetensors")  # fmt: skip
    refused(call_script(*predict), "adapters: holds other weights now")


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"peft_type": "IA3"}, "peft_type is IA3; of peft's adapters only plain LoRA is read"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is all"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa"),
        ({"alpha_pattern": {"c_attn": 3}}, "alpha_pattern is {'c_attn': 3}"),
        ({"something_new": 1}, "something_new is 1"),
        ({"base_model_name_or_path": "meta/other"}, "its base 'meta/other' is neither a released"),
        ({"base_model_name_or_path": None}, "its base 'None' is neither"),
        ({"lora_alpha": "x"}, "not a description of adapters"),
    ],
)
def test_other_adapters_are_refused(changed, said, adapters, call_script):
    file = adapters / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    refused(call_script(TRAIN, "--model", "adapters"), said)


def test_adapters_of_other_layers_are_refused(adapters):
    file = adapters / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.transformer.wte.lora_embedding_A"
    save_file(tensors | {name: torch.ones(2, 2)}, file)
    with pytest.raises(UserError, match=r"no adapters of this model's .*: wte.lora_embedding_A"):
        load_ours(adapters)
    save_file({name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()}, file)
    with pytest.raises(UserError, match=r"linear layers: h.0.attn.c_attn.lora_A"):
        load_ours(adapters)
    file.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load_ours(adapters)


def test_a_run_without_adapters_has_none_to_write(tmp_path):
    head = ClassificationHead(SMALL, 3, "last")
    save_ours(tmp_path / "best", SMALL, head, {"labels": LABELS, "max_length": 48})
    with pytest.raises(UserError, match="was not trained with --train lora"):
        export(tmp_path / "best", tmp_path / "out", adapter=True)
    assert not (tmp_path / "out").exists()
