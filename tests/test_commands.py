"""Every command of README and docs runs.

They run on small stand-ins for data and models (a small hub's for the hub's), cut short by flags
that are appended; what they cost in full is for the reader to see, not for a test. The two commands
that install are those of `.ci/run`.
"""

import io
import json
import re
import shlex
import shutil
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import polars as pl
import pytest
import torch
from conftest import REPOSITORY, SHARED, refused
from safetensors.torch import save_file
from small_hub import SmallHub, turn_client_to
from test_docs import PAGES, README
from tiny_encoders import save_tiny_encoder
from torch.distributed.run import get_args_parser as torchrun_parser

from classification.sources import SAMPLE
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, SIZES, GPT2Config
from gpt2.support.splits import hub_name
from gpt2.weights.encoders import RELEASED_ENCODERS, EncoderSettings
from gpt2.weights.hugging_face import download_released, to_stored_names
from instruction.sources import SAMPLE as INSTRUCTIONS

INSTALLS = [
    "pip install -e . && python classification/train_gpt.py",
    "pip install -e '.[test]' && pytest -n auto",
]

# README's first runs, which other pages start from.
FIRST = ["python classification/train_gpt.py", "python instruction/instruction_finetuning.py"]


def commands_of(text):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


# The later of two equal flags counts, so these shorten any command of the script.
SHORT_TRAINING = "--max-train 8 --max-validation 4 --max-test 4 --max-steps 1 --batch-size 8"
SHORT = {
    "classification/train_gpt.py": f"{SHORT_TRAINING} --max-length 16",
    "baselines/train_encoder.py": f"{SHORT_TRAINING} --max-length 16",
    "instruction/instruction_finetuning.py": f"{SHORT_TRAINING} --max-length 128 --test-answers 2 "
    "--answer-tokens 2",
    "pretraining/pretrain.py": "--max-train 8 --max-validation 2 --max-steps 1 --max-length 32",
    "pretraining/sample.py": "--max-new-tokens 4",
    "instruction/respond.py": "--max-new-tokens 4",
    "instruction/evaluate.py": "--test-answers 2 --answer-tokens 2",
    "benchmarks/decoding_speed.py": "--new-tokens 4 --repeats 1",
    "benchmarks/scaling.py": "--model mini --models mini --lengths 8 --max-length 8 "
    "--batch-sizes 2 --batch-size 2 --steps 2",
    "benchmarks/operations.py": "--model mini --max-length 8 --batch-size 2 --steps 2",
    "benchmarks/memory.py": "--max-length 8 --batch-size 2",
    "benchmarks/throughput.py": "--rows 4 --rounds 1 --new-tokens 2 --tasks generation "
    "--max-length 128 --model mini",
}


