"""What cells and folders mean: class names, labels that look alike, what is missing and what is no
text; and that every script says what it read and what it left out."""

import json

import polars as pl
import pytest
from test_data import load
from test_tables import CSV, as_lines, forty, size, some_rows, write

from gpt2.support.errors import UserError
from gpt2.support.streaming import open_table, texts_of
from gpt2.tokenizer import get_encoding
from instruction.data import load_splits as load_instructions
from instruction.sources import DataSettings as InstructionSettings
from instruction.template import Template
from pretraining.corpus import CorpusSettings, read_corpus

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


# ---- what people bring, and what has always been right


@pytest.mark.parametrize(
    "content",
    [
        CSV.replace(b"\n", b"\r\n"),
        CSV.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + CSV,
        CSV.rstrip(b"\n"),
        CSV.replace(b"number", "one\u2028line\x85".encode()),
        CSV.replace(b"number", "سؤال رقم".encode()),
        CSV.replace(b"number 3,", b"very " * 200_000 + b","),
        CSV.replace(b"\n", b"\n\n"),
    ],
    ids=["CRLF", "CR", "BOM", "no last line end", "U+2028", "right to left", "1 MB", "blank lines"],
)
def test_what_has_always_been_read(tmp_path, content):
    splits = load(write(tmp_path / "a.csv", content))
    assert size(splits) == 40 and splits.labels == ["neg", "pos"]
    assert not any(splits.removed.values())


def test_many_classes_and_pandas_dictionaries(tmp_path):
    rows = "".join(f"number {i},class {i % 150}\n" for i in range(1500))
    assert len(load(write(tmp_path / "a.csv", "text,label\n" + rows)).labels) == 150
    frame = numbered_frame().with_columns(
        pl.col("label").cast(pl.String).cast(pl.Enum(["0", "1"])),
        pl.int_range(40).alias("__index_level_0__"),
    )
    frame.write_parquet(tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet").labels == ["0", "1"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "text,label\ncafé,1\n".encode("windows-1252"), "line 2 is not UTF-8"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "is UTF-16"),
        ("a.csv", b"text,label\na\0,1\n", "line 2 has a NUL byte"),
    ],
)
def test_what_has_always_been_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / name, content))


def test_a_cut_parquet_is_refused(tmp_path):
    numbered_frame().write_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    for end in (8, len(content) // 2, len(content) - 1):
        with pytest.raises(UserError, match="not a readable Parquet file"):
            load(write(tmp_path / "b.parquet", content[:end]))


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
