"""evaluate.py of both tasks on a finished run; what a run says of its own rows when it ends; the
licences that an exported model carries."""

import json
import shutil
from types import SimpleNamespace

import polars as pl
import pytest
from conftest import refused

from classification.evaluate import EvaluationSettings, read_labelled
from gpt2.checkpoint import Recipe
from gpt2.support.splits import short_text
from gpt2.weights.building import ModelSettings
from gpt2.weights.licences import licences

SMALL = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16)
TRAIN, EVALUATE = "classification/train_gpt.py", "classification/evaluate.py"
TUNE, JUDGE = "instruction/instruction_finetuning.py", "instruction/evaluate.py"


def stories(path, count, split=None, labels=("sad", "funny", "odd")):
    rows = [{"story": f"It was {labels[i % len(labels)]}, said number {i}.",
             "kind": labels[i % len(labels)]} for i in range(count)]  # fmt: skip
    if split:
        rows = [row | {"part": split(i)} for i, row in enumerate(rows)]
    pl.DataFrame(rows).write_csv(path)
    return rows


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A folder for what is trained once, and what training printed."""
    return tmp_path_factory.mktemp("once"), []


@pytest.fixture
def run(once, call_script, tmp_path):
    """A run on a file with columns and splits of its own; a copy, and what training printed."""
    folder, printed = once
    if not printed:
        stories(folder / "stories.csv", 60, lambda i: ("train", "test", "validation")[i // 6 % 3])
        done = call_script(
            TRAIN, "--data", "stories.csv", "--text-column", "story", "--label-column", "kind",
            "--split-column", "part", *SMALL, "--max-steps", 2, "--max-length", 16,
            "--batch-size", 4, "--pooling", "last", "--out", "run", cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return SimpleNamespace(run=tmp_path / "run", stdout=printed[0])


def test_the_run_and_its_evaluation_agree(call_script, run, tmp_path):
    done = call_script(EVALUATE, "run", "--data", "stories.csv", "--split-column", "part",
                       "--out", "evaluation")  # fmt: skip
    assert done.returncode == 0, done.stderr
    trained = json.loads((run.run / "results.json").read_text())
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert results["metrics"] == pytest.approx(trained["after"]["test"])
    for key in ("confusion", "mistakes", "per_class"):
        assert results[key] == trained[key]
    assert results["data"]["split"] == "test" and results["data"]["rows"] == 18
    report = (tmp_path / "evaluation/report.md").read_text()
    assert "| accuracy" in report and "## Each class" in report and "mistakes" in report

    table = pl.read_parquet(tmp_path / "evaluation/predictions.parquet")
    names = [f"probability_{label}" for label in ("funny", "odd", "sad")]
    assert table.columns == ["row", "text", "label", "predicted", *names]
    right = (table["label"] == table["predicted"]).mean()
    assert right == pytest.approx(results["metrics"]["accuracy"])
    best = table.select(pl.concat_list(names).list.arg_max())["probability_funny"].to_list()
    assert [("funny", "odd", "sad")[place] for place in best] == table["predicted"].to_list()


def test_a_runs_own_test_split_is_found_from_any_folder(call_script, run, tmp_path):
    """--data was given as a path in the folder where the run was started."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = json.loads((run.run / "config.json").read_text())
    config["folder"] = str(tmp_path)  # the run that a fixture has copied here
    (run.run / "config.json").write_text(json.dumps(config))
    done = call_script(EVALUATE, "../run", "--out", "own", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    found = json.loads((elsewhere / "own/results.json").read_text())
    trained = json.loads((run.run / "results.json").read_text())
    assert found["metrics"] == pytest.approx(trained["after"]["test"])
    warned = call_script(EVALUATE, "../run", "--data", "../stories.csv", cwd=elsewhere)
    assert "warning: the run was trained" in warned.stdout

    del config["folder"]  # a run of older code: found where it was started, and named elsewhere
    (run.run / "config.json").write_text(json.dumps(config))
    assert call_script(EVALUATE, "run").returncode == 0
    refused(call_script(EVALUATE, "../run", cwd=elsewhere), "../run: its --data stories.csv",
            "the folder in which the run was started")  # fmt: skip
    config["settings"]["data"]["data"] = 5
    (run.run / "config.json").write_text(json.dumps(config))
    refused(call_script(EVALUATE, "run"), "run: does not say which data")


def test_other_rows_are_cleaned_counted_and_named(call_script, run, tmp_path):
    rows = [("A &amp; B<br>were  sad", "sad"), ("", "odd"), ("fun", "funny"), ("fun", "funny")]
    pl.DataFrame(rows, schema=["story", "kind"], orient="row").write_csv(tmp_path / "new.csv")
    done = call_script(EVALUATE, "run", "--data", "new.csv", "--out", "evaluation")
    assert done.returncode == 0, done.stderr
    assert "all rows: 3 rows" in done.stdout and "empty text 1" in done.stdout
    assert "warning" not in done.stdout
    table = pl.read_parquet(tmp_path / "evaluation/predictions.parquet")
    assert table["text"].to_list() == ["A & B were sad", "fun", "fun"]
    assert table["row"].to_list() == [1, 3, 4]
    # printed without --out, with a warning where the run knows the rows
    done = call_script(EVALUATE, "run", "--data", "stories.csv")
    assert "## Confusion matrix" in done.stdout and "warning: the run was trained" in done.stdout
    # the built-in data have columns of their own
    refused(call_script(EVALUATE, "run", "--data", "sample"), "'negative' (60 rows)", "'funny'")


def test_numbers_with_and_without_a_fraction_are_one_label(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1.0\nb,0.0\n")  # as pandas writes it
    settings = {"labels": ["0", "1"], "text_column": "text", "label_column": "label"}
    recipe = Recipe("classification", None, settings)
    rows, _ = read_labelled(EvaluationSettings(data=str(tmp_path / "a.csv")), recipe)
    assert rows["label"].to_list() == [1, 0]


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--data", "nothing.csv"], ["--data nothing.csv", "no such file"]),
        (["--data", "new.csv"], ["does not know the labels 'grim' (2 rows), 'dull' (1 rows)",
                                 "'funny', 'odd', 'sad'"]),
        (["--data", "new.csv", "--text-column", "body"], ["no column 'body'", "story, kind"]),
        (["--data", "empty.csv"], ["no rows with a text and a label"]),
        (["--data", "stories.csv", "--out", "run"], ["--out run", "no evaluation"]),
        (["--data", "stories.csv", "--out", "stories.csv"], ["is a file"]),
        (["--data", "stories.csv", "--out", "there"], ["holds an evaluation", "--overwrite"]),
        (["--data", "stories.csv", "--overwrite"], ["--overwrite goes with --out"]),
    ],
)  # fmt: skip
def test_bad_input(call_script, run, tmp_path, flags, parts):
    (tmp_path / "new.csv").write_text("story,kind\na,grim\nb,grim\nc,dull\nd,odd\n")
    (tmp_path / "empty.csv").write_text("story,kind\n,odd\nd,\n")
    (tmp_path / "there").mkdir()
    for name in ("results.json", "predictions.parquet"):
        (tmp_path / "there" / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    refused(call_script(EVALUATE, "run", *flags), *parts)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_hint_and_the_card_are_of_the_runs_own_rows(call_script, run, tmp_path):
    hint = run.stdout.split("ask the model yourself:")[1]
    assert "said number" in hint and "predict.py run '" in hint
    settings = json.loads((run.run / "best/config.json").read_text())["settings"]
    assert settings["text_column"] == "story" and settings["label_column"] == "kind"
    assert settings["trained_on"] == ["stories.csv: its licence is not known to gpt2-finetuning"]
    done = call_script("gpt2/weights/export.py", "run", "card")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "card/README.md").read_text()
    assert "said number" in card and "license: other" in card
    assert card.endswith("- stories.csv: its licence is not known to gpt2-finetuning\n")


