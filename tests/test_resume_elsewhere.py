"""--resume when what a run began with has changed, has moved or is gone."""

import json
import shutil

import pytest
from conftest import refused

TRAIN = "classification/train_gpt.py"
INSTRUCT = "instruction/instruction_finetuning.py"
PRETRAIN = "pretraining/pretrain.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 8,
        "--max-length", 32, "--precision", "float32", "--max-steps", 2,
        "--evaluate-every", 1)  # fmt: skip
LONGER = ("--max-steps", 3)


def write_reviews(folder, changed=""):
    """A folder with the three splits; in the split `changed` one text is another."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        rows = [f"{split} story {i},{'good' if i % 2 else 'bad'}" for i in range(count)]
        rows[3] += " indeed" if split == changed else ""
        rows[3] = rows[3].replace(",good indeed", " indeed,good")
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]))


@pytest.fixture
def run(call_script, tmp_path):
    """A run of two steps, an evaluation after each."""
    write_reviews(tmp_path / "data")
    done = call_script(TRAIN, *TINY, "--data", "data", "--out", "run")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_table_has_two_test_sets(call_script, tmp_path, run, split):
    write_reviews(tmp_path / "data", changed=split)
    before = contents(run)
    said = f"run: the {split} rows are not those that this run began with"
    refused(call_script(TRAIN, "--resume", "run", *LONGER), said)
    assert contents(run) == before
    shutil.rmtree(run / "last")  # "before" is measured already when a run saves for the first time
    shutil.rmtree(run / "best")
    (run / "results.json").unlink()
    refused(call_script(TRAIN, "--resume", "run"), said)


def test_a_test_set_is_more_than_the_tokens_that_are_kept(call_script, tmp_path):
    """ROUGE compares answers with the whole reference."""
    rows = [{"instruction": f"Say {i}.", "output": f"{i} " * 99} for i in range(30)]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    flags = (*TINY, "--max-length", 64, "--test-answers", 1, "--answer-tokens", 2)
    done = call_script(INSTRUCT, *flags, "--data", "mine.json", "--out", "run")
    assert done.returncode == 0, done.stderr
    for row in rows:
        row["output"] += "and so on"
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    refused(call_script(INSTRUCT, "--resume", "run", *LONGER), "rows are not those")


def test_without_last_a_run_that_has_trained_is_not_begun_again(call_script, run):
    shutil.rmtree(run / "last")
    before = contents(run)
    said = "run: its last/, from where it would go on, is gone", "--model run/best"
    for command in (("--resume", "run"), ("--resume", "auto", "--out", "run")):
        refused(call_script(TRAIN, *command, *LONGER), *said)
    assert contents(run) == before

    shutil.rmtree(run / "best")  # results.json alone is worth keeping, too
    refused(call_script(TRAIN, "--resume", "run", *LONGER), said[0], "start a new run")


def test_a_kill_between_the_first_best_and_the_first_last_costs_a_new_start(call_script, run):
    expected = contents(run / "best")
    shutil.rmtree(run / "last")
    (run / "results.json").unlink()
    log = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(log[:2]))
    done = call_script(TRAIN, "--resume", "run")
    assert done.returncode == 0, done.stderr
    assert "this run has saved nothing yet: it starts again" in done.stdout
    assert contents(run / "best") == expected


def test_data_and_user_may_move(call_script, tmp_path, run):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # from another folder, where --data as it was given is not, or is something else
    write_reviews(elsewhere / "data", changed="train")
    done = call_script(TRAIN, "--resume", run, "--out", "../run", *LONGER, cwd=elsewhere)
    assert done.returncode == 0, done.stderr

    (tmp_path / "data").rename(tmp_path / "moved")
    refused(call_script(TRAIN, "--resume", "run", "--max-steps", 4), "data: no such file or folder")
    done = call_script(TRAIN, "--resume", "run", "--max-steps", 4, "--data", "./moved")
    assert done.returncode == 0, done.stderr
    done = call_script(TRAIN, "--resume", run, "--max-steps", 5, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["data"]["data"] == str(tmp_path / "moved")
    assert len(config["resumed"]) == 3


def test_several_paths_with_columns_move_as_well(call_script, tmp_path):
    rows = [{"title": f"story {i}", "body": "once upon a time " * 9} for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"title": "excluded", "body": "words"}))
    done = call_script(
        PRETRAIN, *TINY, "--data", "a.jsonl:title,body", "--exclude", "b.jsonl:body", "--out", "run"
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    done = call_script(PRETRAIN, "--resume", "../run", *LONGER, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr


def test_another_path_to_the_same_model_contradicts_nothing(call_script, tmp_path, run):
    flags = TINY[TINY.index("--batch-size") :]
    done = call_script(TRAIN, *flags, "--data", "data", "--model", "run", "--out", "second")
    assert done.returncode == 0, done.stderr
    for same in ("./run", tmp_path / "run"):
        done = call_script(TRAIN, "--resume", tmp_path / "second", "--model", same)
        assert done.returncode == 0 and "this run is complete" in done.stdout
    ended = call_script(TRAIN, "--resume", "second", "--model", "data")
    refused(ended, "--model data contradicts the run")
