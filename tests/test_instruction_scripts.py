"""Instruction tuning from outside: a whole run; answers by argument, file and pipe."""

import json
import subprocess
import sys

import polars as pl
import pytest
from conftest import REPOSITORY, refused

from gpt2.batching import sorted_batches
from gpt2.weights.loading import load_model
from instruction.evaluation import AnswerSettings, answer_prompts, loops
from instruction.report import side_by_side
from instruction.respond import answer
from instruction.tasks import TASKS

TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--epochs", 1,
        "--max-length", 128, "--max-train", 32, "--max-validation", 8, "--test-answers", 8,
        "--answer-tokens", 8)  # fmt: skip
TUNE, RESPOND = "instruction/instruction_finetuning.py", "instruction/respond.py"
JUDGE = "instruction/evaluate.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, script_environment):
    """One tiny run on the built-in instructions."""
    folder = tmp_path_factory.mktemp("trained")
    script = REPOSITORY / TUNE
    done = subprocess.run(
        [sys.executable, script, "--out", folder / "run", *map(str, TINY)],
        capture_output=True, text=True, env=script_environment, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_the_run_folder_is_complete(trained):
    run, done = trained
    assert done.stderr == ""
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "before.json", "results.json", "report.md",
                     "curves.png", "predictions.parquet", "validation_predictions.parquet", "best",
                     "last", ".lock"}  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == "instruction"
    assert results["data"] | {"train": 32, "validation": 8, "test": 34} == results["data"]
    for when in ("before", "after"):
        metrics = results[when]["test"]
        assert metrics["loss"] > 0 and metrics["perplexity"] > 1
        for share in ("rouge_l", "ends_with_eos", "format_adherence", "task_success"):
            assert 0 <= metrics[share] <= 1
    assert len(results["answers"]) == 8
    assert all(set(answer) == {"instruction", "input", "reference", "before", "after"}
               for answer in results["answers"])  # fmt: skip
    assert len(results["tasks"]) == len(TASKS)
    report = (run / "report.md").read_text()
    answers, tasks = report.split("## Answers")[1].split("## Tasks")
    assert answers.count("\n| ") == 2 + 8 and tasks.count("\n| ") == 2 + len(TASKS)
    kinds = {task.kind for task in TASKS}
    for table in (report.split("## Curves")[0], done.stdout):
        assert "| perplexity" in table and all(f"| tasks: {kind}" in table for kind in kinds)
    template = json.loads((run / "best/config.json").read_text())["settings"]["template"]
    assert "### Response:" in template["with_input"]
    assert done.stdout.count("  Name three colours.") == 2  # before training and after the epoch


def test_answers_stand_in_the_report_as_they_are():
    """Nothing of an answer is taken for a cell, for Markdown or for HTML."""
    table = side_by_side(
        ["a", "b"], [["x | y", "# <b>*1*</b>\n- [z](w) `q` &amp;"], ["", "_ \\ ~"]]
    )
    assert table.splitlines()[2:] == [
        "| x \\| y | \\# &lt;b&gt;\\*1\\*&lt;/b&gt;<br>\\- \\[z\\](w) \\`q\\` &amp;amp; |",
        "| (nothing) | \\_ \\\\ \\~ |",
    ]


def test_answers_by_argument_file_and_pipe(trained, call_script, tmp_path):
    run, _ = trained
    short = ("--max-new-tokens", 6, "--precision", "float32", "--temperature", 1)
    questions = ["Say hello.", "Count to three, four or five."]  # the longer is answered first
    alone = [
        call_script(RESPOND, run, question, *short, "--seed", 7 + number).stdout.strip()
        for number, question in enumerate(questions)
    ]
    assert alone[0] != alone[1]
    short += ("--seed", 7)
    (tmp_path / "plain.txt").write_text("\n".join(questions) + "\n")
    rows = [{"instruction": question} for question in questions]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for file in ("plain.txt", "rows.jsonl"):
        done = call_script(RESPOND, run, "--file", file, *short)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["instruction"] for answer in answers] == questions
        assert [answer["output"] for answer in answers] == alone
    piped = call_script(RESPOND, run, *short, stdin="\n".join(questions))
    assert piped.stdout == done.stdout
    other = call_script(RESPOND, run, "Say hello.", "--input", "Hi", *short)
    assert other.returncode == 0, other.stderr


def test_answers_have_a_repetition_penalty_everywhere_and_the_same_one(
    trained, call_script, tmp_path
):
    """This model, taken at its likeliest token, goes round in circles."""
    run, _ = trained
    results = json.loads((run / "results.json").read_text())
    row = next(row for row in results["answers"] if row["input"])
    question, limit = (row["instruction"], row["input"]), ("--max-new-tokens", 8)
    asked = (RESPOND, run, question[0], "--input", question[1], *limit)
    said = call_script(*asked).stdout.strip()
    assert said == row["after"]
    model, recipe = load_model(run, "instruction")
    model.eval()
    assert answer(model, recipe, [question], AnswerSettings(8)) == [said]
    whole = call_script(RESPOND, run, "Hi").stdout.strip()
    assert answer(model, recipe, "Hi") == [whole]
    plain = call_script(RESPOND, run, "Hi", "--repetition-penalty", 1).stdout.strip()
    assert loops(plain) and whole != plain

    # evaluate.py: the answers of the run's own table, and others without a penalty
    same = ("--test-answers", 8, "--answer-tokens", 8)
    for flags, words in ((), "greedily with a repetition penalty of 1.2."), (
        ("--repetition-penalty", 1), "greedily."
    ):  # fmt: skip
        done = call_script(JUDGE, run, *same, *flags, "--out", "judged", "--overwrite")
        assert done.returncode == 0, done.stderr
        found = pl.read_parquet(tmp_path / "judged/predictions.parquet")["answer"].to_list()
        assert (found == [row["after"] for row in results["answers"]]) == (not flags)
        assert f"answered {words}" in (tmp_path / "judged/report.md").read_text()
        judged = json.loads((tmp_path / "judged/results.json").read_text())
        assert judged["answering"]["repetition_penalty"] == (1.0 if flags else 1.2)
    assert results["answering"]["repetition_penalty"] == 1.2
    assert "greedily with a repetition penalty of 1.2; tasks" in (run / "report.md").read_text()


