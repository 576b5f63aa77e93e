"""drift.py: what comes in, compared with what the model learnt from."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused

from baselines.drift import (
    compare_confidence,
    compare_labels,
    compare_lengths,
    compare_words,
    describe,
    differs,
    names_of,
    read_requests,
)
from gpt2.support.errors import UserError

DRIFT = "baselines/drift.py"


def texts(count, longest, seed=0):
    random = np.random.default_rng(seed)
    words = ["film", "good", "bad", "plot", "actor"]
    return [" ".join(random.choice(words, random.integers(1, longest))) for _ in range(count)]


def drifted(finding):
    return differs(finding, finding.p)


def test_the_same_source_is_no_drift_and_another_one_is():
    then, same, longer = texts(300, 20), texts(200, 20, 1), texts(200, 40, 2)
    assert not drifted(compare_lengths(then, same))
    assert drifted(compare_lengths(then, longer))
    assert compare_lengths(then, longer).then == "median 10 words"
    found = compare_words(then, same, longer)
    assert not drifted(found) and found.then == found.now == "0.0 % on average"
    assert drifted(compare_words(then, same, [text.replace("plot", "Plan") for text in same]))


def test_labels_and_confidence():
    labels = ["bad", "good", "odd"]
    one, other = ["bad"] * 60 + ["good"] * 40, ["bad"] * 90 + ["good"] * 10
    assert compare_labels(labels, one, one).p == pytest.approx(1)
    found = compare_labels(labels, one, other)
    assert drifted(found) and found.then.startswith("bad 60.0 %, good 40.0 %")
    # the phi of a two by two table, by hand: 30 of 100 rows have moved
    assert found.statistic == pytest.approx(0.3 / np.sqrt(4 * 0.75 * 0.25))
    assert compare_labels(labels, ["bad"] * 5, ["bad"] * 7).p == 1  # nothing to compare
    assert drifted(compare_confidence(np.linspace(0.8, 1, 100), np.linspace(0.5, 1, 100)))


def test_a_difference_must_be_neither_luck_nor_tiny():
    tiny = compare_confidence(np.linspace(0, 1, 100_000), np.linspace(0.02, 1.02, 100_000))
    assert tiny.p < 0.001 and not drifted(tiny)
    few = compare_confidence([0.1, 0.2], [0.8, 0.9])
    assert few.statistic == 1 and not drifted(few)
    assert "2 requests are few" in describe([few], [few.p], 2)


def test_requests_are_read_as_predict_reads_a_table(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"text": "a film"}\n{"text": " "}\n{"run": "x"}\n')
    assert read_requests(tmp_path / "log.jsonl", "", "story") == ["a film"]
    (tmp_path / "new.csv").write_text("story,body\none,two\n")
    assert read_requests(tmp_path / "new.csv", "", "story") == ["one"]
    assert read_requests(tmp_path / "new.csv", "body", "story") == ["two"]
    for name, content, part in (
        ("none.jsonl", '{"text": ""}\n', "no row has a text"),
        ("other.csv", "body\nx\n", "no column 'story'"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=part):
            read_requests(tmp_path / name, "", "story")


def test_the_rows_of_other_runs_are_left_out(tmp_path, capsys):
    """A page with several models logs each text once for each of them."""
    rows = [
        {"run": "one", "text": "a film"}, {"run": "two", "text": "a film"},
        {"run": "chat", "instruction": "Go on.", "output": ""}, {"run": "runs/one", "text": "b"},
        {"run": "one", "text": ""}, {"text": "c"},
    ]  # fmt: skip
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_requests(log, "", "text", names_of(Path("runs/one"))) == ["a film", "b"]
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("log.jsonl: 3 rows of other runs left out (two, chat, none)")
    assert said[1].endswith("log.jsonl: 1 rows without a text left out")
    assert read_requests(log, "", "text", ["two"]) == ["a film"]
    with pytest.raises(UserError, match=r"'three'; the column 'run' has: one, two.*--run-name"):
        read_requests(log, "", "text", ["three"])
    (tmp_path / "new.csv").write_text("story\none\n")
    assert read_requests(tmp_path / "new.csv", "", "story", ["one"]) == ["one"]


def test_the_script(call_script, tmp_path):
    rows = [{"text": f"It was {('sad', 'funny')[i % 2]}, said number {i}.",
             "label": ("sad", "funny")[i % 2]} for i in range(60)]  # fmt: skip
    pl.DataFrame(rows).write_csv(tmp_path / "stories.csv")
    call_script(
        "classification/train_gpt.py", "--data", "stories.csv", "--model", "scratch", "--n-layer",
        1, "--n-head", 2, "--n-embd", 16, "--max-steps", 1, "--max-length", 16, "--out", "run",
    )  # fmt: skip
    foreign = [{"text": f"Ganz andere Worte, und viel mehr davon {i} " * 4} for i in range(40)]
    foreign = [row | {"run": run} for row in foreign for run in ("run", "other")]
    pl.DataFrame(foreign).write_ndjson(tmp_path / "requests.jsonl")
    done = call_script(DRIFT, "run", "requests.jsonl")
    assert done.returncode == 0, done.stderr
    assert "40 rows of other runs left out (other)" in done.stderr
    first, lengths, words, labels, confidence = done.stdout.splitlines()
    assert first == "40 requests" and "DIFFERENT" in lengths and "DIFFERENT" in words
    assert labels.startswith("- labels:") and confidence.startswith("- confidence: mean prob")
    found = json.loads(call_script(DRIFT, "run", "requests.jsonl", "--json").stdout)
    assert found["requests"] == 40 and found["lengths"]["different"] is True
    refused(call_script(DRIFT, "run", "no.jsonl"), "no.jsonl")
    refused(call_script(DRIFT, "no", "requests.jsonl"), "no: not a run folder")
    done = call_script(DRIFT, "run/best", "requests.jsonl")
    refused(done, "run/best: does not say which data it was trained on", "name its run")
    assert "Error" not in done.stderr
    (tmp_path / "stories.csv").unlink()
    refused(call_script(DRIFT, "run", "requests.jsonl"), "stories.csv")
