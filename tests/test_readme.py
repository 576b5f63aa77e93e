"""README holds what it says: each of its commands runs, each of its snippets works.

Commands run on small stand-ins for the data, cut short by flags that are appended; what they cost
in full is for the reader to see, not for a test. The two commands that install are `.ci/run`'s.
"""

import json
import re
import shlex
import shutil
import subprocess

import polars as pl
import pytest
import torch
from conftest import REPOSITORY, SHARED, refused
from torch.distributed.run import get_args_parser as torchrun_parser

from classification.sources import SAMPLE
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2
from gpt2.weights.hugging_face import download_released
from instruction.sources import SAMPLE as INSTRUCTIONS

README = (REPOSITORY / "README.md").read_text()
MANY = re.search(r"^## Many processes\n.*?^## ", README, re.DOTALL | re.MULTILINE).group()


def commands_of(text):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


COMMANDS = commands_of(README)
# The later of two equal flags counts, so these shorten any training command.
SHORT = shlex.split(
    "--max-train 8 --max-validation 4 --max-test 4 --epochs 1 --batch-size 8 --max-length"
)
SHORT_CORPUS = shlex.split("--max-train 8 --max-validation 2 --epochs 1 --max-length 32")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder in which every path that README names exists, with a few rows each."""
    folder = tmp_path_factory.mktemp("readme") / "here"
    folder.mkdir()
    rows = pl.read_csv(SAMPLE).sample(60, seed=0)
    rows = rows.with_columns(split=pl.Series(["train", "train", "test"] * 20))
    rows.write_csv(folder / "mine.csv")
    rows.select("text").write_csv(folder / "unlabelled.csv")
    rows.write_ndjson(folder / "mine.jsonl")
    rows.select(body="text", topic="label").write_csv(folder / "mine.tsv", separator="\t")
    rows.select("label", "text").write_csv(
        folder / "SMSSpamCollection", separator="\t", include_header=False
    )
    (folder / "ag_news").mkdir()
    for name, part in (("train", rows[:40]), ("test", rows[40:])):
        part.select("label", title="text", body="text").write_csv(
            folder / f"ag_news/{name}.csv", include_header=False
        )
    (folder.parent / "shared/imdb/plain_text").mkdir(parents=True)
    numbers = rows.with_columns(pl.col("label").replace_strict({"negative": 0, "positive": 1}))
    for name, part in (("train", numbers[:40]), ("test", numbers[40:])):
        part.select("text", "label").write_parquet(
            folder.parent / f"shared/imdb/plain_text/{name}-00000-of-00001.parquet"
        )
        for short, value in (("neg", 0), ("pos", 1)):
            texts = part.filter(label=value)["text"]
            (folder / "aclImdb" / name / short).mkdir(parents=True)
            for number, text in enumerate(texts):
                (folder / f"aclImdb/{name}/{short}/{number}_5.txt").write_text(text)
            (folder / f"aclImdb/{name}/urls_{short}.txt").write_text(
                "".join(f"http://www.imdb.com/title/tt{name}{i // 2}/\n" for i in range(len(texts)))
            )
    (folder / "reviews.txt").write_text("a fine film\nno\n")
    (folder.parent / "shared/alpaca").mkdir()
    for name in ("alpaca_data_cleaned", "alpaca_gpt4_1k"):
        shutil.copy(INSTRUCTIONS, folder.parent / f"shared/alpaca/{name}.json")
    rows = json.loads(INSTRUCTIONS.read_text())
    own = [{"question": row["instruction"], "answer": row["output"]} for row in rows[:60]]
    (folder / "mine_qa.jsonl").write_text("\n".join(map(json.dumps, own)))
    (folder / "questions.txt").write_text("Say hello.\nName a colour.\n")
    return folder


def test_the_commands_are_those_that_are_tested():
    installs = [command for command in COMMANDS if command.startswith("pip ")]
    assert installs == [
        "pip install -e . && python classification/train_gpt.py",
        "pip install -e '.[test]' && pytest -n auto",
    ]
    in_ci = (REPOSITORY / ".ci/run").read_text()
    for command in installs:
        assert command in in_ci
    others = [command for command in COMMANDS if command not in installs]
    assert len(others) > 12
    assert all(command.startswith(("python ", "cat ", "torchrun ")) for command in others)


@pytest.mark.parametrize("part", [README.replace(MANY, ""), MANY], ids=["alone", "many processes"])
def test_every_command_runs(
    part, stand_ins, call_script, run_script, start_torchrun, hub, in_this_process
):
    """In README's order: prediction uses what the first command trained. `gpt2` is a tiny one."""
    download_released("gpt2")
    tokens = {"TIKTOKEN_CACHE_DIR": str(SHARED / "tiktoken")}
    ran = []  # commands that differ only in what is cut short here run once
    for command in commands_of(part):
        if command.startswith("pip "):
            command = "python classification/train_gpt.py"
        words = shlex.split(command)
        if words[0] == "cat":
            text = (stand_ins / words[1]).read_text()
            done = run_script(*words[4:], cwd=stand_ins, stdin=text)
        else:
            if words[1] == "-m":
                words[1:3] = [words[2].replace(".", "/") + ".py"]
            script, arguments = words[1], words[2:]
            if words[0] == "torchrun":
                starter = torchrun_parser().parse_args(words[1:])
                script, arguments = starter.training_script, starter.training_script_args
            if torch.__version__ < (2, 13):  # shards wrongly on CPUs and is refused
                arguments = [word for word in arguments if word != "--shard"]
            if "--shard" in arguments:  # in processes that know nothing of the tiny gpt2
                arguments = ["mini" if word == "gpt2" else word for word in arguments]
            if not (SHARED / "tiktoken").is_dir():  # the gpt2 encoding is a download
                arguments = ["mini" if word == "gpt2" else word for word in arguments]
            if script.endswith("label_curve.py"):  # of its many runs one, with the flags after `--`
                cut = arguments.index("--") if "--" in arguments else len(arguments)
                refused(call_script(script, *arguments[:cut], "--rows", -1), "--rows is -1")
                script = "classification/train_gpt.py"
                if "instruction" in arguments[:cut]:
                    script = "instruction/instruction_finetuning.py"
                arguments = arguments[cut + 1 :]
            if script.endswith("train_gpt.py") and "--help" not in arguments:
                arguments += [*SHORT, 16]
            if script.endswith("sample.py"):
                arguments += ["--max-new-tokens", 4]
            if script.endswith("pretrain.py"):
                arguments += SHORT_CORPUS
            if script.endswith("instruction_finetuning.py"):
                arguments += [*SHORT, 128]
                arguments += shlex.split("--test-answers 2 --answer-tokens 2")
            if script.endswith("decoding_speed.py"):
                arguments += ["--new-tokens", 4, "--repeats", 1]
            if script.endswith("scaling.py"):
                arguments += shlex.split("--model mini --models mini --lengths 8 --max-length 8")
                arguments += shlex.split("--batch-sizes 2 --batch-size 2 --steps 2")
            if script.endswith("operations.py"):
                arguments += shlex.split("--model mini --max-length 8 --batch-size 2 --steps 2")
            if script.endswith("throughput.py"):
                arguments += shlex.split("--rows 4 --rounds 1 --new-tokens 2 --tasks generation")
                arguments += ["--max-length", 128]
                arguments += [] if (SHARED / "tiktoken").is_dir() else ["--model", "mini"]
            if (script, arguments) in ran:
                continue
            ran.append((script, arguments))
            if "--shard" in arguments:  # starting these takes long, so one process does the others
                process = start_torchrun(2, script, *arguments, cwd=stand_ins)
                out, said = process.communicate(timeout=240)
                done = subprocess.CompletedProcess(arguments, process.returncode, out, said)
            else:
                done = call_script(script, *arguments, cwd=stand_ins, environment=tokens)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert (REPOSITORY / link).exists(), link


