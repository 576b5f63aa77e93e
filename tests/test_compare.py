"""What compare.py makes of folders that are runs, are nearly runs, or are no runs at all."""

import json

import numpy as np
import pytest
from conftest import refused

from classification.predictions import Predictions, write_predictions

COMPARE = "baselines/compare.py"
TARGETS = np.array([0, 1, 0, 1, 1, 0])


def make_run(folder, right, seed=1, head="ClassificationHead", **settings):
    """A finished run whose model is right on the first `right` of six test rows."""
    folder.mkdir()
    predicted = np.where(np.arange(6) < right, TARGETS, 1 - TARGETS)
    found = np.log(np.where(np.eye(2)[predicted] == 1, 0.9, 0.1))
    texts = [f"text {row}" for row in range(6)]
    write_predictions(
        folder, Predictions(texts, ["bad", "good"], TARGETS, {"after": found}), "test"
    )
    results = {"task": "classification", "after": {}, "training": {"seconds": 2.0},
               "model": {"head": {"kind": head}}}  # fmt: skip
    config = {"command": ["train_gpt.py"], "settings": {"run": {"seed": seed}, "task": settings}}
    for name, content in (("results.json", results), ("config.json", config)):
        (folder / name).write_text(json.dumps(content))
    return folder


def groups_of(call_script, tmp_path, *runs):
    done = call_script(COMPARE, *runs, "--resamples", 100, "--out", "compared")
    assert done.returncode == 0, done.stderr
    groups = json.loads((tmp_path / "compared/compare.json").read_text())["groups"]
    return [[run.rpartition("/")[2] for run in group["runs"]] for group in groups]


def test_seeds_of_the_same_settings_are_one_line_and_the_same_seed_again_is_another(
    tmp_path, call_script
):
    """What was changed between two runs of the same flags may be the code: that is a comparison."""
    for name, seed in (("a-1", 1), ("a-2", 2), ("b-1", 1), ("b-2", 2)):
        make_run(tmp_path / name, right=4 if name < "b" else 5, seed=seed)
    make_run(tmp_path / "own-3", 4, seed=3, head="TwoLayerHead")
    make_run(tmp_path / "longer-3", 4, seed=3, max_length=9)
    named = ["a-1", "a-2", "b-1", "b-2", "own-3", "longer-3"]
    expected = [["a-1", "a-2"], ["b-1", "b-2"], ["own-3"], ["longer-3"]]
    assert groups_of(call_script, tmp_path, *named) == expected


@pytest.mark.parametrize(
    "file, content, part",
    [
        ("results.json", {"task": "classification", "after": {}, "training": 3}, None),
        ("results.json", {"task": "classification", "after": {}}, None),
        ("results.json", [], "results.json: is not a run's"),
        ("results.json", {}, "a run of None"),
        ("config.json", {"command": ["train_gpt.py"]}, "config.json: is not a run's"),
        ("config.json", {"command": [], "settings": {}}, "config.json: is not a run's"),
        ("config.json", {"command": ["x"], "settings": {"a": 3}}, "config.json: is not a run's"),
        ("config.json", "{", "config.json: is damaged"),
    ],
)
def test_a_damaged_run_is_named(file, content, part, tmp_path, call_script):
    make_run(tmp_path / "whole", 4), make_run(tmp_path / "damaged", 5)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "damaged" / file).write_text(text)
    done = call_script(COMPARE, "whole", "damaged", "--resamples", 100)
    if part is None:  # how long it took is not known
        assert done.returncode == 0, done.stderr
    else:
        refused(done, "damaged", part)


def test_what_is_no_contender_is_refused_and_a_file_as_out_before_any_work(tmp_path, call_script):
    make_run(tmp_path / "run", 4), make_run(tmp_path / "other", 5)
    refused(call_script(COMPARE, "run", "other:task"), "has no 'task' on its test rows", "after")
    (tmp_path / "file").write_text("")
    done = call_script(COMPARE, "run", "other", "--out", "file")
    refused(done, "--out file: is a file, not a folder")
    assert not done.stdout
