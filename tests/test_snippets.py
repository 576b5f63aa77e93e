"""Every snippet of README works, in the file that README names for it; so do those of docs."""

import json
import math
import re

import torch
from test_commands import SHORT, use_tiny_mini
from test_docs import PAGES, README

import classification.evaluation
import gpt2.heads
import gpt2.model
from classification import train_gpt
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, SIZES, Block, GPT2Config


def snippet(start):
    """The Python code after the words `start`."""
    return re.search(re.escape(start) + r".*?```python\n(.*?)```", README, re.DOTALL)[1]


def test_every_snippet_is_tested_below():
    assert README.count("```python\n") == 6


def test_one_training_step_by_hand(tmp_path, monkeypatch, capsys):
    use_tiny_mini(tmp_path / "tiny mini", monkeypatch)
    exec(snippet("## One training step by hand"), {})
    *steps, accuracy = capsys.readouterr().out.splitlines()
    losses = [float(re.fullmatch(r"step \d+: loss (\S+)", line)[1]) for line in steps]
    assert len(losses) == 60
    assert abs(losses[0] - math.log(2)) < 0.05
    assert re.fullmatch(r"test accuracy \d+\.\d %", accuracy)


def test_a_pooling():
    namespace = {**vars(gpt2.heads), "POOLINGS": dict(gpt2.heads.POOLINGS)}
    exec(snippet("**A pooling**"), namespace)
    hidden = torch.tensor([[[1.0, -5.0], [0.0, -3.0], [9.0, 9.0]]])
    pooled = namespace["POOLINGS"]["max"](hidden, torch.tensor([2]), None)
    assert pooled.tolist() == [[1.0, -3.0]]


def test_a_block(monkeypatch):
    namespace = {}
    exec(snippet("**A block**"), namespace)
    config = GPT2Config(n_layer=2, n_head=1, n_embd=8, n_positions=8, vocab_size=10, dropout=0)
    model = GPT2(config, LanguageModelHead(config))
    tokens, lengths = torch.tensor([[5, 6, 7]]), torch.tensor([3])
    serial = model(tokens, lengths)
    monkeypatch.setattr(Block, "forward", namespace["forward"])
    assert not torch.equal(model(tokens, lengths), serial)
    classifier = GPT2(config, ClassificationHead(config, 2, "last"))
    last = classifier.hidden_states(tokens)[:, 2]  # the last block computes this token alone
    torch.testing.assert_close(classifier(tokens, lengths), classifier.head.score(last))


def test_a_size_with_a_head_a_loss_and_positions(tmp_path, monkeypatch, call_script):
    """One run of a model that is changed in all these places, and a prediction by it."""
    heads, losses, models = (
        dict(vars(module)) for module in (gpt2.heads, classification.evaluation, gpt2.model)
    )
    models["SIZES"] = dict(SIZES)
    exec(snippet("**A head**"), heads)
    exec(snippet("**A loss**"), losses)
    exec(snippet("**Positions**"), models)
    exec(re.search(r'`(SIZES\["nano"\] = [^`]+)`', README)[1], models)
    monkeypatch.setitem(SIZES, "nano", models["SIZES"]["nano"])
    make_head = lambda config, classes, pooling: heads["TwoLayerHead"](config, classes)  # noqa: E731
    monkeypatch.setattr(train_gpt, "ClassificationHead", make_head)
    used = []
    focal_loss = lambda *given: used.append(1) or losses["focal_loss"](*given)  # noqa: E731
    monkeypatch.setattr(train_gpt, "make_loss", lambda *settings: focal_loss)
    initialise = GPT2.__init__

    def with_sinusoids(self, config, head):
        initialise(self, config, head)
        del self.wpe
        self.wpe = lambda positions: models["sinusoids"](positions, config.n_embd)

    monkeypatch.setattr(GPT2, "__init__", with_sinusoids)
    arguments = f"--model nano --init random --out run {SHORT['classification/train_gpt.py']}"
    done = call_script("classification/train_gpt.py", *arguments.split())
    assert done.returncode == 0, done.stderr
    assert used
    saved = json.loads((tmp_path / "run/best/config.json").read_text())
    assert saved["head"] == {"kind": "TwoLayerHead", "num_classes": 2, "width": 64}
    done = call_script("classification/predict.py", "run", "a fine film")
    assert done.returncode == 0, done.stderr
    config = SIZES["nano"]
    model = GPT2(config, LanguageModelHead(config)).eval()
    once, again = (
        model.hidden_states(torch.tensor([row]))[0, -1] for row in ([5, 6, 7], [6, 5, 7])
    )
    assert not torch.allclose(once, again)  # it sees the order of what stands before


def test_the_page_on_python(tmp_path, monkeypatch, call_script, capsys):
    """Its snippets one after the other, as in one notebook, after README's two first runs."""
    use_tiny_mini(tmp_path / "tiny mini", monkeypatch)
    for script in ("classification/train_gpt.py", "instruction/instruction_finetuning.py"):
        done = call_script(script, *SHORT[script].split())
        assert done.returncode == 0, done.stderr
    snippets = re.findall(r"```python\n(.*?)```", PAGES["docs/python.md"], re.DOTALL)
    assert len(snippets) == 4
    names, printed = {}, []
    for code in snippets:
        exec(code, names)
        printed.append(capsys.readouterr().out)
    labels, answers, training, attention = printed
    *each, last = labels.splitlines()
    assert [re.match(r"(positive|negative) \{", line) is not None for line in each] == [True, True]
    assert re.fullmatch(r"\d+\.\d% positive", last)
    assert [len(eval(line)) for line in answers.splitlines() if line.startswith("[")] == [1, 2]
    assert "5 steps, the best was " in training
    assert [text for text, _ in eval(training.splitlines()[-1])] == names["more"]
    shares = [float(line.split("%")[0]) for line in attention.splitlines()]
    assert len(shares) == len(names["tokens"]) and abs(sum(shares) - 100) < 1


def test_the_page_on_an_own_task(tmp_path, monkeypatch, call_script, capsys):
    use_tiny_mini(tmp_path / "tiny mini", monkeypatch)
    script, short = "classification/train_gpt.py", SHORT["classification/train_gpt.py"].split()
    page = PAGES["docs/own-task.md"]
    look, mistakes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert call_script("classification/make_tickets.py", "tickets.csv").returncode == 0
    exec(look, {})
    printed = capsys.readouterr().out
    own = re.findall(r"^\| (\w+) +\| +(\d+) \| +(\d+) \| +\d+ \|$", page, re.MULTILINE)
    assert len(own) == 5
    for line in own:
        assert re.search(r" {} +┆ {} +┆ {}\.".format(*line), printed), line  # the page's own table
    copies = re.search(r"(\d+) rows have a text that stands there twice", page)[1]
    assert f"{copies} rows have a text that another row has too" in printed
    done = call_script(script, "--data", "tickets.csv", "--label-column", "queue", *short,
                       "--max-test", 60, "--out", "runs/tickets")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {}
    exec(mistakes, names)
    results = json.loads((tmp_path / "runs/tickets/results.json").read_text())
    wrong = names["confident"]
    assert len(wrong) == round(60 * (1 - results["after"]["test"]["accuracy"]))
    assert wrong["text"][0] == results["mistakes"][0]["text"]