def test_before_and_after_are_answered_alike_also_in_a_run_of_older_code(
    call_script, tmp_path, monkeypatch
):
    """Which had no penalty, and keeps to that when it is resumed."""
    used = []

    def spy(model, encoding, prompts, settings, *rest, **named):
        used.append(settings.repetition_penalty)
        return answer_prompts(model, encoding, prompts, settings, *rest, **named)

    monkeypatch.setattr("instruction.instruction_finetuning.answer_prompts", spy)
    short = (*TINY, "--test-answers", 1, "--answer-tokens", 1, "--max-steps", 1, "--out", "run")
    for flags, penalty in ((), 1.2), (("--repetition-penalty", 1, "--overwrite"), 1.0):
        done = call_script(TUNE, *short, *flags)
        assert done.returncode == 0, done.stderr
        assert set(used) == {penalty} and len(used) >= 5  # rows and tasks twice, and samples
        used.clear()
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["settings"]["evaluation"]["repetition_penalty"]
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    done = call_script(TUNE, "--resume", "run", "--repetition-penalty", 1.2)
    refused(done, "--repetition-penalty 1.2 contradicts the run", "which has 1.0")
    done = call_script(TUNE, "--resume", "run", "--max-steps", 2)
    assert done.returncode == 0, done.stderr
    assert set(used) == {1.0}
    assert "answered greedily; tasks" in (tmp_path / "run/report.md").read_text()


def test_every_seed_is_tested_on_the_same_rows_and_within_the_memory(
    trained, call_script, tmp_path, monkeypatch
):
    """The answered rows follow --split-seed; evaluation keeps to --micro-batch-tokens."""
    limits = set()

    def spy(lengths, batch_size, max_tokens=0):
        limits.add(max_tokens)
        return sorted_batches(lengths, batch_size, max_tokens)

    monkeypatch.setattr("gpt2.language_modelling.sorted_batches", spy)
    done = call_script(TUNE, *TINY, "--seed", 2,
                       "--max-steps", 1, "--micro-batch-tokens", 700, "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (
        [answer["instruction"] for answer in json.loads(file.read_text())["answers"]]
        for file in (trained[0] / "results.json", tmp_path / "run/results.json")
    )
    assert first == second and limits == {700}


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--data", "nothing.json"], ["nothing.json", "alpaca-gpt4"]),
        (["--data", "alpaca"], ["yahma/alpaca-cleaned", "--data PATH"]),
        (["--data", "broken.json"], ["broken.json", "line 2 is not JSON"]),
        (["--data", "field.json"], ["field.json", "row 2 has no field 'output'"]),
        (["--data", "reviews.csv"], ["reviews.csv", "classification"]),
        (["--max-length", "600"], ["--max-length 600", "512"]),
        (["--max-train", "7"], ["7 training rows", "batch of 16"]),
        (["--max-length", "20"], ["no prompt of the", "--max-length 20"]),
    ],
)
def test_bad_input_to_training(call_script, tmp_path, flags, parts):
    (tmp_path / "broken.json").write_text('[{"instruction": "x",\n "output": }]')
    (tmp_path / "field.json").write_text(
        '[{"instruction": "x", "output": "y"}, {"instruction": "z"}]'
    )
    (tmp_path / "reviews.csv").write_text("text,label\nfine,1\n")
    before = sorted(tmp_path.rglob("*"))
    refused(call_script(TUNE, *flags), *parts)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_to_answering(trained, call_script, tmp_path):
    run, _ = trained
    refused(call_script(RESPOND, tmp_path, "Hi"), "not a run folder")
    refused(call_script(RESPOND, run, "word " * 600), "tokens leaves no room", "512")
    refused(call_script(RESPOND, run, "--file", "nothing.txt"), "nothing.txt", "no such file")
    refused(call_script(RESPOND, run, "Hi", "--file", "x"), "either an instruction or --file")
    refused(call_script(RESPOND, run, "--input", "x"), "--input belongs to an instruction")
    refused(call_script(RESPOND, run, " "), "the instruction is empty")
    refused(call_script(RESPOND, run, "Hi", "--seed", 2**64), "--seed is 18446744073709551616")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "x"}\n{"question": "y"}\n')
    refused(call_script(RESPOND, run, "--file", "rows.jsonl"), "row 2 needs an 'instruction'")
    (tmp_path / "latin.txt").write_bytes(b"Hi\ncaf\xe9\n")
    refused(call_script(RESPOND, run, "--file", "latin.txt"), "latin.txt", "line 2 is not UTF-8")
    (tmp_path / "long.txt").write_text("Hi\n" + "word " * 600 + "\n")
    refused(call_script(RESPOND, run, "--file", "long.txt"), "long.txt: instruction 2", "512")
    refused(call_script("classification/predict.py", run, "Hi"), "a model for instruction")
