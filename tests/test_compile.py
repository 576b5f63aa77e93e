"""--compile: the same training, with the same code for rows of any length; generation without."""

import pytest
import torch
from conftest import refused
from test_training import run_training
from torch._dynamo.testing import CompileCounter

import gpt2.model
import gpt2.optimization
from gpt2.command_line import UserError
from gpt2.generation import SamplingSettings, generate
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, GPT2Config, compile_blocks
from gpt2.optimization import TrainingConfig

CONFIG = GPT2Config(n_layer=6, n_head=2, n_embd=32, n_positions=512, vocab_size=97, dropout=0.0)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Compiling takes attention's formula out of what is compiled, in the whole process."""
    monkeypatch.setattr(gpt2.model, "_attention_in_blocks", gpt2.model._attention_in_blocks)
    yield
    torch.compiler.reset()


def compile_with(monkeypatch, backend):
    """Let torch.compile end with `backend`, for which no compiler is needed."""
    monkeypatch.setattr(gpt2.optimization, "has_compiler", lambda: True)
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda block, **how: compiler(block, backend=backend, **how)
    )


def test_rows_of_another_length_compile_nothing_anew(monkeypatch):
    """Nor does another block: the parts of attention, one for each 128 tokens, are left out."""
    counter = CompileCounter()
    compile_with(monkeypatch, counter)
    model = GPT2(CONFIG, LanguageModelHead(CONFIG))
    compile_blocks(model)
    counts = []
    for length in (200, 100, 300, 512, 7):
        tokens = torch.randint(97, (3, length))
        at = torch.tensor([0, 1, 2]), torch.tensor([length - 1, 2, 3])
        with torch.autocast("cpu", torch.bfloat16):
            model.hidden_states(tokens, at=at).sum().backward()
        counts.append(counter.frame_count)
    assert 0 < counts[0] < 2 * CONFIG.n_layer
    assert counts == counts[:1] * 5


def test_compiled_training_is_the_same_training(tmp_path, monkeypatch):
    """All of torch.compile but the C++ at its end, which takes a minute to be compiled."""
    compile_with(monkeypatch, "aot_eager")
    logs = []
    for how in (False, True):
        config = TrainingConfig(epochs=2, batch_size=4, log_every=1, compile=how)
        model, _, log = run_training(tmp_path / str(how), config)
        assert len(model.compiled_blocks) == how * len(model.h)
        logs.append(log)
    for plain, compiled in zip(*logs, strict=True):
        if "loss" in plain:
            assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-4)
            assert compiled["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-3)


def test_generation_runs_the_blocks_as_they_are():
    model = GPT2(CONFIG, LanguageModelHead(CONFIG)).eval()
    prompts, settings = [[1, 2, 3], [4]], SamplingSettings(max_new_tokens=4)
    answers = generate(model, prompts, settings, stop_token=-1)
    model.compiled_blocks = [None] * CONFIG.n_layer  # calling one would fail
    assert generate(model, prompts, settings, stop_token=-1) == answers


def test_without_a_compiler_it_is_refused_before_anything_is_done(
    call_script, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = call_script("classification/train_gpt.py", "--compile", "--out", tmp_path / "run")
    refused(done, "--compile needs a C++ compiler (g++ or clang++); use --no-compile")
    assert not (tmp_path / "run").exists()


def test_a_compiler_that_fails_ends_the_run_with_one_line(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("Python.h: no such file\nand more")

    compile_with(monkeypatch, fails)
    config = TrainingConfig(epochs=1, compile=True)
    with pytest.raises(UserError) as error:
        run_training(tmp_path / "run", config)
    assert "RuntimeError: Python.h: no such file and more" in str(error.value)
    assert "use --no-compile" in str(error.value)
