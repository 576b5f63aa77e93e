"""Tables in, tables out: predict.py and respond.py keep every column and every row."""

import csv
import datetime
import json

import polars as pl
import pytest
import torch
from conftest import refused

from gpt2.checkpoint import Recipe, TrainingState, load_checkpoint, save_checkpoint
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.support import streaming
from gpt2.support.streaming import add_columns, open_table
from gpt2.support.table_output import writing_table
from gpt2.tokenizer import get_encoding
from instruction.template import Template

PREDICT, RESPOND = "classification/predict.py", "instruction/respond.py"
CONFIG = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=64, vocab_size=8192)
ROWS = [
    {"id": "01", "title": "Fine", "body": "a film, \"good\" and long\nin two lines", "label": "x"},
    {"id": "002", "title": "", "body": "", "label": ""},
    {"id": "3", "title": "6\" screen", "body": "dull; \u2028 null", "label": "y"},
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier that was trained on the columns title and body."""
    torch.manual_seed(0)
    model = GPT2(CONFIG, ClassificationHead(CONFIG, 2, "mean"))
    settings = {"labels": ["neg", "pos"], "max_length": 64, "truncation": "head",
                "text_column": "title,body", "label_column": "topic"}  # fmt: skip
    folder = tmp_path_factory.mktemp("classifier") / "run"
    folder.mkdir()
    recipe = Recipe("classification", get_encoding("mini"), settings)
    save_checkpoint(folder / "best", model, recipe, TrainingState())
    return folder


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    """A language model that was trained on the columns question and about."""
    torch.manual_seed(0)
    model = GPT2(CONFIG, LanguageModelHead(CONFIG))
    template = {"with_input": "{instruction} {input}:", "without_input": "{instruction}:"}
    settings = {"template": template, "max_length": 64, "instruction_column": "question",
                "input_column": "about", "output_column": "answer"}  # fmt: skip
    Template(**template)
    folder = tmp_path_factory.mktemp("assistant") / "run"
    folder.mkdir()
    recipe = Recipe("instruction", get_encoding("mini"), settings)
    save_checkpoint(folder / "best", model, recipe, TrainingState())
    return folder


def write(path, rows=ROWS):
    """The rows as a file of this kind."""
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        pl.DataFrame(rows).write_parquet(path)
    return path


def read(path):
    """The rows of a file, by another reader than the project's."""
    if path.suffix in (".csv", ".tsv"):
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    if path.suffix == ".jsonl":
        return list(map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1]))
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return pl.read_parquet(path).to_dicts()


KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out", KINDS)
def test_every_column_and_row_is_kept_in_every_format(tmp_path, kind, out):
    table = open_table(write(tmp_path / f"a{kind}"))
    assert table.rows == 3 and list(table.schema) == list(ROWS[0])
    path = tmp_path / f"b{out}"
    with writing_table(path, table.schema | {"n": pl.Int64()}) as append:
        for part in table.parts():
            append(add_columns(part, {"n": list(range(len(part)))}))
    found = read(path)
    assert [list(row) for row in found] == [[*ROWS[0], "n"]] * 3
    assert [{**row, "n": int(row["n"])} for row in found] == [
        row | {"n": number} for number, row in enumerate(ROWS)
    ]
    assert {file.name for file in tmp_path.iterdir()} == {f"a{kind}", path.name}


