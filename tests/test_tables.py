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
from gpt2.support.streaming import open_table, texts_of
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
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.CSV.XZ", lzma.compress(CSV)),
        ("a.csv.bz2", bz2.compress(CSV)),
        ("a.csv", gzip.compress(CSV, mtime=0)),  # as a browser saves it
        ("archive.zip", zipped("inside.csv", CSV)),
        ("a.csv.zip", zipped("folder/inside.csv", CSV, "__MACOSX/._inside.csv")),
        ("a.jsonl.gz", gzip.compress(as_lines(some_rows()).encode())),
        ("archive.zip", zipped("inside.json", json.dumps(some_rows()))),
        ("a.tsv.gz", gzip.compress(CSV.replace(b",", b"\t"), mtime=0)),
    ],
)
def test_compressed_tables(tmp_path, name, content):
    splits = load(write(tmp_path / name, content))
    assert size(splits) == 40 and splits.labels == ["neg", "pos"]


def test_a_compressed_parquet_and_a_folder_of_compressed_files(tmp_path):
    parquet = io.BytesIO()
    pl.DataFrame(some_rows()).write_parquet(parquet)
    assert (
        size(load(write(tmp_path / "a.parquet.gz", gzip.compress(parquet.getvalue(), mtime=0))))
        == 40
    )
    write(tmp_path / "both/train.csv.gz", gzip.compress(CSV, mtime=0))
    write(tmp_path / "both/test.csv", CSV.replace(b"number", b"other"))
    assert len(load(tmp_path / "both").test) == 40


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv.gz", gzip.compress(CSV, mtime=0)[:60], "cannot be uncompressed"),
        ("a.csv.xz", lzma.compress(CSV)[:60], "cannot be uncompressed"),
        ("a.zip", zipped("a.csv", CSV)[:80], "cannot be uncompressed"),
        ("a.zip", zipped("train.csv", CSV, "test.csv"), "2 files .train.csv, test.csv.*unzip it"),
        ("a.zip", zipped("a.pdf", b"%PDF"), "cannot read '.pdf' files"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("a.csv.gz", gzip.compress(b"text,label\ncaf\xe9,0\n", mtime=0), "line 2 is not UTF-8"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid 1\n", "git lfs pull"),
    ],
)
def test_damaged_and_mixed_archives_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path / name, content))
    assert len(str(error.value).splitlines()) == 1


# ---- what the datasets library writes

FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
}


def numbered_frame(count=40, word="number", labels=2):
    return pl.DataFrame({"text": [f"{word} {i}" for i in range(count)],
                         "label": [i % labels for i in range(count)]})  # fmt: skip


def save_to_disk(folder, *frames):
    """The layout of datasets.Dataset.save_to_disk."""
    folder.mkdir(parents=True)
    files = [f"data-{i:05}-of-{len(frames):05}.arrow" for i in range(len(frames))]
    for name, frame in zip(files, frames, strict=True):
        frame.write_ipc_stream(folder / name)
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    state = {"_data_files": [{"filename": name} for name in files]}
    (folder / "state.json").write_text(json.dumps(state))


def test_save_to_disk_of_one_split_and_of_several(tmp_path):
    save_to_disk(tmp_path / "one", numbered_frame(), numbered_frame(word="second"))
    splits = load(tmp_path / "one")
    assert splits.labels == ["bad", "good"] and size(splits) == 80
    save_to_disk(tmp_path / "all/train", numbered_frame())
    save_to_disk(tmp_path / "all/test", numbered_frame(10, "other"))
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    splits = load(tmp_path / "all")
    assert len(splits.test) == 10 and splits.labels == ["bad", "good"]
    assert size(load(tmp_path / "one/data-00000-of-00002.arrow")) == 40
    with pytest.raises(UserError, match="one table in it, not test, train"):
        load_instructions(InstructionSettings(data=str(tmp_path / "all")), Template(),
                          get_encoding("mini"), 1)  # fmt: skip