def test_the_architecture_snippets_work(monkeypatch):
    """Each snippet runs in the namespace of the file that README names for it."""
    import gpt2.heads
    import gpt2.model

    namespace = {**vars(gpt2.heads), **vars(gpt2.model)}
    namespace["POOLINGS"] = dict(gpt2.heads.POOLINGS)
    namespace["SIZES"] = dict(gpt2.model.SIZES)
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(snippet, namespace)
    hidden = torch.tensor([[[1.0, -5.0], [0.0, -3.0], [9.0, 9.0]]])
    pooled = namespace["POOLINGS"]["max"](hidden, torch.tensor([2]), None)
    assert pooled.tolist() == [[1.0, -3.0]]
    config = namespace["SIZES"]["nano"]
    model = GPT2(config, LanguageModelHead(config)).eval()
    tokens, lengths = torch.tensor([[5, 6, 7]]), torch.tensor([3])
    serial = model(tokens, lengths)
    monkeypatch.setattr(gpt2.model.Block, "forward", namespace["forward"])
    assert not torch.equal(model(tokens, lengths), serial)
    classifier = GPT2(config, gpt2.heads.ClassificationHead(config, 2, "last")).eval()
    pooled = classifier.hidden_states(tokens)[:, 2]  # the last of three tokens
    torch.testing.assert_close(classifier(tokens, lengths), classifier.head.score(pooled))
