"""The scripts from outside, as a user runs them: whole runs, other people's files, bad input."""

import io
import json

import polars as pl
import pytest
from conftest import REPOSITORY, refused
from small_hub import SmallHub, turn_client_to

from classification.sources import IMDB_REVISION

# A model that trains in a second, for what does not depend on the model.
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--epochs", 1,
        "--max-length", 32)  # fmt: skip


def write_rows(path, labels=("sad", "funny", "odd"), count=60, names=("text", "label")):
    rows = [(f"a {labels[i % len(labels)]} story, number {i}", labels[i % len(labels)])
            for i in range(count)]  # fmt: skip
    frame = pl.DataFrame(rows, schema=list(names), orient="row")
    {
        ".csv": frame.write_csv,
        ".tsv": lambda p: frame.write_csv(p, separator="\t"),
        ".jsonl": frame.write_ndjson,
        ".parquet": frame.write_parquet,
    }[path.suffix](path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, script_environment):
    """One tiny run on a three-class CSV with string labels, started inside the script's folder."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("trained")
    data = write_rows(folder / "stories.csv")
    script = REPOSITORY / "classification/train_gpt.py"
    done = subprocess.run(
        [sys.executable, script.name, "--data", data, "--out", folder / "run", *map(str, TINY)],
        capture_output=True, text=True, env=script_environment, cwd=script.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_the_run_folder_is_complete(trained, call_script, tmp_path):
    run, done = trained
    assert done.stderr == ""  # no bars, no warnings when the output is not a terminal
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "before.json", "results.json", "report.md",
                     "curves.png", "reliability.png", "mistakes.html", "predictions.parquet",
                     "validation_predictions.parquet", "best", "last", ".lock"}  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == "classification"
    assert results["data"] | {"train": 38, "validation": 10, "test": 12} == results["data"]
    assert results["model"]["parameters"] == results["model"]["trainable"] > 0
    for who in ("majority", "baseline", "before", "after"):
        metrics = results[who]["test"]
        assert set(metrics) == {"loss", "accuracy", "precision", "recall", "f1"}
        assert all(0 <= metrics[key] <= 1 for key in metrics if key != "loss")
    assert 0.9 < results["training"]["useful_token_share"] <= 1
    assert results["training"]["steps"] == 3
    assert sum(map(sum, results["confusion"]["matrix"])) == 12
    baseline = call_script("baselines/train_logreg.py", "--data", run.parent / "stories.csv",
                       "--out", tmp_path / "baseline")  # fmt: skip
    assert baseline.returncode == 0, baseline.stderr
    alone = json.loads((tmp_path / "baseline/results.json").read_text())["baseline"]
    assert alone["test"] == results["baseline"]["test"]  # on exactly the same splits
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["model"]["n_embd"] == 16 and "torch" in config["versions"]
    assert config["command"][1] == "--data"
    report = (run / "report.md").read_text()
    assert "| majority class" in report and "## Each class" in report and "curves.png" in report
    assert "python " in done.stdout.split("next, ask")[1]


def test_predict_takes_arguments_standard_input_and_files(trained, call_script, tmp_path):
    run, _ = trained
    texts = ["a sad story", "a funny <b>story</b>", "odd"]
    by_argument = call_script("classification/predict.py", run, *texts, "--json")
    by_input = call_script("classification/predict.py", run, "--json", stdin="\n".join(texts))
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    by_file = call_script("classification/predict.py", run, "--json", "--file", "texts.txt")
    assert by_argument.returncode == 0, by_argument.stderr
    assert by_argument.stdout == by_input.stdout == by_file.stdout
    answers = [json.loads(line) for line in by_argument.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    for answer in answers:
        assert set(answer["probabilities"]) == {"sad", "funny", "odd"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    in_the_middle = call_script("classification/predict.py", run, "--json", *texts)
    assert in_the_middle.stdout == by_argument.stdout
    table = call_script("classification/predict.py", run, *texts).stdout.splitlines()
    assert len(table) == 4 and table[1].endswith(" %  a sad story")


def test_predict_keeps_the_order_over_many_lines_and_marks_empty_ones(trained, call_script):
    run, _ = trained
    texts = [f"{'word ' * (i % 7)}{i}" for i in range(5000)]
    texts[4321] = "  "
    done = call_script("classification/predict.py", run, "--json", stdin="\n".join(texts))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    assert [i for i, answer in enumerate(answers) if answer["label"] is None] == [4321]


def test_predict_ends_quietly_when_the_reader_goes(trained, script_environment):
    import subprocess
    import sys

    run, _ = trained
    script = REPOSITORY / "classification/predict.py"
    lines = "\n".join(f"story {i}" for i in range(9000))
    done = subprocess.run(
        f'"{sys.executable}" "{script}" "{run}" | head -n 1', shell=True, input=lines,
        capture_output=True, text=True, env=script_environment,
    )  # fmt: skip
    assert done.stdout.startswith("label") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name, columns",
    [
        ("a.tsv", ("body", "topic")),
        ("a.jsonl", ("text", "label")),
        ("a.parquet", ("text", "label")),
    ],
)
def test_other_files_train_and_predict(call_script, tmp_path, name, columns):
    write_rows(tmp_path / name, labels=("no", "yes"), names=columns)
    done = call_script(
        "classification/train_gpt.py", "--data", name, "--text-column", columns[0],
        "--label-column", columns[1], "--out", "run", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = call_script("classification/predict.py", "run", "a yes story", "--json")
    assert json.loads(done.stdout)["label"] in ("no", "yes")


def test_the_same_seed_gives_the_same_results_from_inside_the_folder(
    trained, call_script, tmp_path
):
    """`python train_gpt.py` inside classification/ works as from anywhere else."""
    run, _ = trained
    data = run.parent / "stories.csv"
    done = call_script("classification/train_gpt.py", "--data", data, "--out", "again", *TINY)
    assert done.returncode == 0, done.stderr
    results = [json.loads((folder / "results.json").read_text())
               for folder in (run, tmp_path / "again")]  # fmt: skip
    for key in ("before", "after", "mistakes", "confusion"):
        assert results[0][key] == results[1][key]
    weights = [(folder / "last/model.safetensors").read_bytes()
               for folder in (run, tmp_path / "again")]  # fmt: skip
    assert weights[0] == weights[1]


def test_runs_without_a_name_get_one_and_never_collide(call_script, tmp_path):
    for _ in range(2):
        assert call_script("classification/train_gpt.py", *TINY).returncode == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "classification-sample-scratch", "classification-sample-scratch-2",
    }  # fmt: skip


def test_imdb_is_downloaded_once_and_then_read_from_the_cache(call_script, tmp_path, monkeypatch):
    def parquet(count):
        file = io.BytesIO()
        texts = [f"review {count} {i}" for i in range(count)]
        pl.DataFrame({"text": texts, "label": [i % 2 for i in range(count)]}).write_parquet(file)
        return file.getvalue()

    files = {
        "README.md": b"a card",
        "plain_text/train-00000-of-00001.parquet": parquet(40),
        "plain_text/test-00000-of-00001.parquet": parquet(10),
        "plain_text/unsupervised-00000-of-00001.parquet": b"never asked for",
    }
    with SmallHub("stanfordnlp/imdb", IMDB_REVISION, files) as hub:
        turn_client_to(hub, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        train = ("classification/train_gpt.py", "--data", "imdb", *TINY, "--batch-size", 8)
        first = call_script(*train, "--out", "one", offline=False)
        assert first.returncode == 0, first.stderr
        fetched = {path for command, path in hub.requests if command == "GET" and "storage" in path}
        assert len(fetched) == 2 and not any("unsupervised" in path for path in fetched)
    second = call_script(*train, "--out", "two", offline=False)  # the server is gone
    assert second.returncode == 0, second.stderr
    results = json.loads((tmp_path / "two/results.json").read_text())
    assert results["data"]["labels"] == ["negative", "positive"] and results["data"]["test"] == 10


# ---- bad input: one line that names what is wrong, exit status 2, nothing written


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--data", "nothing.csv"], ["--data nothing.csv", "no such file"]),
        (["--data", "imdb"], ["stanfordnlp/imdb", "cannot be downloaded", "--data PATH"]),
        (["--text-column", "body", "--data", "ok.csv"], ["no column 'body'", "text, label"]),
        (["--data", "ok.csv", "--max-train", "15"], ["15 training rows", "batch of 16"]),
        (["--max-length", "513"], ["--max-length 513", "512"]),
        (["--epoch", "3"], ["unknown argument '--epoch'", "did you mean --epochs?"]),
        (["--epochs", "three"], ["--epochs", "three"]),
        (["--epochs", "0"], ["--epochs is 0", "at least 1"]),
        (["--learning-rate", "nan"], ["--learning-rate is nan", "finite"]),
        (["--learning-rate", "inf"], ["--learning-rate is inf", "finite"]),
        (["--seed", "4294967296"], ["--seed is 4294967296", "at most"]),
        (["--data", "latin.csv"], ["latin.csv", "line 2 is not UTF-8"]),
        (["--data", "empty.csv"], ["empty.csv", "empty"]),
        (["--data", "one.csv"], ["one.csv", "same label, 'good'"]),
        (["--data", "unseen"], ["unseen", "'awful'", "'bad', 'good'"]),
        (["--data", "x" * 300], ["File name too long"]),
        (["--pooling", "max"], ["--pooling", "max", "mean"]),
        (["--train", "last:9"], ["--train last:9", "6 blocks"]),
        (["--n-layer", "3"], ["--n-layer 3", "--model scratch"]),
        (["--model", "scratch", "--n-embd", "30", "--n-head", "4"], ["multiple of n_head"]),
        (["--device", "mps"], ["--device mps", "--device cpu"]),
        (["--out", "ok.csv"], ["--out ok.csv", "not a folder"]),
        (["--out", "ok.csv/run"], ["--out ok.csv/run", "cannot be written"]),
        (["--out", "other"], ["--out other", "not a run"]),
        (["--out", "other", "--overwrite"], ["--out other", "not a run"]),
    ],
)
def test_bad_input_to_training(call_script, tmp_path, monkeypatch, flags, parts):
    write_rows(tmp_path / "ok.csv")
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,good\n")
    (tmp_path / "empty.csv").touch()
    write_rows(tmp_path / "one.csv", labels=("good",))
    (tmp_path / "unseen").mkdir()
    write_rows(tmp_path / "unseen/train.csv", labels=("good", "bad"))
    write_rows(tmp_path / "unseen/test.csv", labels=("awful",))
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    refused(call_script("classification/train_gpt.py", *flags), *parts)
    assert sorted(tmp_path.rglob("*")) == before


def test_texts_without_words_do_not_forbid_training(call_script, tmp_path):
    signs = "".join(f"{'!' * i},{i % 2}\n" for i in range(1, 31))
    (tmp_path / "signs.csv").write_text("text,label\n" + signs)
    flags = [*TINY, "--data", "signs.csv", "--batch-size", "8", "--out", "run"]
    done = call_script("classification/train_gpt.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "| logistic regression on characters (count) |" in done.stdout
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["baseline"]["name"] == "logistic regression on characters"
    assert 0 <= results["baseline"]["test"]["accuracy"] <= 1


def test_a_run_is_never_overwritten_unasked(call_script, tmp_path):
    train = ("classification/train_gpt.py", "--out", "run", *TINY)
    assert call_script(*train, "--seed", 1).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for mine in ("notes.txt", "holiday.png"):
        (tmp_path / "run" / mine).write_text("mine")
    refused(call_script(*train), "--out run: already holds a run", "--overwrite")
    for path, content in before.items():
        assert path.read_bytes() == content
    assert call_script(*train, "--seed", 2, "--overwrite").returncode == 0
    for mine in ("notes.txt", "holiday.png"):
        assert (tmp_path / "run" / mine).read_text() == "mine"
    assert (tmp_path / "run/best/model.safetensors").read_bytes() != before[
        tmp_path / "run/best/model.safetensors"
    ]


def test_bad_input_to_prediction(trained, call_script, tmp_path):
    run, _ = trained
    predict = "classification/predict.py"
    refused(call_script(predict, tmp_path, "text"), "not a run folder")
    refused(
        call_script(predict, run, "--file", "nothing.txt"), "--file nothing.txt", "no such file"
    )
    refused(call_script(predict, run, "text", "--file", "x"), "either texts or --file")
    (tmp_path / "unfinished").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "unfinished" / name).write_text("{}")
    refused(call_script(predict, tmp_path / "unfinished", "text"), "has not saved a model")
    refused(call_script(predict), "RUN")
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    refused(call_script(predict, run, "--file", "latin.txt"), "latin.txt", "not UTF-8")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (run / "best").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(call_script(predict, broken, "text"), "model.safetensors", "is damaged", "SHA-256")
    description = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(description | {"settings": {}}))
    refused(call_script(predict, broken, "text"), "config.json", "is damaged")


@pytest.mark.parametrize(
    "script", ["classification/train_gpt.py", "classification/predict.py",
               "baselines/train_logreg.py", "benchmarks/decoding_speed.py",
               "pretraining/train_tokenizer.py", "instruction/instruction_finetuning.py",
               "instruction/respond.py", "classification/evaluate.py", "instruction/evaluate.py"]
)  # fmt: skip
def test_help_needs_nothing_and_shows_defaults(call_script, script):
    done = call_script(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout
    if script == "classification/train_gpt.py":
        for heading in ("Data:", "Model:", "Classification:", "Training:", "Run:"):
            assert heading in done.stdout
        assert "[0.99]" in done.stdout and "[sample]" in done.stdout
