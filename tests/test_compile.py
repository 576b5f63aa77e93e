"""--compile: the same numbers, one piece of code for rows of any length, one line if it cannot be.
Tests have all of torch.compile but the C++ at its end, which takes long; one test has that too."""

import copy
import shutil

import pytest
import torch
from conftest import REPOSITORY, refused
from test_training import run_training, tiny_model
from torch._dynamo.testing import CompileCounter

import gpt2.model
from gpt2 import compiling
from gpt2.compiling import check_compiler, compile_blocks
from gpt2.generation import SamplingSettings, generate
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig
from gpt2.support.errors import UserError
from gpt2.support.same_logits import compute_logits, fixed_rows

CONFIG = GPT2Config(n_layer=3, n_head=2, n_embd=16, n_positions=512, vocab_size=97, dropout=0.0)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What compiling changes in the whole process."""
    monkeypatch.setattr(gpt2.model, "_attention_in_blocks", gpt2.model._attention_in_blocks)
    limit, duck = (
        torch._dynamo.config.cache_size_limit,
        torch.fx.experimental._config.use_duck_shape,
    )
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch._dynamo.config.cache_size_limit = limit
    torch.fx.experimental._config.use_duck_shape = duck


@pytest.fixture
def counter(monkeypatch):
    """Counts the pieces of code, which are the operations as they are written."""
    return compile_with(monkeypatch, CompileCounter())


def compile_with(monkeypatch, backend):
    monkeypatch.setattr(compiling, "check_compiler", lambda device: None)
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda code, **how: compiler(code, backend=backend, **how)
    )
    return backend


def both(head):
    """A model, and the same compiled."""
    torch.manual_seed(0)
    plain = GPT2(CONFIG, head)
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    return plain, compiled


def gradient(model, tokens):
    """Of a sum of logits; None in evaluation."""
    model.zero_grad()
    logits = model(tokens, torch.full((len(tokens),), tokens.size(1)))
    if model.training:
        logits.sum().backward()
        return model.wte.weight.grad
    return logits


def test_training_and_evaluation_compile_once_whatever_the_length(counter):
    """Once more for a batch of a single row. All blocks share what is compiled."""
    plain, compiled = both(ClassificationHead(CONFIG, 2))
    counts = []
    for training in (True, False):
        for rows in (3, 1):
            for length in (200, 100, 300, 16, 512):
                tokens = torch.randint(97, (rows + (length == 100) * (rows > 1), length))
                found = []
                for model in (plain, compiled):
                    model.train(training)
                    with torch.set_grad_enabled(training):
                        found.append(gradient(model, tokens))
                torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
                counts.append(counter.frame_count)
    assert counts[0] > 0
    for place in (0, 5, 10, 15):  # each length after the first compiles nothing
        assert counts[place : place + 5] == [counts[place]] * 5, counts
    assert counts[-1] <= 6, counts
    # the two short rows with which a checkpoint is compared are not worth it
    compute_logits(compiled, *fixed_rows(512, 97))
    assert counter.frame_count == counts[-1]


def test_answers_compile_once_for_prompts_and_once_for_tokens(counter):
    plain, compiled = both(LanguageModelHead(CONFIG))
    plain.eval(), compiled.eval()
    counts = []
    for lengths in ((3, 5), (7, 2), (4, 4, 9), (1, 30)):
        prompts = [list(range(1, length + 1)) for length in lengths]
        answers = [
            generate(model, prompts, SamplingSettings(12), stop_token=-1)
            for model in (plain, compiled)
        ]
        assert answers[0] == answers[1]
        counts.append(counter.frame_count)
    assert 0 < counts[0] <= 3 and counts == counts[:1] * 4


def test_the_last_block_is_compiled_only_where_all_its_tokens_are_read(counter):
    """Otherwise it would need a piece of code of its own."""
    plain, compiled = both(ClassificationHead(CONFIG, 2, "last"))
    calls = []
    forward = compiled.h[-1].mlp.forward
    compiled.h[-1].mlp.forward = lambda x: calls.append(x.dim()) or forward(x)
    tokens = torch.randint(97, (3, 20))
    torch.testing.assert_close(gradient(plain, tokens), gradient(compiled, tokens))
    assert calls == [2]  # (N, C)


def test_a_compiled_run_is_saved_and_resumed_as_any_other(tmp_path, counter):
    """Here to the last bit. With the C++ of torch's own compiler a resumed run may differ in it:
    what it compiles depends on the batch that it meets first (docs/speed.md)."""
    for name, compiles, steps in (("plain", 0, (4,)), ("whole", 1, (4,)), ("resumed", 1, (2, 4))):
        for number, last in enumerate(steps):
            model = tiny_model(dropout=0.1)
            if compiles:
                compile_blocks(model)
            config = TrainingConfig(max_steps=last, epochs=9, batch_size=4, log_every=1,
                                    schedule="constant", warmup=0, precision="float32",
                                    activation_checkpointing=bool(compiles))  # fmt: skip
            run_training(tmp_path / name, config, model, resume=number > 0)
    files = "last/model.safetensors", "last/optimizer.safetensors"
    for file in files:
        bytes_of = {
            run: (tmp_path / run / file).read_bytes() for run in ("plain", "whole", "resumed")
        }
        assert bytes_of["plain"] == bytes_of["whole"] == bytes_of["resumed"]
    assert counter.frame_count > 0
    assert "sums differ in their last bit" in (REPOSITORY / "docs/speed.md").read_text()


def test_without_a_compiler_it_is_refused_before_anything_is_done(
    call_script, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    run = tmp_path / "run"
    done = call_script("classification/train_gpt.py", "--compile", "--out", run)
    refused(done, "--compile needs a C++ compiler (g++ or clang++)")
    assert not run.exists()


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_compiler(torch.device("cpu"))
    with pytest.raises(UserError, match="triton"):
        check_compiler(torch.device("cuda"))


def test_it_does_not_go_with_sharding(call_script, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    done = call_script(
        "classification/train_gpt.py", "--compile", "--shard", "--out", tmp_path / "r"
    )
    refused(done, "--compile and --shard do not go together")


def test_a_compiler_that_fails_ends_with_one_line(monkeypatch):
    def fails(*_):
        raise RuntimeError("Python.h: no such file\nand more")

    compile_with(monkeypatch, fails)
    _, compiled = both(ClassificationHead(CONFIG, 2))
    with pytest.raises(UserError, match=r"--compile: .*no such file and more.*leave --compile out"):
        gradient(compiled, torch.randint(97, (2, 5)))


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_what_torch_compiles_computes_the_same():
    plain, compiled = both(ClassificationHead(CONFIG, 2))
    plain.eval(), compiled.eval()
    for length in (20, 30):
        tokens = torch.randint(97, (3, length))
        with torch.no_grad():
            torch.testing.assert_close(gradient(compiled, tokens), gradient(plain, tokens))


TRAINED = {
    "classification/train_gpt.py": ("predict.py", "evaluate.py"),
    "instruction/instruction_finetuning.py": ("respond.py", "evaluate.py"),
}


@pytest.mark.parametrize("script", TRAINED)
def test_scripts_that_train_and_that_use_a_run_compile(script, call_script, tmp_path, monkeypatch):
    """Whatever --compile is to them: here it notes the model."""
    compiled, folder = [], script.split("/")[0]
    monkeypatch.setattr("gpt2.one_run.check_compiler", lambda device: None)
    shape = "--model", "scratch", "--n-layer", 1, "--n-head", 1, "--n-embd", 8
    few = "--max-train", 16, "--max-validation", 2, "--max-test", 2, "--max-steps", 1
    answers = ("--test-answers", 1, "--answer-tokens", 1) if folder == "instruction" else ()
    run = tmp_path / "run"
    monkeypatch.setattr("gpt2.one_run.compile_blocks", compiled.append)
    done = call_script(script, *shape, *few, *answers, "--compile", "--out", run)
    assert done.returncode == 0 and len(compiled) == 1, done.stderr
    for user in TRAINED[script]:
        name = user.removesuffix(".py")
        monkeypatch.setattr(f"{folder}.{name}.compile_blocks", compiled.append)
        more = {"predict": ["fine"], "respond": ["Hi", "--max-new-tokens", 1]}.get(name, answers)
        done = call_script(f"{folder}/{user}", run, *more, "--compile")
        assert done.returncode == 0, done.stderr
    assert len(compiled) == 3