def test_predict_labels_a_table_by_the_columns_of_the_run(call_script, run, tmp_path):
    write(tmp_path / "new.csv")
    done = call_script(PREDICT, run, "--file", "new.csv", "--out", "out.csv", "--probabilities")
    assert done.returncode == 0, done.stderr
    assert "out.csv: 3 rows" in done.stdout and "without text, 1" in done.stdout
    assert done.stderr == "new.csv has a column 'label'; the model's is called 'predicted_label'\n"
    found = read(tmp_path / "out.csv")
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS
    assert list(found[0])[4:] == ["predicted_label", "probability", "probability_neg",
                                  "probability_pos"]  # fmt: skip
    alone = call_script(PREDICT, run, 'Fine a film, "good" and long in two lines', "--json")
    expected = json.loads(alone.stdout)
    assert found[0]["predicted_label"] == expected["label"]
    assert float(found[0]["probability"]) == pytest.approx(expected["probability"], abs=1e-2)
    assert float(found[2]["probability_neg"]) + float(found[2]["probability_pos"]) == (
        pytest.approx(1)
    )
    assert [found[1][name] for name in list(found[0])[4:]] == [""] * 4

    # another column; JSON has every class, and goes to standard output as well
    done = call_script(PREDICT, run, "--file", "new.csv", "--text-column", "title", "--out",
                       "out.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = read(tmp_path / "out.jsonl")
    assert [answer["predicted_label"] is None for answer in answers] == [False, True, False]
    assert set(answers[0]["probabilities"]) == {"neg", "pos"} and answers[1]["probability"] is None
    printed = call_script(PREDICT, run, "--file", "new.csv", "--text-column", "title", "--json")
    assert list(map(json.loads, printed.stdout.split("\n")[:-1])) == answers
    plain = call_script(PREDICT, run, "--file", "new.csv").stdout.split("\n")
    assert len(plain) == 5 and plain[2].endswith("(empty)") and "Fine a film" in plain[1]


def test_lines_become_a_table_too(call_script, run, tmp_path):
    (tmp_path / "texts.txt").write_text("title,body\na, b\n")  # a text a line, whatever is in it
    done = call_script(PREDICT, run, "--file", "texts.txt", "--out", "out.parquet")
    assert done.returncode == 0, done.stderr
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["text"].to_list() == ["title,body", "a, b"]
    assert found.columns == ["text", "label", "probability"]


def test_parquet_keeps_its_types(call_script, run, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_PARQUET_ROWS", 2)  # several parts, one of empty texts alone
    frame = pl.DataFrame(
        {
            "title": ["a", None, "", "b", "c"],
            "body": pl.Series(["x", "", None, "y", "z"], dtype=pl.Categorical),
            "n": pl.Series([1, 2, None, 4, 5], dtype=pl.Int16),
            "when": pl.Series([datetime.datetime(2020, 1, 1)] * 5, dtype=pl.Datetime("ns")),
            "many": [[1, 2], None, [], [3], [4]],
            "raw": [b"\xff\0"] * 5,
        }
    ).with_columns(pl.col("when").dt.offset_by("1ns"))
    frame.write_parquet(tmp_path / "a.parquet")
    done = call_script(PREDICT, run, "--file", "a.parquet", "--out", "b.parquet")
    assert done.returncode == 0, done.stderr
    found = pl.read_parquet(tmp_path / "b.parquet")
    assert found.drop("label", "probability").equals(frame)
    assert found.drop("label", "probability").schema == frame.schema
    assert found["label"].is_null().to_list() == [False, True, True, False, False]
    refused(call_script(PREDICT, run, "--file", "a.parquet", "--out", "b.csv"),
            "'many' is List", ".csv file cannot hold")  # fmt: skip
    refused(call_script(PREDICT, run, "--file", "a.parquet", "--out", "b.jsonl"), "'raw' is Binary")
    assert not list(tmp_path.glob("b.csv*")) + list(tmp_path.glob("b.jsonl*"))


def test_json_values_keep_their_type(call_script, run, tmp_path):
    lines = [
        '{"title": "a", "body": "b", "n": 1, "m": [1, {"x": null}], "big": 12345678901234567890}',
        '{"body": null, "title": "c", "n": 1.5, "m": "text", "flag": true}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    done = call_script(PREDICT, run, "--file", "a.jsonl", "--out", "b.jsonl")
    assert done.returncode == 0, done.stderr
    for line, row in zip(lines, read(tmp_path / "b.jsonl"), strict=True):
        given = json.loads(line)
        assert list(row.items())[: len(given)] == list(given.items())
    # in columns: what is of several types, or no single value, is JSON text
    assert call_script(PREDICT, run, "--file", "a.jsonl", "--out", "b.parquet").returncode == 0
    found = pl.read_parquet(tmp_path / "b.parquet")
    assert found["n"].to_list() == [1.0, 1.5] and found["flag"].to_list() == [None, True]
    assert found["m"].to_list() == ['[1, {"x": null}]', "text"]
    assert found["big"].to_list() == ["12345678901234567890", None]


def test_what_is_there_is_kept_and_nothing_is_left_half(call_script, run, tmp_path, monkeypatch):
    write(tmp_path / "new.csv")
    (tmp_path / "out.csv").write_text("mine")
    refused(call_script(PREDICT, run, "--file", "new.csv", "--out", "out.csv"), "--overwrite")
    files = {file.name for file in tmp_path.iterdir()}

    def stop(*arguments):
        raise KeyboardInterrupt

    for name in ("out.csv", "out.parquet"):
        with monkeypatch.context() as patched:
            patched.setattr("classification.predict.predict", stop)
            done = call_script(PREDICT, run, "--file", "new.csv", "--out", name, "--overwrite")
        assert done.returncode == 130 and "interrupted" in done.stderr
        assert {file.name for file in tmp_path.iterdir()} == files
    assert (tmp_path / "out.csv").read_text() == "mine"
    done = call_script(PREDICT, run, "--file", "new.csv", "--out", "out.csv", "--overwrite")
    assert done.returncode == 0 and len(read(tmp_path / "out.csv")) == 3


def test_a_full_disk_is_said_in_one_line(call_script, run, tmp_path, monkeypatch):
    write(tmp_path / "new.csv")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt2.support.table_output._delimited_line", full)
    done = call_script(PREDICT, run, "--file", "new.csv", "--out", "out.csv", "--text-column", "id")
    assert done.returncode == 2 and "out.csv: cannot be written (No space left" in done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"new.csv"}


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--file", "new.csv", "--text-column", "text,titel"], ["no column 'text'", "id, title"]),
        (["--file", "plain.csv"], ["no column 'title' (the run's --text-column", "text, label"]),
        (["--file", "new.csv", "--out", "a.xlsx"], ["--out a.xlsx", ".parquet"]),
        (["--file", "new.csv", "--out", "no/a.csv"], ["no folder no"]),
        (["--file", "new.csv", "--out", "a.jsonl", "--json"], ["--out FILE.jsonl"]),
        (["--file", "new.csv", "--probabilities"], ["go with --out"]),
        (["--text-column", "title", "a text"], ["--text-column is for a table"]),
        (["--file", "late.csv", "--out", "a.csv"], ["line 4 has 3 fields"]),
        (["--file", "late.jsonl", "--out", "a.csv"], ["line 2 is not JSON"]),
        (["--file", "number.jsonl"], ["row 2: 'title' is int, not text"]),
        (["--file", "cut.parquet"], ["cut.parquet", "Parquet"]),
        (["--file", "swallowed.csv"], ["line 7 opens a quote"]),
    ],
)
def test_bad_input(call_script, run, tmp_path, flags, parts):
    write(tmp_path / "new.csv")
    write(tmp_path / "plain.csv", [{"text": "a", "label": "b"}])
    (tmp_path / "late.csv").write_text("title,body\na,b\nc,d\ne,f,g\n")
    (tmp_path / "late.jsonl").write_text('{"title": "a", "body": "b"}\n{"title": \n')
    (tmp_path / "number.jsonl").write_text('{"title": "a", "body": "b"}\n{"title": 7, "body": ""}')
    whole = write(tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    rows = (('"' if i in (5, 25) else "") + f"text {i},{i % 2}\n" for i in range(40))
    (tmp_path / "swallowed.csv").write_text("title,body\n" + "".join(rows))
    before = sorted(tmp_path.rglob("*"))
    refused(call_script(PREDICT, run, *flags), *parts)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_tables_are_read_as_training_reads_them(call_script, run, tmp_path):
    """Semicolons, no header line, gzip, a JSON list that is called .jsonl."""
    import gzip

    (tmp_path / "a.csv").write_text("title;body\na;b\nc;d\n")
    (tmp_path / "b.csv").write_text("a,b\nc,d\n")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"title,body\na,b\nc,d\n"))
    rows = [{"title": "a", "body": "b"}, {"title": "c", "body": "d"}]
    (tmp_path / "d.jsonl").write_text(json.dumps(rows, indent=1))
    found = []
    for name, *flags in (
        ["a.csv"],
        ["b.csv", "--columns", "title,body"],
        ["c.csv.gz"],
        ["d.jsonl"],
    ):
        done = call_script(PREDICT, run, "--file", name, "--json", *flags)
        assert done.returncode == 0, done.stderr
        found.append(list(map(json.loads, done.stdout.splitlines())))
    assert found.count(found[0]) == 4 and [row["body"] for row in found[0]] == ["b", "d"]


