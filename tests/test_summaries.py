"""One --instruction for all rows: read, learnt, asked again, and beside the first sentences."""

import json
import sys

import polars as pl
import pytest
from conftest import refused

from gpt2.tokenizer import get_encoding
from instruction.data import load_splits
from instruction.evaluation import first_sentences
from instruction.sources import DataSettings
from instruction.template import Template

TUNE, ASK, JUDGE = (
    f"instruction/{name}.py" for name in ("instruction_finetuning", "respond", "evaluate")
)
COLUMNS = ("--input-column", "article", "--output-column", "summary")
SHORT = ("--model", "scratch", "--n-layer", 1, "--n-head", 1, "--n-embd", 8, "--max-steps", 1,
         "--batch-size", 4, "--max-length", 128, "--test-answers", 3, "--answer-tokens",
         2)  # fmt: skip


def write_news(folder, more=()):
    rows = [{"article": f"It rained in town {n}. Nobody was hurt. It went on. Then it ended.",
             "summary": f"Rain in town {n}. Nobody was hurt."} for n in range(40)]  # fmt: skip
    pl.DataFrame([*rows, *more]).write_csv(folder / "news.csv")


def test_every_row_gets_the_instruction_and_needs_an_input(tmp_path):
    nothing = {"article": " ", "summary": "x"}
    copy = {
        "article": "It rained in town 7. Nobody was hurt. It went on. Then it ended.",
        "summary": "y",
    }
    write_news(tmp_path, [nothing, nothing, copy])
    settings = DataSettings(str(tmp_path / "news.csv"), instruction="Summarise.",
                            input_column="article", output_column="summary")  # fmt: skip
    splits = load_splits(settings, Template(), get_encoding("mini"), seed=1)
    rows = pl.concat([rows for _, rows in splits.items()])
    assert len(rows) == 40 and set(rows["instruction"]) == {"Summarise."}
    assert all(text.startswith("It rained") for text in rows["input"])
    assert splits.removed["empty input"] == 2 and splits.removed["duplicate"] == 1


@pytest.fixture
def run(tmp_path, call_script):
    write_news(tmp_path)
    done = call_script(TUNE, "--data", "news.csv", "--instruction", "Summarise.", *COLUMNS, *SHORT,
                       "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_summary_run_from_data_to_new_texts(run, tmp_path, call_script, monkeypatch):
    results = json.loads((tmp_path / "run/results.json").read_text())
    texts = [answer["input"] for answer in results["answers"]]
    # the first three of four sentences: all of the reference's words but "rain", and 6 others
    expected = {"rouge_1": 2 * (6 / 11) * (6 / 7) / (6 / 11 + 6 / 7)}
    assert results["first_sentences"]["test"]["rouge_1"] == pytest.approx(expected["rouge_1"])
    header, *lines = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    assert header.split("|")[4].strip() == "first 3 sentences"
    shown = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in lines}
    assert shown["loss (nats a response token)"] == "-"
    assert shown["ROUGE-1"] == f"{100 * expected['rouge_1']:.1f} %"
    assert "respond.py run 'It rained in town" in run.stdout

    # what is asked is the text: alone, as lines, in a table; or an instruction of one's own
    asked = []
    monkeypatch.setattr(Template, "prompt", lambda self, *given: asked.append(given) or "x")
    short = ("--max-new-tokens", 1)
    assert call_script(ASK, "run", texts[0], *short).returncode == 0
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    (tmp_path / "new.csv").write_text("id,article\n1,three\n2,four\n")
    assert call_script(ASK, "run", "--file", "lines.txt", *short).returncode == 0
    done = call_script(ASK, "run", "--file", "new.csv", *short, "--out", "out.csv")
    assert done.returncode == 0, done.stderr
    assert pl.read_csv(tmp_path / "out.csv").columns == ["id", "article", "output"]
    asks = [("Summarise.", text) for text in (texts[0], "one", "two", "three", "four")]
    assert sorted(set(asked)) == sorted(asks)
    assert call_script(ASK, "run", "Translate.", "--input", "five", *short).returncode == 0
    assert asked[-1] == ("Translate.", "five")
    (tmp_path / "empty.csv").write_text("id,article\n1,three\n2,\n")
    refused(call_script(ASK, "run", "--file", "empty.csv"), "row 2 needs an 'article'")
    (tmp_path / "other.csv").write_text("id,body\n1,three\n")
    refused(call_script(ASK, "run", "--file", "other.csv"), "article", "--input-column")


def test_a_summary_run_is_evaluated_on_other_articles(run, tmp_path, call_script):
    short = ("--test-answers", 3, "--answer-tokens", 2)
    done = call_script(JUDGE, "run", "--data", "news.csv", *short, "--out", "judged")
    assert done.returncode == 0, done.stderr
    assert "first 3 sentences" in done.stdout
    judged = pl.read_parquet(tmp_path / "judged/predictions.parquet")
    assert set(judged["instruction"]) == {"Summarise."}
    own = call_script(JUDGE, "run", *short)  # its own test rows
    assert own.returncode == 0 and "first 3 sentences" in own.stdout, own.stderr
    sample = call_script(JUDGE, "run", "--data", "sample", *short)  # have instructions of their own
    assert sample.returncode == 0, sample.stderr


def test_without_rouge_there_is_nothing_to_compare(tmp_path, call_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    write_news(tmp_path)
    done = call_script(TUNE, "--data", "news.csv", "--instruction", "Summarise.", *COLUMNS, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "first 3 sentences" not in done.stdout and "pip install rouge-score" in done.stdout


def test_an_instruction_is_for_a_table_without_one(tmp_path, call_script):
    write_news(tmp_path)
    flags = ("--data", "news.csv", "--instruction", "Summarise.")
    refused(call_script(TUNE, *flags), "no field 'input' (--input-column)", "article, summary")
    refused(call_script(TUNE, *flags, *COLUMNS, "--instruction-column", "article"),
            "news.csv: has a column 'article'; --instruction is for a table without")  # fmt: skip
    refused(call_script(TUNE, "--instruction", "Summarise."), "has a column 'instruction'")
    refused(
        call_script(TUNE, *flags, *COLUMNS, "--turns", "all"), "--turns all is for conversations"
    )


def test_the_first_sentences_of_a_text():
    assert first_sentences("A b. C d? E f! G.") == "A b. C d? E f!"
    assert first_sentences("Title\nA 2.5 cm b. C") == "Title A 2.5 cm b. C"
    assert first_sentences("") == ""
