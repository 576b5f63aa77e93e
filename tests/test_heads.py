"""A head is one argument: a class in gpt2/heads.py and its name in make_head; the rest follows."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, refused
from safetensors.torch import load_file
from test_checkpoint import optimizer_of
from torch import nn

from classification import train_gpt
from gpt2.batching import collate
from gpt2.checkpoint import (
    Recipe,
    TrainingState,
    load_checkpoint,
    load_training,
    save_checkpoint,
)
from gpt2.heads import (
    POOLINGS,
    ClassificationHead,
    Head,
    LanguageModelHead,
    build_head,
    describe_head,
)
from gpt2.model import GPT2, GPT2Config
from gpt2.support.errors import UserError
from gpt2.tokenizer import get_encoding
from gpt2.weights.building import ModelSettings, build_model, choose_config

CONFIG = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=16, vocab_size=8192, dropout=0.0)
RECIPE = Recipe("classification", get_encoding("mini"), {"labels": ["bad", "good"],
                "max_length": 16, "truncation": "head"})  # fmt: skip
SCRATCH = ("--model", "scratch", "--n-layer", 1, "--n-head", 1, "--n-embd", 16)

UNKNOWN = "its model cannot be built: this checkout's gpt2/heads.py has no head 'NarrowHead'"

# --- as a user does it, in a copy of the repository

NEW_HEAD = '''

class NarrowHead(Head):
    """Two layers over the mean of the row."""

    def __init__(self, config, classes, width):
        super().__init__(classes=classes, width=width)
        self.narrow = nn.Linear(config.n_embd, width)
        self.decide = nn.Linear(width, classes)

    def forward(self, hidden, lengths):
        return self.decide(torch.tanh(self.narrow(pool_mean(hidden, lengths))))
'''
OLD_CALL = "ClassificationHead(gpt2_config, len(splits.labels), head.pooling)"
OLD_IMPORT = "from gpt2.heads import POOLINGS, ClassificationHead, Head"
TEXTS = ["A dull start, but what an ending!", "no", "fine film & fine actors " * 9]

# What a user types, one command after another. One process, because each costs seconds.
COMMANDS = """
import contextlib, io, json, runpy, sys, warnings

