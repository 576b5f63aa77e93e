"""Weights in the Hugging Face layout: parity with transformers both ways, whatever a folder holds,
and a clear line for what it must not hold."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from test_model import make_rougher, ragged_batch
from torch.nn import functional as F

from gpt2.building import ModelSettings, build_model, choose_config, choose_pooling
from gpt2.checkpoint import Checkpoint, Progress, save_checkpoint
from gpt2.command_line import UserError
from gpt2.export import export
from gpt2.generation import SamplingSettings, generate
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.tokenizer import get_encoding
from gpt2.tokenizer_files import write_tokenizer_files

VOCABULARY = 300
LABELS = ["bad", "fair", "good"]
# name -> shape, and how transformers stores it
SHAPES = {
    "small vocabulary": (GPT2Config(2, 2, 16, 64, VOCABULARY, 0.0), {}),
    "odd head count": (GPT2Config(2, 3, 24, 64, VOCABULARY, 0.0), {}),
    "context 1024": (GPT2Config(1, 2, 16, 1024, VOCABULARY, 0.0), {}),
    "untied head": (
        GPT2Config(2, 2, 16, 64, VOCABULARY, 0.0, tie_word_embeddings=False), {}
    ),
    "shards": (GPT2Config(3, 2, 16, 64, VOCABULARY, 0.0), {"max_shard_size": "15KB"}),
}  # fmt: skip

SMALL = SHAPES["small vocabulary"][0]


def small_encoding(size=VOCABULARY):
    """The first merges of `mini`: any beginning of a byte-pair encoding is one itself."""
    ranks = {token: rank for token, rank in get_encoding("mini")._mergeable_ranks.items()
             if rank < size - 1}  # fmt: skip
    pattern = get_encoding("mini")._pat_str
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": size - 1})  # fmt: skip


def their_model(config, head="LMHeadModel", **more):
    """A transformers GPT-2 with rough random weights."""
    import transformers

    theirs = transformers.GPT2Config(
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
        n_positions=config.n_positions, vocab_size=config.vocab_size, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 1,
        tie_word_embeddings=config.tie_word_embeddings, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"GPT2{head}")(theirs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("wte.weight", "wpe.weight")):
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def save_theirs(model, folder, **how):
    model.save_pretrained(folder, **how)
    write_tokenizer_files(small_encoding(), folder)
    return folder


def load_ours(folder, make_head=LanguageModelHead, labels=None):
    """As `--model FOLDER` does."""
    settings = ModelSettings(model=str(folder))
    config, _ = choose_config(settings)
    model, origin = build_model(settings, config, make_head, "all", 1, labels)
    return model.eval(), origin


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def assert_same_language_model(ours, theirs):
    """Logits, loss, greedy text, and logits after a step of training (a copy in the place of the
    tied head would show there)."""
    config = ours.config
    tokens, lengths = ragged_batch((config.n_positions, config.n_positions), config.vocab_size)
    with torch.no_grad():
        logits, expected = ours(tokens, lengths), theirs(tokens, labels=tokens)
    assert logits.abs().max() > 0.1
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)

    prompt = tokens[:1, :9]
    text = theirs.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0,
                           eos_token_id=None)  # fmt: skip
    greedy = SamplingSettings(max_new_tokens=20)
    assert generate(ours, prompt.tolist(), greedy, -1) == text[:, 9:].tolist()

    for model, loss in (
        (theirs, theirs(tokens, labels=tokens).loss),
        (ours, F.cross_entropy(ours(tokens, lengths)[:, :-1].flatten(0, 1),
                               tokens[:, 1:].flatten())),
    ):  # fmt: skip
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    with torch.no_grad():
        after, expected = ours(tokens, lengths), theirs(tokens).logits
    assert (after - logits).abs().max() > 0.01
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)


def test_their_language_model_here(shape, tmp_path):
    config, how = shape
    theirs = their_model(config)
    ours, origin = load_ours(save_theirs(theirs, tmp_path, **how))
    assert (tmp_path / "model.safetensors.index.json").is_file() == bool(how)
    assert origin == f"trunk and head of {tmp_path} (GPT2LMHeadModel)"
    assert (ours.head.weight is ours.wte.weight) == config.tie_word_embeddings
    assert_same_language_model(ours, theirs)


@torch.no_grad()
def test_their_fresh_language_model_here(tmp_path):
    """Fresh projections are so small that the last norm sees little but embeddings, and its epsilon
    shows; behind rough ones it does not."""
    import transformers

    theirs = transformers.GPT2LMHeadModel(their_model(SMALL).config).eval()
    ours, _ = load_ours(save_theirs(theirs, tmp_path))
    tokens, lengths = ragged_batch((64, 64), VOCABULARY)
    torch.testing.assert_close(ours(tokens, lengths), theirs(tokens).logits, atol=1e-4, rtol=0)


def save_ours(folder, config, head, settings):
    torch.manual_seed(1)
    model = make_rougher(GPT2(config, head))
    tasks = {"labels": "classification", "template": "instruction"}
    task = next((task for key, task in tasks.items() if key in settings), "pretraining")
    save_checkpoint(folder, model, Checkpoint(task, small_encoding(), settings), Progress())
    return model.eval()


TEMPLATE = {"with_input": "{instruction} {input}:", "without_input": "{instruction}:"}


def test_our_language_model_there(shape, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    config, _ = shape
    settings = {"template": TEMPLATE, "max_length": 64}
    ours = save_ours(tmp_path / "best", config, LanguageModelHead(config), settings)
    export(tmp_path / "best", tmp_path / "out")
    theirs, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert_same_language_model(ours, theirs.eval())


def mixed_batch():
    """Tokens and lengths, and the same tokens padded with `pad` as transformers wants them."""
    tokens, lengths = ragged_batch((7, 1, 30, 4), VOCABULARY - 1)
    pads = torch.arange(30) >= lengths[:, None]
    return tokens, lengths, tokens.masked_fill(pads, VOCABULARY - 1), (~pads).long()


def assert_same_classifier(ours, theirs):
    tokens, lengths, padded, mask = mixed_batch()
    with torch.no_grad():
        logits = ours(tokens, lengths)
        for attention_mask in (None, mask):
            expected = theirs(padded, attention_mask=attention_mask).logits
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert logits.abs().max() > 0.1


def test_their_classifier_here(shape, tmp_path):
    config, how = shape
    theirs = their_model(
        config, "ForSequenceClassification", pad_token_id=VOCABULARY - 1,
        id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)},
    )  # fmt: skip
    save_theirs(theirs, tmp_path, **how)
    pooling = choose_pooling(ModelSettings(model=str(tmp_path)), "")
    assert pooling == "last"
    ours, origin = load_ours(tmp_path, lambda c: ClassificationHead(c, 3, pooling), LABELS)
    assert origin.startswith("trunk and head")
    assert_same_classifier(ours, theirs)


def test_our_classifier_there(shape, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    config, _ = shape
    head = ClassificationHead(config, 3, "last")
    settings = {"labels": LABELS, "max_length": 64}
    ours = save_ours(tmp_path / "best", config, head, settings)
    export(tmp_path / "best", tmp_path / "out")
    theirs, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert list(theirs.config.id2label.values()) == LABELS
    assert_same_classifier(ours, theirs.eval())


# ---- what else a folder may hold


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
    code = f"""
import sys
sys.path[:0] = ["{REPOSITORY}", "{REPOSITORY / "tests"}"]
from pathlib import Path
from safetensors.torch import save_file
import torch
from gpt2.building import _fill
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.pretrained import to_stored_names
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
config = GPT2Config(n_layer=8, n_head=8, n_embd=512, n_positions=64, vocab_size=1000)
folder = Path("{tmp_path}")
if sys.argv[1] == "save":
    save_file(to_stored_names(GPT2(config, LanguageModelHead(config))), folder/"model.safetensors")
    sys.exit()
with torch.device("meta"):  # once before, for what torch imports at its first use
    GPT2(config, LanguageModelHead(config))
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = memory("VmRSS")
model = _fill(folder, config, LanguageModelHead(config), True)
size = 4 * sum(parameter.numel() for parameter in model.parameters())
print((memory("VmHWM") - before) / size)
"""
    for what in ("save", "load"):
        done = subprocess.run([sys.executable, "-c", code, what], env=script_environment,
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


@pytest.mark.parametrize("files", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_either_kind_of_tokenizer_file_is_enough(copy, files):
    changed, _ = copy
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