def test_licences_are_carried_from_run_to_run(run, tmp_path, monkeypatch):
    mini = licences(ModelSettings("mini"), ["alpaca"])
    assert len(mini) == 3 and "IMDb" in mini[0] and "CC BY-NC 4.0" in mini[1]
    assert mini[2].startswith("Alpaca") and "CC BY-NC 4.0" in mini[2]
    assert licences(ModelSettings("mini", "random"), ["sample"]) == [
        "the built-in sample of gpt2-finetuning: MIT"
    ]
    assert licences(ModelSettings("gpt2"), []) == ["weights of openai-community/gpt2: MIT"]
    monkeypatch.chdir(tmp_path)
    assert licences(ModelSettings("run"), ["../data/imdb"])[0].startswith("stories.csv")
    config = run.run / "best/config.json"
    description = json.loads(config.read_text())
    del description["settings"]["trained_on"]  # an older run
    config.write_text(json.dumps(description))
    assert "has not saved what it was trained on" in licences(ModelSettings("run"), [])[0]


def test_an_example_is_short_and_can_stand_in_a_command():
    assert (
        short_text(["-v is a flag", "it's quoted", "two\nlines here", "a fine one"]) == "a fine one"
    )
    long = "-- It was a dark and 'stormy' night; the rain fell in torrents, except at intervals"
    assert (
        short_text([long]) == "It was a dark and 'stormy' night; the rain fell in torrents, except"
    )