def call(run, name, *arguments):
    sys.argv, status = [name, *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, \\
         contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            run(name, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    return [status, out.getvalue(), err.getvalue()]

warnings.simplefilter("ignore", RuntimeWarning)  # runpy's: a module that is imported already
copy, scratch, tiny, *texts = sys.argv[1:]
tiny = *tiny.split(), "--max-steps", "1"
raw = ["--json", "--raw", "--precision", "float32"]
train, predict = (f"{copy}/classification/{name}.py" for name in ("train_gpt", "predict"))
print(json.dumps({
    "train": call(runpy.run_path, train, *scratch.split(), *tiny, "--out", "run"),
    "resume": call(runpy.run_path, train, "--resume", "run", "--max-steps", "3"),
    "predict": call(runpy.run_path, predict, "run", *raw, *texts),
    "export": call(runpy.run_module, "gpt2.weights.export", "run", "exported"),
    "train --export": call(runpy.run_path, train, *tiny, "--export", "exported"),
    "go on": call(runpy.run_path, train, *tiny, "--model", "run", "--out", "on"),
    "where": sys.modules["gpt2"].__file__,
}))
"""


def replace_once(file, old, new):
    content = file.read_text("utf-8")
    assert content.count(old) == 1, f"{old} stands {content.count(old)} times in {file}"
    file.write_text(content.replace(old, new), "utf-8")


def probabilities_by_hand(weights, text):
    """Of the new head: the saved tensors in this process's trunk and in the head's formula."""
    config = GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=512, vocab_size=8192)
    model = GPT2(config, ClassificationHead(config, 2)).eval()
    trunk = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    assert model.load_state_dict(trunk, strict=False).missing_keys == ["head.score.weight"]
    tokens = torch.tensor([get_encoding("mini").encode_ordinary(text.strip())])
    pooled = model.hidden_states(tokens).mean(dim=1)
    narrow = torch.tanh(pooled @ weights["head.narrow.weight"].T + weights["head.narrow.bias"])
    logits = narrow @ weights["head.decide.weight"].T + weights["head.decide.bias"]
    return logits.softmax(dim=1)[0].tolist()


def test_a_new_head_trains_saves_resumes_predicts_and_is_not_exported(
    script_environment, call_script, tmp_path
):
    copy, work = tmp_path / "copy", tmp_path / "work"
    for file in REPOSITORY.glob("*/__init__.py"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(file.parent, copy / file.parent.name, ignore=ignored)
    with open(copy / "gpt2/heads.py", "a", encoding="utf-8") as file:
        file.write(NEW_HEAD)
    train = copy / "classification/train_gpt.py"
    replace_once(train, OLD_CALL, "NarrowHead(gpt2_config, len(splits.labels), width=5)")
    replace_once(train, OLD_IMPORT, "from gpt2.heads import POOLINGS, Head, NarrowHead")
    work.mkdir()
    paths = script_environment["PYTHONPATH"].replace(str(REPOSITORY), str(copy))
    assert str(copy) in paths.split(os.pathsep)

    tiny = "--max-train 40 --max-test 8 --precision float32 --max-length 64"
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS, copy, " ".join(map(str, SCRATCH)), tiny, *TEXTS],
        cwd=work, capture_output=True, text=True,
        env=script_environment | {"PYTHONPATH": paths}, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    done = json.loads(ended.stdout)
    assert done.pop("where") == str(copy / "gpt2/__init__.py")

    status, said, errors = done["train"]
    assert status == 0 and "random weights" in said and "pooling" not in said, errors
    status, said, errors = done["resume"]
    assert status == 0 and "going on after step 1 of 3" in said, errors
    for name, step in (("best", 3), ("last", 3)):
        saved = json.loads((work / "run" / name / "config.json").read_text())
        assert saved["head"] == {"kind": "NarrowHead", "classes": 2, "width": 5}
        assert saved["step"] == step
    weights = load_file(work / "run/best/model.safetensors")
    assert weights["head.narrow.weight"].shape == (5, 16)
    moments = load_file(work / "run/last/optimizer.safetensors")
    assert moments["head.decide.bias/step"] == 3

    status, said, errors = done["predict"]
    assert status == 0, errors
    answers = [json.loads(line) for line in said.splitlines()]
    assert [answer["text"] for answer in answers] == TEXTS
    for answer in answers:
        by_hand = probabilities_by_hand(weights, answer["text"])
        assert list(answer["probabilities"].values()) == pytest.approx(by_hand, abs=1e-6)

    reason = "NarrowHead cannot be exported: transformers has no head that does the same"
    for command in ("export", "train --export"):
        status, _, errors = done[command]
        assert status == 2 and reason in errors and len(errors.splitlines()) == 1, errors
    assert sorted(path.name for path in work.iterdir()) == ["on", "run"]  # no half of an export

    status, said, errors = done["go on"]
    assert status == 0 and "model: run, trunk and head of run/best" in said, errors
    ended, went_on = (
        json.loads((work / name / "results.json").read_text()) for name in ("run", "on")
    )
    assert went_on["before"]["test"]["loss"] == pytest.approx(ended["after"]["test"]["loss"])

    # here, where the class does not stand in gpt2/heads.py
    for script, *arguments in (
        ("classification/predict.py", "run", "fine"),
        ("classification/train_gpt.py", "--model", "run", "--max-steps", 1),
        ("classification/train_gpt.py", "--resume", "run", "--max-steps", 4),
        ("gpt2/weights/export.py", "run", "exported"),
    ):
        refused(call_script(script, *arguments, cwd=work), "config.json: " + UNKNOWN)


# --- what a checkpoint says of a head


class Sharper(ClassificationHead):
    """The parameters of a stock head, but twice its logits."""

    def forward(self, hidden, lengths):
        return 2 * super().forward(hidden, lengths)


class Layered(Head):
    def __init__(self, config, widths, options=None):
        super().__init__(widths=widths, options=options)
        sizes = [config.n_embd, *widths]
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))

    def forward(self, hidden, lengths):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, 0]


@pytest.mark.parametrize(
    "make_head, description",
    [
        (LanguageModelHead, {"kind": "language model"}),
        *[(lambda c, p=p: ClassificationHead(c, 3, p),
           {"kind": "classification", "num_classes": 3, "pooling": p}) for p in POOLINGS],
        (lambda c: Sharper(c, 2), {"kind": "Sharper", "num_classes": 2, "pooling": "mean"}),
        (lambda c: Layered(c, [4, 2], {"a": [1, None]}),
         {"kind": "Layered", "widths": [4, 2], "options": {"a": [1, None]}}),
    ],
)  # fmt: skip
def test_a_head_is_built_again_from_its_description(make_head, description):
    head = make_head(CONFIG)
    assert describe_head(head) == description
    again = build_head(CONFIG, json.loads(json.dumps(description)))
    assert type(again) is type(head) and describe_head(again) == description
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in head.state_dict().items()
    }
    again.load_state_dict(head.state_dict())
    if isinstance(head, LanguageModelHead):
        return  # GPT2 gives it its weights
    hidden, lengths = torch.randn(2, 3, 8), torch.tensor([3, 2])
    assert torch.equal(head(hidden, lengths), again(hidden, lengths))


def saved_with(make_head, folder):
    """A checkpoint to resume from; returns its model."""
    folder.parent.mkdir()
    torch.manual_seed(0)
    model = GPT2(CONFIG, make_head(CONFIG, 2)).eval()
    save_checkpoint(folder, model, RECIPE, TrainingState(step=1), optimizer_of(model), "rows")
    return model


def test_a_subclass_with_the_same_weights_is_not_taken_for_its_parent(tmp_path, monkeypatch):
    ours = saved_with(Sharper, tmp_path / "ours/best")
    stock = saved_with(ClassificationHead, tmp_path / "stock/best")
    batch = collate([(torch.tensor([1, 2, 3]), torch.tensor(0))])
    for name, model in (("ours", ours), ("stock", stock)):
        loaded, _ = load_checkpoint(tmp_path / name, "classification")
        assert type(loaded.head) is type(model.head)
        logits = loaded(batch.tokens, batch.lengths)
        assert torch.equal(logits, model(batch.tokens, batch.lengths))
        for other in (ours, stock):  # to resume with another head is refused
            if other is model:
                load_training(tmp_path / name / "best", other, optimizer_of(other), "rows")
                continue
            before = {key: value.clone() for key, value in other.state_dict().items()}
            with pytest.raises(UserError, match=r"best: was saved with the head .*pooling"):
                load_training(tmp_path / name / "best", other, optimizer_of(other), "rows")
            assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())

    settings = ModelSettings(model=str(tmp_path / "ours"))
    config, _ = choose_config(settings)
    labels = RECIPE.settings["labels"]
    for make_head, origin in (
        (ClassificationHead, "trunk, new head (the old one was a Sharper head), of "),
        (Sharper, "trunk and head of "),
    ):
        _, said = build_model(settings, config, lambda c: make_head(c, 2), "all", 1, labels)  # noqa: B023
        assert said.startswith(origin)

    monkeypatch.setattr(Sharper, "kind", "renamed", raising=False)  # as if it were not there
    with pytest.raises(
        UserError, match=r"best/config.json: its model .* no head 'Sharper'"
    ) as error:
        load_checkpoint(tmp_path / "ours", "classification")
    assert "\n" not in str(error.value)


# --- what cannot be saved is refused before it is trained


@pytest.mark.parametrize(
    "value",
    [{1, 2}, torch.ones(1), (4, 2), float("nan"), {1: "a"}, torch.tanh, [{"a": ()}]],
    ids=["set", "tensor", "tuple", "nan", "number as key", "function", "tuple inside"],
)
def test_an_argument_that_json_cannot_hold_is_refused_at_once(value):
    with pytest.raises(TypeError, match=r"Layered: options=.* would not come back from a check"):
        Layered(CONFIG, [2], options=value)


class SaysNothing(ClassificationHead):
    """Takes what it does not hand on."""

    def __init__(self, config, num_classes, pooling, width):
        super().__init__(config, num_classes, pooling)


class ForgetsItsWidth(Head):
    def __init__(self, config, num_classes, pooling="mean", width=4):
        super().__init__(num_classes=num_classes, pooling=pooling)
        self.layer = nn.Linear(width, num_classes)


@pytest.mark.parametrize(
    "make_head, why",
    [
        (lambda *given: SaysNothing(*given, 4), "missing 1 required positional argument: 'width'"),
        (lambda *given: ForgetsItsWidth(*given, 5), "its weights would have other names or shapes"),
    ],
    ids=["an argument is missing", "other shapes"],
)
def test_a_head_that_would_not_come_back_is_refused_before_training(
    make_head, why, call_script, monkeypatch, tmp_path
):
    monkeypatch.setattr(train_gpt, "ClassificationHead", make_head)
    done = call_script("classification/train_gpt.py", *SCRATCH, "--max-steps", 1, "--out", "run")
    refused(done, "cannot be built again from what", "{'num_classes': 2, 'pooling': 'mean'}", why)
    assert not (tmp_path / "run").exists()


def test_two_heads_of_one_kind_are_refused(call_script, monkeypatch):
    """A class that was copied with its `kind`: a checkpoint could not say which of them it has."""
    monkeypatch.setattr(Sharper, "kind", "classification", raising=False)
    monkeypatch.setattr(train_gpt, "ClassificationHead", Sharper)
    done = call_script("classification/train_gpt.py", *SCRATCH, "--max-steps", 1)
    refused(done, "ClassificationHead and Sharper are both of the kind 'classification'")


def test_the_look_at_the_head_draws_no_random_numbers():
    """Runs with a seed give the numbers that they gave before."""
    settings = ModelSettings(model="scratch", n_layer=1, n_head=1, n_embd=8)
    config, _ = choose_config(settings)
    build_model(settings, config, lambda c: ClassificationHead(c, 2), "all", seed=5)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    GPT2(config, ClassificationHead(config, 2))
    assert torch.equal(torch.get_rng_state(), after)


def test_a_module_that_is_no_head_is_refused():
    with pytest.raises(TypeError, match=r"Linear is no head: make it a subclass of gpt2.heads.Hea"):
        GPT2(CONFIG, nn.Linear(8, 2))