def test_instructions_in_several_files_of_one_split(tmp_path):
    rows = [{"instruction": f"Say {i}", "output": f"It is {i}"} for i in range(40)]
    (tmp_path / "hub/data").mkdir(parents=True)
    for i in range(2):
        part = pl.DataFrame(rows[20 * i : 20 * i + 20])
        part.write_parquet(tmp_path / f"hub/data/train-0000{i}-of-00002-{'ab'[i] * 8}.parquet")
    save_to_disk(tmp_path / "saved", pl.DataFrame(rows))
    for name in ("hub", "saved"):
        settings = InstructionSettings(data=str(tmp_path / name))
        assert size(load_instructions(settings, Template(), get_encoding("mini"), 1)) == 40
    corpus = read_corpus(CorpusSettings((f"{tmp_path / 'saved'}:instruction,output",)), 1)
    assert len(corpus.train) + len(corpus.validation) == 40


def test_parquet_with_class_names(tmp_path):
    features = json.dumps({"info": {"features": FEATURES}})

    def written(name, labels):
        path = tmp_path / name
        numbered_frame().with_columns(label=pl.Series(labels)).write_parquet(
            path, metadata={"huggingface": features}
        )
        return path

    splits = load(written("a.parquet", [i % 2 for i in range(40)]))
    assert splits.labels == ["bad", "good"]
    splits = load(written("b.parquet", [0, 1, -1, 0] * 10))  # -1: not labelled
    assert splits.labels == ["bad", "good"] and splits.removed["missing label"] == 10
    with pytest.raises(UserError, match="row 1: 'label' is 7, but it has 2 classes"):
        load(written("c.parquet", [7] * 40))


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_damaged_tables_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="not a readable"):
        load(write(tmp_path / name, b"nothing of the kind"))


# ---- what is a text, what is a label


@pytest.mark.parametrize("value", [["a"], {"a": 1}, 5, True])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_what_is_no_text_is_named_with_its_row_by_every_reader(tmp_path, value, suffix):
    rows = [{"text": f"t {i}", "label": i % 2, "instruction": f"Say {i}", "output": "x"}
            for i in range(30)]  # fmt: skip
    rows[20]["text"] = value
    content = json.dumps(rows) if suffix == "json" else as_lines(rows)
    path = write(tmp_path / f"a.{suffix}", content)
    message = f"row 21: 'text' is {type(value).__name__}, not text"
    with pytest.raises(UserError, match=message):
        load(path)
    with pytest.raises(UserError, match=message):
        read_corpus(CorpusSettings((str(path),)), 1)
    with pytest.raises(UserError, match=message):
        load_instructions(InstructionSettings(data=str(path), output_column="text"), Template(),
                          get_encoding("mini"), 1)  # fmt: skip


@pytest.mark.parametrize("value", [["a"], {"a": 1}])
def test_a_label_that_is_no_label_is_named_with_its_row(tmp_path, value):
    rows = [*some_rows(), {"text": "x", "label": value}]
    with pytest.raises(UserError, match=f"row 41: 'label' is {type(value).__name__}"):
        load(write(tmp_path / "a.json", json.dumps(rows)))


def test_missing_is_missing(tmp_path):
    """null, NaN and empty, in every format and in both columns."""
    rows = [*some_rows(), {"text": "x", "label": float("nan")}, {"text": "y", "label": None},
            {"text": "z", "label": ""}, {"text": "nolabel"}, {"text": float("nan"), "label": "pos"},
            {"text": None, "label": "pos"}, {"text": "s", "label": "nan"}]  # fmt: skip
    expected = {"missing label": 5, "empty text": 2}
    splits = load(write(tmp_path / "a.json", json.dumps(rows)))
    assert {reason: count for reason, count in splits.removed.items() if count} == expected
    assert splits.labels == ["neg", "pos"]
    instructions = [{"instruction": f"Say {i}", "output": "x", "input": float("nan")}
                    for i in range(20)]  # fmt: skip
    path = write(tmp_path / "b.json", json.dumps(instructions))
    splits = load_instructions(
        InstructionSettings(data=str(path)), Template(), get_encoding("mini"), 1
    )
    assert set(splits.train["input"]) == {""}


def test_an_input_that_is_a_number_is_refused(tmp_path):
    table = open_table(write(tmp_path / "a.jsonl", '{"instruction": "Add one.", "input": 0}\n'))
    with pytest.raises(UserError, match="row 1: 'input' is int, not text"):
        texts_of(table, next(table.parts()), "input", 1)


