"""The curve over the number of training rows runs what is missing, and nothing twice."""

import json
import re
import shutil
import sys

import pytest
from conftest import refused

from baselines import label_curve
from baselines.label_curve import CurveSettings, contenders
from gpt2.support.script import run_script as run_main

SCRIPT = "baselines/label_curve.py"


def finished(folder, task, rows, value, max_test=0):
    """A run as the script would have made it: of its folder's name, with these results."""
    bag, init, asked, seed = re.fullmatch(
        r"(?:bag-of-words-(\w+)|mini-(\w+))-(all|\d+)(?:-(\d+))?", folder.name
    ).groups()
    settings = CurveSettings(task=task, max_test=max_test)
    commands = contenders(settings, 0 if asked == "all" else rows, int(seed or 1))
    command = commands[f"bag of words ({bag})" if bag else f"mini, {init}"]
    metrics = {"test": {"accuracy": value, "loss": value}}
    folder.mkdir(parents=True)
    results = {"task": task, "data": {"train": rows, "test": 60}, "after": metrics}
    (folder / "results.json").write_text(json.dumps(results))
    config = {"command": [*command, "--out", str(folder)]}
    (folder / "config.json").write_text(json.dumps(config))


def test_accuracy_by_rows_with_the_spread_over_seeds(tmp_path, call_script):
    """Finished runs are read, the missing one, a bag of words, is run; the `±` is the standard
    deviation of a sample: 60 and 62 give 1.4."""
    for name, values in {"random": (0.5, 0.5), "pretrained": (0.6, 0.62)}.items():
        for seed, value in enumerate(values, start=1):
            finished(tmp_path / f"mini-{name}-100-{seed}", "classification", 100, value, 60)
    for features in ("count", "tfidf"):
        folder = tmp_path / f"bag-of-words-{features}-100"
        finished(folder, "classification", 100, 0.7, 60)
    done = call_script(SCRIPT, "--out", tmp_path, "--rows", 100, "--seeds", 1, 2, "--max-test", 60)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "bag-of-words-nb-100/results.json").read_text())
    assert made["data"]["test"] == 60
    cells = (tmp_path / "curve.md").read_text().splitlines()[-1].strip("| ").split("|")
    nb = f"{100 * made['baseline']['test']['accuracy']:.1f}"
    assert [cell.strip() for cell in cells] == ["100", "60", "70.0", "70.0", nb,
                                                "50.0 ± 0.0", "61.0 ± 1.4"]  # fmt: skip
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((tmp_path / "curve.json").read_text())["points"]
    assert len(points) == 3 + 2 * 2
    # a bag of words has no seed: again, with another one, it is no second measurement
    finished(tmp_path / "mini-random-100-3", "classification", 100, 0.5, 60)
    finished(tmp_path / "mini-pretrained-100-3", "classification", 100, 0.63, 60)
    done = call_script(SCRIPT, "--out", tmp_path, "--rows", 100, "--seeds", 3, "--max-test", 60)
    assert done.returncode == 0, done.stderr
    cells = (tmp_path / "curve.md").read_text().splitlines()[-1].strip("| ").split("|")
    assert [cell.strip() for cell in cells][2:4] == ["70.0", "70.0"]
    assert cells[-1].strip() == "61.7 ± 1.5"


def test_loss_by_rows_for_instructions(tmp_path, call_script):
    for rows, name, value in (
        (100, "random", 6.5),
        (100, "pretrained", 4.25),
        (0, "random", 4.5),
        (0, "pretrained", 3.5),
    ):
        folder = tmp_path / f"mini-{name}-{rows or 'all'}-1"
        finished(folder, "instruction", rows or 272, value)
    done = call_script(SCRIPT, "--task", "instruction", "--out", tmp_path, "--rows", 0, 100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.md").read_text().splitlines()[2:] == [
        "| 100           |        60 |       6.5000 |           4.2500 |",
        "| 272           |        60 |       4.5000 |           3.5000 |",
    ]


