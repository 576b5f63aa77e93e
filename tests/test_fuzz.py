"""Random tables, written in every format and read back: the same rows, or one line that says why
not. The examples are the same on every run."""

import csv
import gzip
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.support.errors import UserError
from gpt2.support.files import clean_text, read_rows, read_table

# Characters that mean something to some format, and any other.
SPECIAL = st.sampled_from("\",;|\t\n\r \\'#&<>{}[]:=01\u2028\u200b\ufeffé字😀")
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
CELL = st.lists(SPECIAL | LETTERS, max_size=8).map("".join)
LABEL = st.sampled_from(["pos", "neg", "1", "a b"])
ROWS = st.lists(st.tuples(CELL, LABEL), min_size=2, max_size=8)
FEW = settings(max_examples=50, deadline=None, derandomize=True, database=None)


def as_csv(rows, **dialect):
    file = io.StringIO()
    csv.writer(file, **dialect).writerows([("text", "label"), *rows])
    return file.getvalue().encode()


def as_parquet(rows):
    file = io.BytesIO()
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_parquet(file)
    return file.getvalue()


def as_arrow(rows):
    file = io.BytesIO()
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_ipc_stream(file)
    return file.getvalue()


def objects(rows):
    return [{"text": text, "label": label} for text, label in rows]


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects(rows)).encode()


WRITERS = {
    "a.csv": as_csv,
    # all quoted, because Python's writer would not quote a lone \r there
    "unix.csv": lambda rows: as_csv(rows, lineterminator="\n", quoting=csv.QUOTE_ALL),
    "quoted.csv": lambda rows: as_csv(rows, quoting=csv.QUOTE_ALL),
    "semicolon.csv": lambda rows: as_csv(rows, delimiter=";"),
    "a.tsv": lambda rows: as_csv(rows, delimiter="\t", quoting=csv.QUOTE_ALL),
    "a.json": lambda rows: json.dumps(objects(rows)).encode(),
    "lines.json": as_lines,
    "a.jsonl": as_lines,
    "a.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
}


def one_line(error):
    assert len(str(error).splitlines()) == 1, str(error)
    str(error).encode()


@pytest.mark.parametrize("name", WRITERS)
@given(rows=ROWS)
@FEW
def test_what_is_written_is_read(name, rows):
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(WRITERS[name](rows))
        try:
            table = read_table(path)
        except UserError as error:
            one_line(error)
            # Only a file of text can be unclear: a quoted text of which each line is a row
            assert name.endswith((".csv", ".tsv")) and "opens a quote" in str(error)
        else:
            assert table.rows() == rows
            assert [(row["text"], row["label"]) for row in read_rows(path)] == rows
    for text, _ in rows:
        clean_text(text)


LINES = st.lists(CELL).map("\n".join).map(str.encode)
SUFFIXES = ["csv", "tsv", "txt", "json", "jsonl", "parquet", "arrow", "zip"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(content=st.binary(max_size=60) | LINES)
@FEW
def test_any_bytes_are_a_table_or_refused_with_one_line(suffix, content):
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(content)
        try:
            assert len(read_table(path)) > 0
        except UserError as error:
            one_line(error)


@pytest.mark.parametrize("label_first", [False, True])
@given(labels=st.lists(LABEL, min_size=6, max_size=30), places=st.lists(st.integers(0), max_size=3))
@FEW
def test_lone_quotes_swallow_no_row(label_first, labels, places):
    """Quotes at random places below the header of a table whose texts are one line each."""
    rows = [(f"number {i}", label) for i, label in enumerate(labels)]
    content = "\n".join(",".join(row[::-1] if label_first else row) for row in rows)
    for place in places:
        place %= len(content)
        content = content[:place] + '"' + content[place:]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_text(("label,text\n" if label_first else "text,label\n") + content)
        try:
            table = read_table(path)
        except UserError as error:
            one_line(error)
        else:
            assert len(table) == len(labels)
