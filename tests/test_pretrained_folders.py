"""Folders in the Hugging Face layout: whatever one may hold is read, and a clear line tells what it
must not hold."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from test_pretrained import (
    SMALL,
    VOCABULARY,
    load_ours,
    save_theirs,
    small_encoding,
    their_model,
)

from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.support.errors import UserError
from gpt2.weights.building import ModelSettings, choose_config
from gpt2.weights.hugging_face import to_stored_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_theirs(their_model(SMALL), tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder to change, and its weights."""
    return shutil.copytree(folder, tmp_path / "copy"), load_file(folder / "model.safetensors")


def assert_equal(model, folder):
    expected, _ = load_ours(folder)
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0, msg=name)


def edit_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_no_prefix_stored_masks_and_a_second_copy_of_the_tied_head(folder, copy):
    changed, weights = copy
    assert all(name.startswith("transformer.") for name in weights)
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    for block in range(SMALL.n_layer):
        weights[f"h.{block}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        weights[f"h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    weights["lm_head.weight"] = weights["wte.weight"].clone()
    save_file(weights, changed / "model.safetensors")
    assert_equal(load_ours(changed)[0], folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_give_tensors_and_nothing_else(folder, copy, zipped, tmp_path):
    changed, weights = copy
    (changed / "model.safetensors").unlink()
    file = changed / "pytorch_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=zipped)
    assert_equal(load_ours(changed)[0], folder)

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "boom"), "w")

    torch.save(weights | {"x": Bomb()}, file, _use_new_zipfile_serialization=zipped)
    refused(changed, "pytorch_model.bin", "weights alone")
    for content in (pickle.dumps(Bomb(), protocol=2), b"hello", b"", b"version https://git-lfs"):
        file.write_bytes(content)
        refused(changed, "pytorch_model.bin", "weights alone (", "holds more than tensors")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_the_size_become_float32(copy, dtype):
    changed, weights = copy
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    save_file(weights, changed / "model.safetensors")
    model, _ = load_ours(changed)
    assert model.wte.weight.dtype == torch.float32
    torch.testing.assert_close(
        model.wte.weight.detach(), weights["transformer.wte.weight"].float(), atol=0, rtol=0
    )


def test_loaded_weights_do_not_live_in_the_file(folder, copy):
    """A file that is changed under a running training must not reach it."""
    changed, _ = copy
    model, _ = load_ours(changed)
    with open(changed / "model.safetensors", "r+b") as file:
        file.seek(-8000, 2)
        file.write(bytes(8000))
    assert_equal(model, folder)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_loading_holds_one_copy_of_the_weights(tmp_path, script_environment):
    """25 million parameters, 100 MB: the process may grow by that and a little, not by a second
    copy."""
    config = GPT2Config(n_layer=8, n_head=8, n_embd=512, n_positions=64, vocab_size=1000)
    model = GPT2(config, LanguageModelHead(config))
    save_file(to_stored_names(model), tmp_path / "model.safetensors")
    code = f"""
import sys
sys.path[:0] = ["{REPOSITORY}", "{REPOSITORY / "tests"}"]
from pathlib import Path
import torch
from gpt2.weights.loading import _fill
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, GPT2Config
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
config = {config}
with torch.device("meta"):  # once before, for what torch imports at its first use
    GPT2(config, LanguageModelHead(config))
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = memory("VmRSS")
model = _fill(Path("{tmp_path}"), config, LanguageModelHead(config), True)
size = 4 * sum(parameter.numel() for parameter in model.parameters())
print((memory("VmHWM") - before) / size)
"""
    done = subprocess.run([sys.executable, "-c", code], env=script_environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert float(done.stdout) < 1.4


# ---- what is refused


def refused(folder, *parts, make_head=LanguageModelHead):
    with pytest.raises(UserError) as error:
        load_ours(folder, make_head)
    assert len(str(error.value).splitlines()) == 1, error.value
    for part in parts:
        assert part in str(error.value), error.value


def test_every_missing_unexpected_and_misshapen_tensor_is_named(copy):
    changed, weights = copy
    for name in ("h.0.ln_1.weight", "h.1.ln_1.weight", "wpe.weight"):
        del weights[f"transformer.{name}"]
    weights["transformer.h.1.attn.q_proj.weight"] = torch.zeros(2)
    weights["adapter"] = torch.zeros(2)
    weights["transformer.h.0.mlp.c_fc.weight"] = weights["transformer.h.0.mlp.c_fc.weight"].t()
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, changed / "model.safetensors")
    refused(changed, "missing: wpe.weight, h.{0,1}.ln_1.weight", "unexpected: adapter",
            "transformer.h.1.attn.q_proj.weight",
            "transformer.h.0.mlp.c_fc.weight is [64, 16], must be [16, 64]")  # fmt: skip


