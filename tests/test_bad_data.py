"""Data that cannot be used is refused with one line that says what would be right."""

import pytest
from test_data import load

from gpt2.support.errors import UserError
from gpt2.support.files import read_table


@pytest.mark.parametrize(
    "name, content, settings, message",
    [
        ("a.csv", b"", {}, "a.csv: the file is empty"),
        ("a.csv", b"text,label\n", {}, "a.csv: the file has no rows"),
        ("a.csv", b"text,label\nok,1\ncaf\xe9,0\n", {}, r"line 3 is not UTF-8 \(byte 0xe9\)"),
        ("a.csv", b"review,y\na,1\n", {}, r"no column 'text' .*--text-column.* has: review, y"),
        ("a.csv", b"text,y\na,1\n", {}, r"no column 'label' .*--label-column.* has: text, y"),
        ("a.csv", b"text,label\na,1\nb, c,0\n", {}, "line 3 has 3 fields, but the header line"),
        ("a.csv", b"a,1,2\n", {"columns": "text,label"}, "line 1 has 3 fields, but --columns"),
        ("a.csv", b"text,label\na,1\nb,1\n", {}, "all training rows have the same label, '1'"),
        ("a.csv", b"text,label\na,1\nb,0\n", {}, "label '0' has 1; drop or merge rare labels"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), {}, "is UTF-16"),
        ("a.csv", b"text,label\na,1\nb\0,0\n", {}, "line 3 has a NUL byte"),
        ("a.csv", b"text,label\n ,1\n,0\n", {}, "no train rows with a text and a label"),
        ("a.txt", b"\xef\xbb\xbf", {}, "the file has no rows"),
        ("a.csv", b"text,label,text\na,b,c\n", {}, "two columns have the same name"),
        ("a.csv", b"text,label,s\na,1,test\n", {"split_column": "s"}, "no row is marked as train"),
        ("a.json", b"[" * 100_000, {}, "cannot be read as JSON"),
        ("a.json", b'[{"text": "a",}]', {}, "line 1 is not JSON"),
        ("a.json", b'{"text": "a"}', {}, "holds one dict, not a list"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text"\n', {}, "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n[1]\n', {}, "row 2 is not an object"),
        ("a.parquet", b"PAR1 but not really", {}, "not a readable Parquet file"),
        ("a.xlsx", b"x", {}, "cannot read '.xlsx' files; use .csv"),
        ("a.csv", b"text,label,s\na,1,dev\nb,0,foo\n", {"split_column": "s"}, "row 2 has 'foo'"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_one_line(tmp_path, name, content, settings, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / name, **settings)
    assert len(str(error.value).splitlines()) == 1


def test_a_label_that_training_never_sees_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(9))
    )
    (tmp_path / "test.csv").write_text("text,label\nx,0\ny,7\n")
    with pytest.raises(UserError, match=r"test split has the label '7', .* \(they have '0', '1'\)"):
        load(tmp_path)


@pytest.mark.parametrize("settings", [{"columns": "label,text"}, {"text_column": "body"}])
def test_flags_that_would_be_ignored_are_refused(settings):
    with pytest.raises(UserError, match="--data sample has columns of its own"):
        load("sample", **settings)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load(tmp_path / "nothing.csv")
    with pytest.raises(UserError, match="no train file in it"):
        load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / "nothing.csv")
