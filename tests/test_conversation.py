"""A conversation on a terminal: answers are streamed, Ctrl-C ends one, Ctrl-D ends the program."""

import dataclasses
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY

from gpt2.checkpoint import Recipe
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import language_model_loss
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from gpt2.training import train
from instruction.data import InstructionDataset
from instruction.template import Template

ENCODING = get_encoding("mini")

# Becomes the script, with the terminal that is its first argument as its own: a session leader
# without a terminal gets the one that it opens. Whoever starts tests in the background may have
# told them to ignore Ctrl-C, which their children would inherit.
START = """
import os, signal, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for standard in (0, 1, 2):
    os.dup2(terminal, standard)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Terminal:
    """A Python script under a terminal of its own: what a person would see, and would type. Nothing
    here waits longer than `SECONDS`, and leaving the context kills the script."""

    SECONDS = 60

    def __init__(self, command, environment):
        self.screen, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, os.ttyname(inner), *map(str, command)],
            env=environment | {"TERM": "dumb"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.inner, self.seen = inner, ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(self.SECONDS)
        self.process.stderr.close()
        os.close(self.inner)
        os.close(self.screen)

    def read(self, seconds):
        """Whether something was shown in the next `seconds`; it goes to `seen`."""
        if select.select([self.screen], [], [], seconds)[0]:
            self.seen += os.read(self.screen, 65536).decode().replace("\r", "")
            return True
        return False

    def wait_for(self, text, typing=""):
        """What is shown before `text`, once that is shown. `typing` is typed again each second."""
        started, typed = time.monotonic(), 0
        while text not in self.seen:
            passed = time.monotonic() - started
            assert passed < self.SECONDS, f"no {text!r} in {self.seen[-500:]!r}"
            if typing and passed >= typed:
                self.type(typing)
                typed += 1
            if not self.read(0.2) and self.process.poll() is not None:
                pytest.fail(f"ended before {text!r}: {self.seen!r} {self.process.stderr.read()}")
        before, self.seen = self.seen.split(text, 1)
        return before

    def interrupt(self):
        """Press Ctrl-C until there is a new prompt; return what is shown before. Once may not be
        enough: between showing a prompt and waiting for keys Python does not notice it, which no
        person is fast enough to see."""
        before = self.wait_for("\n> ", typing="\x03")
        while self.read(0.5):
            pass
        self.seen = ""
        return before

    def type(self, text):
        os.write(self.screen, text.encode())

    def wait_for_end(self):
        return self.process.wait(self.SECONDS)


def respond(folder, n_positions):
    """The command that starts a conversation with a model that answers each instruction with the
    same word, over and over, until the context is full. No answer has a prompt in it."""
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=n_positions, vocab_size=8192)
    torch.manual_seed(0)
    model = GPT2(config, LanguageModelHead(config))
    (word,) = ENCODING.encode_ordinary(" fish")
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.copy_(model.wte.weight[word] * 100)
        model.wte.weight[word] *= 100
    template = Template(without_input="{instruction}")
    dataset = InstructionDataset([("What swims?", "", " fish")], template, ENCODING, 16)
    settings = {"template": dataclasses.asdict(template), "max_length": 16, "data": "fish"}
    # A run, because it saves a checkpoint; it leaves the weights almost as they are.
    config = TrainingConfig(epochs=1, batch_size=1, learning_rate=1e-9, precision="float32")
    train(model, dataset, language_model_loss, lambda: {"loss": 0.0}, config, 1, RunFolder(folder),
          Recipe("instruction", ENCODING, settings))  # fmt: skip
    return [REPOSITORY / "instruction/respond.py", folder, "--precision", "float32",
            "--max-new-tokens", n_positions]  # fmt: skip


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_program(tmp_path, script_environment):
    # 20,000 tokens: no answer is done before somebody ends it.
    with Terminal(respond(tmp_path, 20_000), script_environment) as terminal:
        terminal.wait_for("Ctrl-C ends an answer, Ctrl-D the program.")
        terminal.wait_for("\n> ")
        for _ in range(2):
            terminal.type("What swims?\n")
            terminal.wait_for("What swims?")
            terminal.wait_for(" fish fish fish")  # streamed: the end is far away
            rest = terminal.interrupt()
            assert re.fullmatch(r"( fish|\s|\^C)*", rest) and rest.count("fish") < 19_000
        terminal.interrupt()  # at the empty prompt
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.interrupt()
        terminal.type("\n")  # nothing asked, nothing answered
        assert "fish" not in terminal.wait_for("\n> ")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def test_a_prompt_beyond_the_context_does_not_end_the_conversation(tmp_path, script_environment):
    with Terminal(respond(tmp_path, 16), script_environment) as terminal:
        terminal.wait_for("\n> ")
        terminal.type("swim " * 16 + "\n")
        terminal.wait_for("leaves no room for more in the model's context of 16")
        terminal.wait_for("\n> ")
        terminal.type("Again?\n")
        assert re.fullmatch(r"Again\?\n( fish)+\n", terminal.wait_for("\n> "))
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
