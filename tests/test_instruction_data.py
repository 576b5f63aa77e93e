"""Instructions from everywhere: files of every kind, folders, downloads, the real Alpaca."""

import io
import json

import polars as pl
import pytest
from conftest import SHARED
from small_hub import SmallHub

from gpt2.support.errors import UserError
from gpt2.tokenizer import get_encoding
from instruction.data import InstructionDataset, load_splits
from instruction.sources import DOWNLOADS, SAMPLE, DataSettings
from instruction.template import Template

ENCODING = get_encoding("mini")
PAIR = '{"instruction": "x", "output": "y"}'


def load(path, seed=1, **settings):
    return load_splits(DataSettings(data=str(path), **settings), Template(), ENCODING, seed)


def sizes(splits):
    return [len(frame) for _, frame in splits.items()]


def all_rows(splits):
    return sorted(row for _, frame in splits.items() for row in frame.rows())


def some_rows(count=30):
    return [{"instruction": f"Say {i}", "output": f"It is {i}"} for i in range(count)]


def test_the_sample_is_what_it_says():
    rows = json.loads(SAMPLE.read_text())
    assert len(rows) >= 300
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert 0.3 < sum(bool(row["input"]) for row in rows) / len(rows) < 0.4
    splits = load("sample")
    assert not any(splits.removed.values())
    assert sizes(splits) == [272, 34, 34]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_the_same_rows_from_every_kind_of_file(tmp_path, suffix):
    rows = [{"q": f"Say {i}, please", "about": "x" * (i % 3), "a": f"It is {i}"} for i in range(30)]
    path = tmp_path / f"mine.{suffix}"
    frame = pl.DataFrame(rows)
    {"json": frame.write_json, "jsonl": frame.write_ndjson, "csv": frame.write_csv,
     "tsv": lambda path: frame.write_csv(path, separator="\t"),
     "parquet": frame.write_parquet}[suffix](path)  # fmt: skip
    columns = {"instruction_column": "q", "input_column": "about", "output_column": "a"}
    splits = load(path, **columns)
    assert splits.name == "mine" and sizes(splits) == [24, 3, 3]
    assert all_rows(splits) == sorted(tuple(row.values()) for row in rows)
    again, other = load(path, **columns), load(path, seed=2, **columns)
    assert splits.test.equals(again.test) and not splits.test.equals(other.test)


def test_an_input_may_be_missing_from_the_file_from_a_row_or_empty(tmp_path):
    rows = some_rows()
    (tmp_path / "none.json").write_text(json.dumps(rows))
    assert {row[1] for row in all_rows(load(tmp_path / "none.json"))} == {""}
    rows[3]["input"], rows[4]["input"] = None, "  here "
    (tmp_path / "some.json").write_text(json.dumps(rows))
    inputs = {row[0]: row[1] for row in all_rows(load(tmp_path / "some.json"))}
    assert inputs.pop("Say 4") == "here" and set(inputs.values()) == {""}


@pytest.mark.parametrize("column", ["instruction", "input", "output"])
def test_a_column_that_was_named_and_is_not_there_is_refused(tmp_path, column):
    (tmp_path / "a.json").write_text(json.dumps(some_rows()))
    message = f"no field 'nope' \\(--{column}-column\\); the rows have: instruction, output$"
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.json", **{f"{column}_column": "nope"})


def test_every_removal_is_counted_and_no_question_stands_in_two_splits(tmp_path):
    rows = [{"instruction": f"Say {i}", "input": "", "output": "ok"} for i in range(42)]
    rows += [{"instruction": "Say 3", "input": "", "output": "other"},
             {"instruction": " Say 3 ", "input": None, "output": "a third"},
             {"instruction": "Say 3", "input": "x", "output": "kept: another input"},
             {"instruction": "empty", "input": None, "output": "  "},
             {"instruction": "null", "output": None},
             {"instruction": " ", "output": "x"},
             {"instruction": "long " * 600, "input": "", "output": "x"}]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    splits = load(tmp_path / "a.json")
    assert splits.removed == {"empty instruction": 1, "empty output": 2, "duplicate": 2,
                              "no room for a response": 1}  # fmt: skip
    kept = all_rows(splits)
    assert len(kept) == 43 and len({row[:2] for row in kept}) == 43
    assert ("Say 3", "", "ok") in kept  # the first of its duplicates


def test_few_training_rows_bring_few_validation_rows(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(some_rows(1000)))
    assert sizes(load(tmp_path / "a.json")) == [800, 100, 100]
    assert sizes(load(tmp_path / "a.json", max_train=80)) == [80, 10, 100]
    assert sizes(load(tmp_path / "a.json", max_train=2000)) == [800, 100, 100]
    assert sizes(load(tmp_path / "a.json", max_train=80, max_validation=30)) == [80, 30, 100]
    assert sizes(load(tmp_path / "a.json", max_test=7)) == [800, 100, 7]
    whole, few = load(tmp_path / "a.json"), load(tmp_path / "a.json", max_train=80)
    assert few.test.equals(whole.test) and few.train.equals(whole.train[:80])