def test_a_mistake_in_the_last_row_is_found_before_any_work(call_script, run, tmp_path):
    rows = [{"title": f"a {n}", "body": "b"} for n in range(4_500)]  # more than one part
    rows.append({"title": ["no text"], "body": "b"})
    (tmp_path / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call_script(PREDICT, run, "--file", "late.jsonl", "--json")
    refused(done, "row 4501", "title")
    assert done.stdout == ""


def test_compressed_lines_are_lines(call_script, run, tmp_path):
    import gzip

    (tmp_path / "lines.txt.gz").write_bytes(gzip.compress("a fine film\nn\u00e9 pas\n".encode()))
    done = call_script(PREDICT, run, "--file", "lines.txt.gz", "--json")
    assert done.returncode == 0, done.stderr
    texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    assert texts == ["a fine film", "n\u00e9 pas"]


def test_a_run_without_saved_columns_reads_text(call_script, run, tmp_path):
    best = tmp_path / "old/best"
    model, recipe = load_checkpoint(run, "classification")
    old = {name: recipe.settings[name] for name in ("labels", "max_length", "truncation")}
    best.parent.mkdir()
    save_checkpoint(best, model, Recipe("classification", recipe.encoding, old), TrainingState())
    write(tmp_path / "plain.csv", [{"text": "a", "label": "b"}])
    assert call_script(PREDICT, "old", "--file", "plain.csv").returncode == 0


def test_a_large_table_goes_through_in_parts(run, tmp_path, monkeypatch):
    """Never more rows in memory than a part has."""
    monkeypatch.setattr(streaming, "ROWS", 10)
    (tmp_path / "a.csv").write_text("title\n" + "".join(f"{i}\n" for i in range(95)))
    table = open_table(tmp_path / "a.csv")
    sizes = [len(part) for part in table.parts()]
    assert table.rows == 95 and sizes == [10] * 9 + [5]
    assert [row["title"] for part in table.parts() for row in part] == list(map(str, range(95)))


def test_answers_to_a_table(call_script, assistant, tmp_path):
    rows = [{"id": "01", "question": "Say hi.", "about": ""},
            {"id": "02", "question": "Is it so?", "about": "rain"}]  # fmt: skip
    short = ("--max-new-tokens", 4, "--precision", "float32")
    alone = [
        call_script(RESPOND, assistant, row["question"], "--input", row["about"], *short).stdout
        for row in rows
    ]
    for kind in KINDS:
        write(tmp_path / f"in{kind}", rows)
        done = call_script(RESPOND, assistant, "--file", f"in{kind}", "--out", f"out{kind}", *short)
        assert done.returncode == 0, done.stderr
        found = read(tmp_path / f"out{kind}")
        assert [list(row) for row in found] == [["id", "question", "about", "output"]] * 2
        assert [row["output"].strip() for row in found] == [answer.strip() for answer in alone]
        assert [row["id"] for row in found] == ["01", "02"]
    # where the table has an output, which is somebody else's
    write(tmp_path / "b.csv", [row | {"output": "mine"} for row in rows])
    done = call_script(RESPOND, assistant, "--file", "b.csv", *short)
    printed = list(map(json.loads, done.stdout.splitlines()))
    assert [row["output"] for row in printed] == ["mine"] * 2
    assert [row["answer"].strip() for row in printed] == [answer.strip() for answer in alone]
    refused(call_script(RESPOND, assistant, "--file", "b.csv", "--out", "out.csv"), "--overwrite")
    refused(call_script(RESPOND, assistant, "--file", "b.csv", "--instruction-column", "x"),
            "no column 'x'", "id, question, about")  # fmt: skip
    write(tmp_path / "c.csv", [*rows, {"id": "3", "question": " ", "about": ""}])
    refused(call_script(RESPOND, assistant, "--file", "c.csv", "--out", "c2.csv"), "row 3 needs")
    assert not (tmp_path / "c2.csv").exists()