def test_labels_that_look_alike_are_one_class_and_it_is_told(tmp_path):
    spellings = ["1", "1.0", "1\u200b", "0", " 0", "\ufeff0"]
    rows = "".join(f"number {i},{spellings[i % 6]}\n" for i in range(60))
    splits = load(write(tmp_path / "a.csv", "text,label\n" + rows))
    assert splits.labels == ["0", "1"] and size(splits) == 60
    assert "labels of 40 rows are read without" in splits.notes[-1]
    assert "'1.0' as '1'" in splits.notes[-1]
    rows = [{"text": f"number {i}", "label": [1, 1.0, "1", 0][i % 4]} for i in range(60)]
    splits = load(write(tmp_path / "b.json", json.dumps(rows)))
    assert splits.labels == ["0", "1"] and "labels are float, int, str" in splits.notes[-1]
    write(tmp_path / "c/train.csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    write(tmp_path / "c/test.csv", "text,label\na,1.0\nb,0.0\n")  # as pandas writes it
    assert load(tmp_path / "c").test["label"].to_list() == [1, 0]
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # joined by zero-width characters
    rows = "".join(f"number {i},{['x', family][i % 2]}\n" for i in range(40))
    assert load(write(tmp_path / "d.csv", "text,label\n" + rows)).labels == ["x", family]


@pytest.mark.parametrize(
    "labels, names",
    [
        (pl.Series([f"c{i % 2}" for i in range(40)], dtype=pl.Categorical), ["c0", "c1"]),
        (pl.Series([i % 2 == 0 for i in range(40)]), ["false", "true"]),
        (pl.Series([i % 2 for i in range(40)]).cast(pl.Decimal(4, 0)), ["0", "1"]),
        (pl.Series([i % 2 / 2 for i in range(40)]), ["0", "0.5"]),
    ],
)
def test_labels_of_every_type(tmp_path, labels, names):
    numbered_frame().with_columns(label=labels).write_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").labels == names


# ---- folders and shares


def test_a_test_file_without_labels_is_left_out_with_a_word(tmp_path):
    write(tmp_path / "train.csv", CSV)
    write(tmp_path / "test.csv", "id,text\n" + "".join(f"{i},other {i}\n" for i in range(10)))
    splits = load(tmp_path)
    assert [len(frame) for _, frame in splits.items()] == [25, 7, 8]
    assert any("test.csv: left out, as it has no column 'label'" in n for n in splits.notes)
    write(tmp_path / "valid.csv", "text\nx\n")
    with pytest.raises(UserError, match=r"valid\.csv: no column 'label'"):
        load(tmp_path)


def test_shares_with_fewer_rows_than_classes_say_so(tmp_path):
    rows = "".join(f"number {i},{i % 10}\n" for i in range(20))
    path = write(tmp_path / "a.csv", "text,label\n" + rows)
    message = "--test-share 0.2 cuts 4 of 20 rows off, but there are 10 classes"
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "merge rare" not in str(error.value)


def test_what_cleaning_removed_is_said_where_nothing_is_left(tmp_path):
    rows = "".join(f"the same text,{i % 2}\n" for i in range(20))
    with pytest.raises(UserError, match=r"left \(removed: contradicting labels 20\)"):
        load(write(tmp_path / "a.csv", "text,label\n" + rows))
    rows = "".join(f"text {i % 2},{i % 2}\n" for i in range(20))
    with pytest.raises(UserError, match=r"label '\d' has 1; .*removed: duplicate 18"):
        load(write(tmp_path / "a.csv", "text,label\n" + rows))


# ---- every script says what it read and what it left out


def test_scripts_say_what_they_read_and_left_out(call_script, tmp_path):
    rows = forty(lambda i, label: f"number {i},{label},") + "number 3,pos,\n,pos,\n"
    write(tmp_path / "a.csv", "text,label,\n" + rows)
    done = call_script("baselines/train_logreg.py", "--data", "a.csv", "--out", "run")
    assert done.returncode == 0, done.stderr
    for part in ("read a.csv: 42 rows", "a.csv: 1 empty columns without a name left out",
                 "rows removed:   empty text 1, duplicate 1"):  # fmt: skip
        assert part in done.stdout
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert "read a.csv: 42 rows" in results["data"]["notes"]

    rows = "".join(f"Say {i},It is {i},\n" for i in range(20)) + "Say 3,again,\n"
    write(tmp_path / "b.csv", "instruction,output,\n" + rows)
    done = call_script("instruction/write_splits.py", "--data", "b.csv", "--out", "splits")
    assert done.returncode == 0, done.stderr
    for part in ("read b.csv: 21 rows", "empty columns", "rows removed:   duplicate 1"):
        assert part in done.stdout


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