@pytest.mark.parametrize("subfolder", [".", "data"])
def test_a_folder_with_one_table_is_that_table(tmp_path, subfolder):
    folder = tmp_path / "alpaca"
    (folder / subfolder).mkdir(parents=True)
    (folder / "README.md").write_text("a card")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="a folder needs one table in it, not none; name a file"):
        load(folder)
    (folder / subfolder / "train.json").write_text(json.dumps(some_rows()))
    splits = load(folder)
    assert splits.name == "alpaca" and sizes(splits) == [24, 3, 3]
    (folder / "other.csv").write_text("a")
    with pytest.raises(UserError, match=r"one table in it, not .*other"):
        load(folder)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", '[{"instruction": "x",\n "output": }]', "line 2 is not JSON"),
        ("a.jsonl", PAIR + '\n{"ins', "line 2 is not JSON"),
        ("a.json", f"[{PAIR}, 7]", "row 2 is not an object"),
        ("a.jsonl", f"{PAIR}\n\n[1]\n", "row 2 is not an object"),
        ("a.json", PAIR, "holds one dict, not a list of objects"),
        ("a.json", f'[{PAIR}, {{"instruction": "x"}}]', "row 2 has no field 'output'"),
        ("a.json", f'[{PAIR}, {{"output": "x"}}]', "row 2 has no field 'instruction'"),
        ("a.json", '[{"instruction": "x", "output": 7}]', "row 1: 'output' is int, not text"),
        ("a.json", f'[{PAIR}, {{"instruction": "x", "output": ["y"]}}]',
         "row 2: 'output' is list, not text"),
        ("a.json", '[{"instruction": "x", "input": {"a": 1}, "output": "y"}]',
         "row 1: 'input' is dict, not text"),
        ("a.csv", "text,label\na,1\n", "no field 'instruction' .* a file for classification"),
        ("a.csv", "instruction,output\nx,y\na,b,c\n", "line 3 has 3 fields"),
        ("a.json", f"[{PAIR}]", "1 usable rows are left, at least 10 .* removed: none"),
        ("a.json", '[{"instruction": "x", "output": ""}]',
         "0 usable rows are left, .* removed: empty output 1"),
        ("a.json", "[]", "the file has no rows"),
        ("a.json", "", "the file is empty"),
        ("a.xlsx", "x", "cannot read '.xlsx' files"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert len(str(error.value).splitlines()) == 1


def file_of(name):
    """Forty rows in the format and with the columns that the download called `name` has."""
    rows = [row | {"input": "", "text": "all of it"} for row in some_rows(40)]
    if name == "alpaca":
        return json.dumps(rows).encode()
    content = io.BytesIO()
    pl.DataFrame(rows).write_parquet(content)
    return content.getvalue()


@pytest.mark.parametrize("name", DOWNLOADS)
def test_alpaca_is_downloaded_once_and_then_read_from_the_cache(tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    repository, file, revision = DOWNLOADS[name]
    assert len(revision) == 40  # a commit, which nobody can change afterwards
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with SmallHub(repository, revision, {file: file_of(name), "other.json": b"no"}) as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        first = load(name)
        assert {path.rsplit("/", 1)[-1] for command, path in hub.requests if command == "GET"} == {
            file.rsplit("/", 1)[-1]
        }
    assert first.name == name and sizes(first) == [32, 4, 4]
    assert all_rows(load(name)) == all_rows(first)  # the server is gone


@pytest.mark.skipif(not (SHARED / "alpaca").is_dir(), reason="no local copy of Alpaca")
def test_the_real_alpaca():
    splits = load(SHARED / "alpaca/alpaca_gpt4_1k.json")
    assert splits.removed["duplicate"] == 14 and sizes(splits) == [789, 98, 98]
    rows = splits.train.rows()
    dataset = InstructionDataset(rows, Template(), ENCODING, 512)
    assert dataset.truncated == 59 and len(dataset) == 789
    for number, (_, _, output) in enumerate(rows):
        tokens, targets = dataset[number]
        answer = ENCODING.decode(targets[targets >= 0].tolist())
        assert answer.endswith("<|endoftext|>") and len(tokens) <= 512
        if len(tokens) < 512:
            assert answer == output + "<|endoftext|>"


def test_splits_in_a_file_each_are_read_as_they_were_written(tmp_path):
    """As write_splits.py leaves them."""
    settings = DataSettings()
    written = load_splits(settings, Template(), get_encoding("mini"), 1)
    for split, frame in written.items():
        frame.write_ndjson(tmp_path / f"{split}.jsonl")
    read = load_splits(DataSettings(data=str(tmp_path)), Template(), get_encoding("mini"), 2)
    for (_, one), (_, other) in zip(written.items(), read.items(), strict=True):
        assert sorted(one.rows()) == sorted(other.rows())