def test_instructions_are_evaluated(call_script, tmp_path):
    rows = [{"question": f"What is number {i}?", "about": "numbers" if i % 3 == 0 else "",
             "answer": f"it is {i}"} for i in range(40)]  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps(rows))
    trained = call_script(
        TUNE, "--data", "q.json", "--instruction-column", "question", "--input-column", "about",
        "--output-column", "answer", *SMALL, "--max-steps", 1, "--batch-size", 4, "--max-length",
        128, "--test-answers", 2, "--answer-tokens", 2, "--out", "run",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    # its own validation rows are asked at each evaluation, and named at the end
    assert trained.stdout.count("  What is number") == 4 and "colours" not in trained.stdout
    assert "respond.py run 'What is number" in trained.stdout
    results = json.loads((tmp_path / "run/results.json").read_text())

    short = ("--test-answers", 3, "--answer-tokens", 2)
    done = call_script(JUDGE, "run", "--data", "q.json", *short, "--out", "evaluation")
    assert done.returncode == 0, done.stderr
    assert "40 rows" in done.stdout and "warning: the run was trained" in done.stdout
    found = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert found["metrics"]["loss"] == pytest.approx(results["after"]["test"]["loss"], rel=0.1)
    assert set(found["metrics"]) >= {"perplexity", "rouge_l", "ends_with_eos", "format_adherence"}
    table = pl.read_parquet(tmp_path / "evaluation/predictions.parquet")
    assert table.columns == ["row", "instruction", "input", "reference", "answer", "ended"]
    for row in table.to_dicts():
        assert row["instruction"] == f"What is number {row['row'] - 1}?"
        assert row["reference"] == f"it is {row['row'] - 1}"

    # the built-in rows have columns of their own; the report is printed
    done = call_script(JUDGE, "run", "--data", "sample", *short)
    assert done.returncode == 0, done.stderr
    assert "| perplexity" in done.stdout and "## Answers" in done.stdout
    (tmp_path / "elsewhere").mkdir()  # where its data are found, too
    own = call_script(JUDGE, "../run", "--test-answers", 2, "--answer-tokens", 2,
                      cwd=tmp_path / "elsewhere")  # fmt: skip
    assert own.returncode == 0 and "warning" not in own.stdout, own.stderr
    assert f"{results['after']['test']['loss']:.4f} |" in own.stdout
    (tmp_path / "other.jsonl").write_text('{"question": "x", "reply": "y"}\n')
    refused(call_script(JUDGE, "run", "--data", "other.jsonl"), "no field", "about")


def test_what_moved_the_model(call_script, run):
    """explain.py agrees with predict.py; the report leads to its mistakes in colours."""
    text = "It was odd, said number 7."
    done = call_script("classification/explain.py", "run", text, "--html", "words.html")
    assert done.returncode == 0, done.stderr
    predicted = call_script("classification/predict.py", "run", text, "--json").stdout
    predicted = json.loads(predicted)
    head, *scores = done.stdout.splitlines()[:7]
    assert head.startswith(f"{predicted['label']} {100 * predicted['probability']:.1f} %")
    assert sorted(line.split()[1] for line in scores) == sorted(text.split())
    assert "said</span>" in (run.run.parent / "words.html").read_text()
    assert "[mistakes.html](mistakes.html)" in (run.run / "report.md").read_text()
    assert "said</span>" in (run.run / "mistakes.html").read_text()
    done = call_script("classification/explain.py", "run", "--check", 4)
    assert done.returncode == 0 and done.stdout.startswith("4 test texts"), done.stderr
    unknown = call_script("classification/explain.py", "run", text, "--label", "dull")
    refused(unknown, "--label dull", "sad")
    refused(call_script("classification/explain.py", "run", " "), "the text is empty")