def use_tiny_mini(folder, monkeypatch):
    """Make `mini` one of a few thousand weights: to read and save seven million takes most of a
    test."""
    config = GPT2Config(n_layer=2, n_head=1, n_embd=8, n_positions=512, vocab_size=8192)
    torch.manual_seed(0)
    folder.mkdir()
    model = GPT2(config, LanguageModelHead(config))
    save_file(to_stored_names(model), folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setitem(SIZES, "mini", config)
    for module in ("building", "loading"):
        monkeypatch.setattr(f"gpt2.weights.{module}.MINI_FOLDER", folder)


# Which file is which split there, its card alone says.
ULTRACHAT_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train_sft
    path: data/train_sft-*
  - split: test_sft
    path: data/test_sft-*
  - split: train_gen
    path: data/train_gen-*
---
"""


def lines_of(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def data_sets():
    """The data sets of the hub that the pages name, with a few rows in files as they are there."""
    rows = pl.read_csv(SAMPLE).sample(60, seed=0).to_dicts()
    reviews = lines_of({"sentence": row["text"], "label": row["label"]} for row in rows)
    unlabelled = lines_of({"sentence": row["text"], "label": None} for row in rows[:5])
    asked = json.loads(INSTRUCTIONS.read_text())[:30]
    dolly = lines_of(
        {"instruction": row["instruction"], "response": row["output"]} for row in asked
    )
    turns = [
        [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
        for row in asked
    ]
    chats = [{"messages": chat} for chat in turns]
    return {
        "fancyzhx/ag_news": {
            "data/train-0.jsonl": lines_of(rows[:40]),
            "data/test-0.jsonl": lines_of(rows[40:]),
        },
        "nyu-mll/glue": {
            "sst2/train-0.jsonl": reviews,
            "sst2/test-0.jsonl": unlabelled,
            "mrpc/train-0.jsonl": reviews,
        },
        "databricks/databricks-dolly-15k": {"databricks-dolly-15k.jsonl": dolly},
        "HuggingFaceH4/ultrachat_200k": {
            "README.md": ULTRACHAT_CARD.encode(),
            "data/train_sft-0.jsonl": lines_of(chats[:20]),
            "data/test_sft-0.jsonl": lines_of(chats[20:]),
            "data/train_gen-0.jsonl": lines_of(chats[:20]),
        },
    }


@contextmanager
def hub_of(script, arguments, monkeypatch, encoder):
    """A small hub with the data set or the encoder that a command names, and whether it names one.
    All encoders are the one in the folder `encoder`."""
    if script == "baselines/train_encoder.py":
        named = arguments[arguments.index("--model") + 1] if "--model" in arguments else ""
        if named in (*RELEASED_ENCODERS, ""):
            repository, revision, _ = RELEASED_ENCODERS[named or EncoderSettings.model]
            files = {file.name: file.read_bytes() for file in encoder.iterdir()}
            with SmallHub(repository, revision, files, "models") as own:
                turn_client_to(own, monkeypatch)
                yield True
            return
    found = [hub_name(word) for word in arguments]
    names = [name["repository"] for name in found if name and name["repository"] in data_sets()]
    if not names:
        yield False
        return
    with SmallHub(names[0], "1" * 40, data_sets()[names[0]]) as own:
        turn_client_to(own, monkeypatch)
        yield True


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory):
    """Where the runs of `FIRST` are kept, in a folder for each script."""
    return tmp_path_factory.mktemp("first runs")


@pytest.fixture
def here(tmp_path):
    """A folder in which every path that the commands name exists, with a few rows each."""
    folder, shared = tmp_path / "here", tmp_path / "shared"
    for new in (folder / "ag_news", shared / "alpaca", shared / "imdb/plain_text"):
        new.mkdir(parents=True)
    rows = pl.read_csv(SAMPLE).sample(60, seed=0)
    rows = rows.with_columns(split=pl.Series(["train", "train", "test"] * 20))
    rows.write_csv(folder / "mine.csv")
    rows.select("text", "label").write_csv(folder / "more.csv")
    rows.select("text").write_csv(folder / "unlabelled.csv")
    rows.select("text").write_csv(folder / "new.csv")
    rows.select("text").write_ndjson(folder / "new.jsonl")
    rows.select(title="text", body="text").write_parquet(folder / "new.parquet")
    rows.write_ndjson(folder / "mine.jsonl")
    rows.select(body="text", topic="label").write_csv(folder / "mine.tsv", separator="\t")
    rows.select("label", "text").write_csv(
        folder / "SMSSpamCollection", separator="\t", include_header=False
    )
    for name, part in (("train", rows[:40]), ("test", rows[40:])):
        part.select("label", title="text", body="text").write_csv(
            folder / f"ag_news/{name}.csv", include_header=False
        )
    numbers = rows.with_columns(pl.col("label").replace_strict({"negative": 0, "positive": 1}))
    for name, part in (("train", numbers[:40]), ("test", numbers[40:])):
        part.select("text", "label").write_parquet(
            shared / f"imdb/plain_text/{name}-00000-of-00001.parquet"
        )
        for short, value in (("neg", 0), ("pos", 1)):
            texts = part.filter(label=value)["text"]
            (folder / "aclImdb" / name / short).mkdir(parents=True)
            for number, text in enumerate(texts):
                (folder / f"aclImdb/{name}/{short}/{number}_5.txt").write_text(text)
            (folder / f"aclImdb/{name}/urls_{short}.txt").write_text(
                "".join(f"http://www.imdb.com/title/tt{name}{i // 2}/\n" for i in range(len(texts)))
            )
    shutil.copy(folder / "new.jsonl", folder / "requests.jsonl")
    (folder / "reviews.txt").write_text("a fine film\nno\n")
    for name in ("alpaca_data_cleaned", "alpaca_gpt4_1k"):
        shutil.copy(INSTRUCTIONS, shared / f"alpaca/{name}.json")
    rows = json.loads(INSTRUCTIONS.read_text())
    own = [{"question": row["instruction"], "answer": row["output"]} for row in rows[:60]]
    (folder / "mine_qa.jsonl").write_text("\n".join(map(json.dumps, own)))
    faq = pl.DataFrame(own).select(asked="question", told="answer")
    faq.write_csv(folder / "mine_faq.csv")
    news = pl.DataFrame([{"article": row["question"], "summary": row["answer"]} for row in own])
    news.write_csv(folder / "news.csv")
    news.select("article").write_csv(folder / "new_articles.csv")
    chats = [
        [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["answer"]}]
        for row in own
    ]
    chats = [json.dumps({"conversations": chat}) for chat in chats]
    (folder / "chats.jsonl").write_text("\n".join(chats))
    (folder / "rows.json").write_text(json.dumps(rows[:4]))
    (folder / "questions.txt").write_text("Say hello.\nName a colour.\n")
    (folder / "questions.csv").write_text("id,instruction\n01,Say hello.\n02,Name a colour.\n")
    return folder


def test_the_two_commands_that_install_are_those_of_ci():
    commands = [command for text in PAGES.values() for command in commands_of(text)]
    assert [command for command in commands_of(README) if "pip " in command] == INSTALLS
    in_ci = (REPOSITORY / ".ci/run").read_text()
    for command in INSTALLS:
        assert command in in_ci
    known = ("python ", "cat ", "torchrun ", "pip install -e ", "pytest", "ruff ", "jupytext ")
    assert all(command.startswith(known) for command in commands)


def end_the_page(folder):
    raise KeyboardInterrupt


def parts_of(command):
    """The script that a command runs, its arguments, and the file that it is piped, if any."""
    words = shlex.split(command)
    if words[0] == "cat":  # cat FILE | python SCRIPT ...
        return words[4], words[5:], words[1]
    if words[0] == "torchrun":
        starter = torchrun_parser().parse_args(words[1:])
        return starter.training_script, starter.training_script_args, ""
    if words[1] == "-m":
        return words[2].replace(".", "/") + ".py", words[3:], ""
    return words[1], words[2:], ""


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CONTRIBUTING.md"])
def test_every_command_runs(
    page, here, first_runs, tmp_path, hub, call_script, in_this_process, monkeypatch
):
    """In the page's order. `mini` and `gpt2` are tiny ones."""
    use_tiny_mini(tmp_path / "tiny mini", monkeypatch)
    download_released("gpt2")
    encoder = save_tiny_encoder(tmp_path / "tiny encoder", "distilbert")
    shutil.copytree(encoder, here / "minilm/model")
    tokens = {"TIKTOKEN_CACHE_DIR": str(SHARED / "tiktoken")}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *given, **named: None)  # slow
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # so is waiting for the disk
    monkeypatch.setattr("app.page.wait", end_the_page)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where gradio may leave a folder
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    commands = [
        *FIRST,
        *(command for command in commands_of(PAGES[page]) if command not in INSTALLS),
    ]
    ran = []  # commands that differ only in what is cut short here run once
    for command in commands:
        script, arguments, piped = parts_of(command)
        # tests/test_torchrun.py shards among new processes, which take long to start.
        arguments = [word for word in arguments if word != "--shard"]
        if not (SHARED / "tiktoken").is_dir():  # the gpt2 encoding is a download
            arguments = ["mini" if word == "gpt2" else word for word in arguments]
        if script in ("baselines/label_curve.py", "baselines/sweep.py"):
            # of its many runs one, with the flags after `--`
            cut = arguments.index("--") if "--" in arguments else len(arguments)
            bad = ("--rows", -1) if script.endswith("curve.py") else ("--folds", 1)
            refused(call_script(script, *arguments[:cut], *bad), bad[0])
            script = "classification/train_gpt.py"
            if "instruction" in arguments[:cut]:
                script = "instruction/instruction_finetuning.py"
            arguments = arguments[cut + 1 :]
        if "--help" not in arguments:
            arguments = arguments + shlex.split(SHORT.get(script, ""))
        if (script, arguments, piped) in ran:
            continue
        if script == "app/page.py" and not find_spec("gradio"):
            continue
        ran.append((script, arguments, piped))
        if command in FIRST and (first_runs / script).exists():  # made for another page
            shutil.copytree(first_runs / script, here / "runs", dirs_exist_ok=True)
            continue
        text = (here / piped).read_bytes() if piped else b""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        with hub_of(script, arguments, monkeypatch, encoder) as online:
            done = call_script(script, *arguments, cwd=here, environment=tokens, offline=not online)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout
        if command in FIRST:
            shutil.copytree(here / "runs", first_runs / script)