def test_a_tied_head_that_differs_is_refused(copy):
    changed, weights = copy
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    save_file(weights, changed / "model.safetensors")
    refused(changed, "lm_head.weight differs from wte.weight", "tie_word_embeddings")
    edit_config(changed, tie_word_embeddings=False)
    assert load_ours(changed)[0].head.weight is not load_ours(changed)[0].wte.weight


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
         ["LlamaForCausalLM", "llama", "not a GPT-2"]),
        ({"activation_function": "gelu"}, ["activation_function is gelu", "gelu_new"]),
        ({"layer_norm_epsilon": 1e-6}, ["layer_norm_epsilon is 1e-06"]),
        ({"n_inner": 100}, ["n_inner is 100"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx"]),
        ({"n_head": 5}, ["multiple of n_head"]),
        ({"n_layer": "many"}, ["not the description of a GPT-2", "n_layer is 'many'"]),
        ({"n_layer": 2.0}, ["not the description of a GPT-2", "n_layer is 2.0"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings is 'no'"]),
        ({"n_layer": 3}, ["missing: h.2.ln_1.weight"]),
        ({"n_positions": 32}, ["wpe.weight is [64, 16], must be [32, 16]"]),
        ({"vocab_size": 200}, ["has token 299", "vocabulary has 200"]),
    ],
)  # fmt: skip
def test_what_is_not_this_gpt2_is_refused_by_name(copy, changes, parts):
    changed, _ = copy
    edit_config(changed, **changes)
    refused(changed, *parts)


def test_damaged_and_missing_files_are_named(copy, tmp_path):
    changed, weights = copy
    file = changed / "model.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-100], b"\xff" * 20 + content[20:], b"", content[:5]):
        file.write_bytes(damaged)
        refused(changed, "model.safetensors: cannot be read as safetensors")
    file.unlink()
    refused(changed, "has no weights")
    index = changed / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    refused(changed, "its one.safetensors is missing")
    index.write_text(json.dumps({"weight_map": {"a": "../theirs0/model.safetensors"}}))
    refused(changed, "not an index", "another folder")
    index.unlink()
    counts = {name: torch.ones(tensor.shape, dtype=torch.int8) for name, tensor in weights.items()}
    save_file(counts, file)
    refused(changed, "torch.int8")
    (changed / "config.json").unlink()
    refused(changed, "no config.json")
    refused(tmp_path / "nothing", "neither a known name nor a folder", "gpt2-medium")


# ---- encodings of a folder

TEXTS = ["a fine film", "naïve café, 映画, 🎬!", "  two  spaces\nand a line", "<|endoftext|>"]


def encoding_of(folder):
    return choose_config(ModelSettings(model=str(folder)))[1]


@pytest.mark.parametrize(
    "files, line_end",
    [(("vocab.json", "merges.txt"), b"\n"), (("vocab.json", "merges.txt"), b"\r\n"),
     (("tokenizer.json",), b"\n")],
)  # fmt: skip
def test_either_kind_of_tokenizer_file_is_enough(copy, files, line_end):
    changed, _ = copy
    merges = changed / "merges.txt"  # as it is, or as Windows may have written it
    merges.write_bytes(merges.read_bytes().replace(b"\n", line_end))
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        if name not in files:
            (changed / name).unlink()
    encoding = encoding_of(changed)
    assert encoding.n_vocab == VOCABULARY and encoding.eot_token == VOCABULARY - 1
    for text in TEXTS:
        tokens = small_encoding().encode_ordinary(text)
        assert encoding.encode_ordinary(text) == tokens
        assert encoding.decode(tokens) == text


def test_another_name_for_the_end_and_a_padded_vocabulary(copy):
    """A special token with another name, first in the vocabulary, as other trainers put it."""
    changed, _ = copy
    (changed / "tokenizer.json").unlink()
    vocabulary = json.loads((changed / "vocab.json").read_text())
    del vocabulary["<|endoftext|>"]
    shifted = {"</s>": 0} | {token: number + 1 for token, number in vocabulary.items()}
    (changed / "vocab.json").write_text(json.dumps(shifted))
    edit_config(changed, eos_token_id=0, vocab_size=VOCABULARY + 4)
    encoding = encoding_of(changed)
    assert encoding.eot_token == 0 and encoding.n_vocab == VOCABULARY + 4
    for text in TEXTS:
        expected = [token + 1 for token in small_encoding().encode_ordinary(text)]
        assert encoding.encode_ordinary(text) == expected
    assert encoding.decode([VOCABULARY + 3]) == "<|unused 303|>"
    edit_config(changed, eos_token_id=None)
    refused(changed, "<|endoftext|>", "eos_token_id")


def test_a_missing_or_foreign_tokenizer_is_named(copy):
    changed, _ = copy
    vocabulary, merges = changed / "vocab.json", changed / "merges.txt"
    lines = merges.read_text().split("\n")
    merges.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    refused(changed, "merges.txt", "do not follow the order of its merges")
    merges.write_text("\n".join(lines))
    (changed / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    refused(changed, "add_prefix_space")
    vocabulary.write_text("not JSON")
    refused(changed, "its tokenizer cannot be read")
    vocabulary.unlink()
    content = json.loads((changed / "tokenizer.json").read_text())
    content["model"]["type"] = "Unigram"
    (changed / "tokenizer.json").write_text(json.dumps(content))
    refused(changed, "Unigram", "not a byte-level BPE")
    (changed / "tokenizer.json").unlink()
    refused(changed, "has no tokenizer", "300")