def test_a_second_command_adds_its_points_to_those_of_the_first(tmp_path, call_script):
    """A point that is measured again stands once, with its newer value; another task is refused."""
    for rows, value in ((100, 6.5), (400, 5.5)):
        for name in ("random", "pretrained"):
            folder = tmp_path / f"mini-{name}-{rows}-1"
            finished(folder, "instruction", rows, value)
        flags = ("--task", "instruction", "--out", tmp_path, "--rows")
        assert call_script(SCRIPT, *flags, rows).returncode == 0
    results = tmp_path / "mini-random-100-1/results.json"
    results.write_text(results.read_text().replace("6.5", "6.25"))
    done = call_script(SCRIPT, *flags, 100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.md").read_text().splitlines()[2:] == [
        "| 100           |        60 |       6.2500 |           6.5000 |",
        "| 400           |        60 |       5.5000 |           5.5000 |",
    ]
    refused(call_script(SCRIPT, "--out", tmp_path), "a curve of instruction on sample", "--out")


def test_runs_with_unlike_test_rows_are_not_compared(tmp_path, call_script):
    for name in ("random", "pretrained"):
        finished(tmp_path / f"mini-{name}-100-1", "instruction", 100, 3.5)
    file = tmp_path / "mini-random-100-1/results.json"
    flags = ("--task", "instruction", "--out", tmp_path, "--rows")
    assert call_script(SCRIPT, *flags, 100).returncode == 0
    file.write_text(file.read_text().replace('"test": 60', '"test": 34'))
    done = call_script(SCRIPT, *flags, 100)
    refused(done, "the runs on 100 training rows have 34 and 60 test rows", "--max-test")
    shutil.rmtree(file.parent)  # as it says; the points of what is gone go too
    finished(tmp_path / "mini-random-400-1", "instruction", 400, 3.5)
    finished(tmp_path / "mini-pretrained-400-1", "instruction", 400, 3.5)
    done = call_script(SCRIPT, *flags, 400)
    assert done.returncode == 0, done.stderr


def test_a_run_that_fails_ends_the_curve_and_spares_what_is_there(tmp_path, monkeypatch, capfd):
    """The script that failed has said why; flags after `--` reach the GPT-2 runs."""
    for features in ("count", "tfidf", "nb"):
        finished(tmp_path / f"bag-of-words-{features}-100", "classification", 100, 0.7)
    flags = ["--out", str(tmp_path), "--rows", "100", "--", "--pooling", "most"]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *flags])
    with pytest.raises(SystemExit) as end:
        run_main(label_curve.main)
    assert end.value.code == 2
    (why,) = [line for line in capfd.readouterr().err.splitlines() if ".py: " in line]
    assert why.startswith("train_gpt.py: ") and "invalid choice: 'most'" in why
    assert (tmp_path / "bag-of-words-nb-100/results.json").exists()


def test_a_run_of_other_flags_is_not_taken_for_one_of_these(tmp_path, call_script):
    for name in ("random", "pretrained"):
        finished(tmp_path / f"mini-{name}-100-1", "instruction", 100, 3.5)
    flags = ("--task", "instruction", "--out", tmp_path, "--rows", 100)
    assert call_script(SCRIPT, *flags).returncode == 0
    done = call_script(SCRIPT, *flags, "--", "--learning-rate", 1)
    refused(done, "mini-random-100-1", "was made by other flags", "--max-train 100")


@pytest.mark.parametrize(
    "flags, named",
    [(["--rows", "-1"], "--rows"), (["--task", "guess"], "--task"),
     (["--", "--out", "x"], "-- --out"), (["--", "--seed=2"], "-- --seed")],
)  # fmt: skip
def test_flags_that_make_no_curve_are_refused(flags, named, call_script):
    refused(call_script(SCRIPT, *flags), named)
