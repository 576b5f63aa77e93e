"""Tables as they are found in the world: what is clear is read, and what is left out is told; what
is not clear is refused with one line. No row disappears without a word."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import polars as pl
import pytest
from test_data import all_rows, load

from gpt2.support.errors import UserError
from gpt2.support.files import clean_text, read_rows, read_table, unescape_entities
from gpt2.tokenizer import encode_text, encode_texts, get_encoding
from instruction.data import load_splits as load_instructions
from instruction.sources import DataSettings as InstructionSettings
from instruction.template import Template
from pretraining.corpus import CorpusSettings, read_corpus

LABELS = ("neg", "pos")


def forty(line):
    """Forty rows, each made by `line(number, label)`."""
    return "".join(line(i, LABELS[i % 2]) + "\n" for i in range(40))


def size(splits):
    return sum(len(frame) for _, frame in splits.items())


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def quote(i, *places):
    return '"' if i in places else ""


# ---- rows that a quote swallows


@pytest.mark.parametrize(
    "content",
    [
        "text,label\n" + forty(lambda i, label: f"{quote(i, 5, 25)}number {i},{label}"),
        "label,text\n" + forty(lambda i, label: f"{label},{quote(i, 5, 25)}number {i}"),
        "label,text\n" + forty(lambda i, label: f"{label},{quote(i, 5)}number {i}{quote(i, 25)}"),
        "label,text\n" + forty(lambda i, label: f"{label},{quote(i, 5)}number {i}{quote(i, 6)}"),
        "text,label\n" + forty(lambda i, label: f"{quote(i, 5)}number {i}{quote(i, 25)},{label}"),
        "text,label\n" + forty(lambda i, label: f"{quote(i, 5)}number {i},{label}{quote(i, 25)}"),
        "label,text\n" + forty(lambda i, label: f"{label},{quote(i, 5)}number {i}"),
        "text;label\n" + forty(lambda i, label: f"{quote(i, 5)}number {i}{quote(i, 25)};{label}"),
        "id,text,label\n" + forty(lambda i, label: f"{i},{quote(i, 5, 25)}number {i},{label}"),
    ],
    ids=["text first", "label first", "closed at a row's end", "two rows in one",
         "closed at a text's end", "text first, closed at a row's end", "never closed",
         "semicolons", "three columns"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quote_that_swallows_rows_is_refused_with_its_line(tmp_path, content, end):
    path = write(tmp_path / "a.csv", content.replace("\n", end))
    with pytest.raises(UserError, match=r"a\.csv: line 7 opens a quote that") as error:
        load(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_quote_that_swallows_the_header_is_refused(tmp_path):
    rows = forty(lambda i, label: f"number {i}{quote(i, 3)},{label}")
    with pytest.raises(UserError, match="line 1 opens a quote that line 5 closes"):
        load(write(tmp_path / "a.csv", '"text,label\n' + rows))


@pytest.mark.parametrize("lines", [
    [f"Say {i},{quote(i, 5)}It is {i}{quote(i, 25)}" for i in range(40)],
    [f"{quote(i, 5, 25)}Say {i},It is {i}" for i in range(40)],
    [f"{quote(i, 5)}Say {i}{quote(i, 25)},It is {i}" for i in range(40)],
])  # fmt: skip
def test_instructions_and_corpora_do_not_lose_rows_either(tmp_path, lines):
    path = write(tmp_path / "a.csv", "\n".join(["instruction,output", *lines]) + "\n")
    settings = InstructionSettings(data=str(path))
    with pytest.raises(UserError, match="line 7 opens a quote"):
        load_instructions(settings, Template(), get_encoding("mini"), 1)
    with pytest.raises(UserError, match="line 7 opens a quote"):
        read_corpus(CorpusSettings((f"{path}:instruction,output",)), 1)


@pytest.mark.parametrize(
    "line",
    [
        lambda i, label: f'6" screen {i},{label}',
        lambda i, label: f'"Dear all,\nwe, {i} people,\ncome, yes",{label}',
        lambda i, label: f'"First {i}\nsecond, third\nlast",{label}',
        lambda i, label: f'"he said ""{label}"", twice {i}",{label}',
        lambda i, label: f'"Hello, {i}\nbest, me",{label}',
    ],
)
def test_quotes_that_swallow_nothing_are_read(tmp_path, line):
    splits = load(write(tmp_path / "a.csv", "text,label\n" + forty(line)))
    assert size(splits) == 40 and splits.labels == ["neg", "pos"]
    turned = load(write(tmp_path / "b.csv", "label,text\n" + forty(
        lambda i, label: f"{label}," + line(i, label).rsplit(",", 1)[0])))  # fmt: skip
    assert all_rows(turned) == all_rows(splits)


def test_lone_quotes_in_a_tsv_swallow_nothing(tmp_path):
    for name, places in (("a.tsv", (5, 25)), ("b.tsv", (5,))):
        rows = forty(lambda i, label, places=places: f"{quote(i, *places)}number {i}\t{label}")
        splits = load(write(tmp_path / name, "text\tlabel\n" + rows))
        assert size(splits) == 40 and ('"number 5', "pos") in all_rows(splits)


def test_an_answer_that_holds_a_table_is_one_text(tmp_path):
    rows = "".join(f'"Make one, {i}","Here:\nBob,{i}\nAnn,4"\n' for i in range(12))
    path = write(tmp_path / "a.csv", "instruction,output\n" + rows)
    assert len(read_rows(path)) == 12
    path = write(tmp_path / "b.csv", 'text\n"one\ntwo\nthree"\n"four\nfive\nsix"\n')
    assert read_table(path)["text"].to_list() == ["one\ntwo\nthree", "four\nfive\nsix"]


def test_a_quote_inside_a_quoted_field_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 2 has a quote inside a quoted field"):
        read_table(write(tmp_path / "a.csv", 'text,label\n"He said "no" to me",1\n'))


# ---- separators, empty columns


@pytest.mark.parametrize("separator, name", [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_csv_may_have_another_separator(tmp_path, separator, name):
    rows = forty(lambda i, label: f"dear, number {i}{', x' * (i % 3)}{separator}{label}")
    splits = load(write(tmp_path / "a.csv", f"text{separator}label\n{rows}"))
    assert size(splits) == 40 and ("dear, number 3", "pos") in all_rows(splits)
    assert any(f"fields are separated by {name}" in note for note in splits.notes)
    rows = forty(lambda i, label: f"{label}{separator}dear{', x' * (i % 3)} {i}")
    assert size(load(write(tmp_path / "b.csv", rows), columns="label,text")) == 40


def test_excel_says_which_separator_it_took(tmp_path):
    rows = forty(lambda i, label: f"a, b {i};{label}")
    assert size(load(write(tmp_path / "a.csv", "sep=;\ntext;label\n" + rows))) == 40


def test_the_spam_collection_of_kaggle(tmp_path):
    """Its header is v1,v2,,, and a few texts with commas run over into the columns without a
    name."""
    rows = forty(lambda i, label: f"{label},number {i},{'and more' if i < 3 else ''},,")
    path = write(tmp_path / "spam.csv", "v1,v2,,,\n" + rows)
    splits = load(path, text_column="v2", label_column="v1")
    assert size(splits) == 40
    assert splits.notes == [
        f"{path}: columns without a name: column_3; 3 rows have something there",
        f"{path}: 2 empty columns without a name left out",
        f"read {path}: 40 rows",
    ]
    joined = load(path, text_column="v2,column_3", label_column="v1")
    assert ("number 2 and more", "neg") in all_rows(joined)


def test_empty_last_columns_of_excel(tmp_path):
    rows = forty(lambda i, label: f"number {i},{label},,") + ",,,\n"
    splits = load(write(tmp_path / "a.csv", "text,label\n" + rows))
    assert size(splits) == 40 and splits.removed["empty text"] == 1
    assert "empty fields after the last column left out in 41 rows" in splits.notes[0]
    rows = forty(lambda i, label: f"number {i},{label}")
    assert size(load(write(tmp_path / "b.csv", "text,label,,\n" + rows))) == 40
    pandas = forty(lambda i, label: f"{i},number {i},{label}")
    assert size(load(write(tmp_path / "c.csv", ",text,label\n" + pandas))) == 40
    assert size(load(write(tmp_path / "d.csv", "text , label\n" + rows))) == 40


# ---- JSON


def some_rows(count=40):
    return [{"text": f"number {i}", "label": LABELS[i % 2]} for i in range(count)]


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def without_bytes(value):
    """Packed files hold the time; test processes must all find the same names."""
    return "content" if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.json", as_lines(some_rows())),
        ("a.jsonl", json.dumps(some_rows(), indent=1)),
        ("a.json", json.dumps({"version": 1, "data": some_rows()})),
        ("a.ndjson", "\ufeff" + as_lines(some_rows())),
    ],
)
def test_json_is_known_by_what_it_holds(tmp_path, name, content):
    assert size(load(write(tmp_path / name, content))) == 40


def test_one_line_of_jsonl_is_one_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}]}
    assert read_rows(write(tmp_path / "a.jsonl", json.dumps(row))) == [row]


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps({"train": some_rows(), "test": some_rows()}), "several of them, train, test"),
        (json.dumps({"text": ["a"], "label": ["x"]}), "holds one dict, .* orient='records'"),
        ('[{"text": "a", "text": "b", "label": 1}]', "two fields called 'text'"),
        ('{"text": "a"}\n{"text": "b", "text": "c"}', "line 2 .* two fields called 'text'"),
        ('{"text": "a"}\n{"text": ' + "1" * 5000 + "}", "line 2 cannot be read as JSON"),
    ],
)
def test_json_that_is_no_table_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path / "a.json", content))
    assert len(str(error.value).splitlines()) == 1


def test_half_a_surrogate_in_a_name(tmp_path):
    rows = as_lines(some_rows()).replace('"text"', '"te\\ud83dxt"')
    path = write(tmp_path / "a.jsonl", rows)
    assert size(load(path, text_column="te\ufffdxt")) == 40
    with pytest.raises(UserError, match="no column 'text'") as error:
        load(path)
    str(error.value).encode()


# ---- compressed files


def zipped(name, content, *others):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for each in (name, *others):
            archive.writestr(each, content)
    return file.getvalue()


CSV = ("text,label\n" + forty(lambda i, label: f"number {i},{label}")).encode()


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv.gz", gzip.compress(CSV)),
        ("a.CSV.XZ", lzma.compress(CSV)),
        ("a.csv.bz2", bz2.compress(CSV)),
        ("a.csv", gzip.compress(CSV)),  # as a browser saves it
        ("archive.zip", zipped("inside.csv", CSV)),
        ("a.csv.zip", zipped("folder/inside.csv", CSV, "__MACOSX/._inside.csv")),
        ("a.jsonl.gz", gzip.compress(as_lines(some_rows()).encode())),
        ("archive.zip", zipped("inside.json", json.dumps(some_rows()))),
        ("a.tsv.gz", gzip.compress(CSV.replace(b",", b"\t"))),
    ],
    ids=without_bytes,
)
def test_compressed_tables(tmp_path, name, content):
    splits = load(write(tmp_path / name, content))
    assert size(splits) == 40 and splits.labels == ["neg", "pos"]


def test_a_compressed_parquet_and_a_folder_of_compressed_files(tmp_path):
    parquet = io.BytesIO()
    pl.DataFrame(some_rows()).write_parquet(parquet)
    assert size(load(write(tmp_path / "a.parquet.gz", gzip.compress(parquet.getvalue())))) == 40
    write(tmp_path / "both/train.csv.gz", gzip.compress(CSV))
    write(tmp_path / "both/test.csv", CSV.replace(b"number", b"other"))
    assert len(load(tmp_path / "both").test) == 40


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv.gz", gzip.compress(CSV)[:60], "cannot be uncompressed"),
        ("a.csv.xz", lzma.compress(CSV)[:60], "cannot be uncompressed"),
        ("a.zip", zipped("a.csv", CSV)[:80], "cannot be uncompressed"),
        ("a.zip", zipped("train.csv", CSV, "test.csv"), "2 files .train.csv, test.csv.*unzip it"),
        ("a.zip", zipped("a.pdf", b"%PDF"), "cannot read '.pdf' files"),
        ("a.csv.gz", gzip.compress(b""), "the file is empty"),
        ("a.csv.gz", gzip.compress(b"text,label\ncaf\xe9,0\n"), "line 2 is not UTF-8"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid 1\n", "git lfs pull"),
    ],
    ids=without_bytes,
)
def test_damaged_and_mixed_archives_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path / name, content))
    assert len(str(error.value).splitlines()) == 1


# ---- texts that end programs


def test_white_space_without_end_is_encoded():
    """tiktoken panics at it."""
    encoding = get_encoding("mini")
    for text in ("a" + " " * 1_000_000 + "b", "\n" * 1_000_000 + "b", "\u3000" * 700_000 + "b"):
        tokens = encode_text(encoding, text)
        assert encoding.decode(tokens) == text
    short = ["a fine  film", "", " \n" * 40_000 + "x"]
    assert encode_texts(encoding, short) == [encoding.encode_ordinary(text) for text in short]


def test_an_entity_of_many_digits():
    assert unescape_entities("&#" + "1" * 4301 + ";") == "\ufffd"
    assert clean_text("&#0000345; &#x159;") == "ř ř"
