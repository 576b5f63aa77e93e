"""Any data set of the hub: its splits and its class names, and clear lines without them."""

import io
import json

import polars as pl
import pytest
from small_hub import NAME, OLD

from classification.data import describe_splits, load_splits
from classification.sources import DataSettings
from gpt2.support.errors import UserError
from gpt2.support.hub_datasets import open_dataset

CARD = """---
license: mit
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/train-*
  - split: test
    path: "plain/test-*"
  - split: unsupervised
    path: plain/unsupervised-*
- config_name: other
  data_files: other/**
dataset_info:
- config_name: plain
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': dull
          '1': funny
- config_name: other
---
# Jokes
"""


def csv(start, count, label="number"):
    rows = [
        f"text {i},{i % 2 if label == 'number' else 'ab'[i % 2]}"
        for i in range(start, start + count)
    ]
    return ("\n".join(["text,label", *rows]) + "\n").encode()


def parquet(start, count, label=None, metadata=None):
    content = io.BytesIO()
    rows = range(start, start + count)
    frame = pl.DataFrame(
        {
            "text": [f"text {i}" for i in rows],
            "label": [i % 2 if label is None else label for i in rows],
        }
    )
    frame.write_parquet(content, metadata=metadata)
    return content.getvalue()


def load(data=NAME, **settings):
    return load_splits(DataSettings(data=data, **settings), 1)


def texts(frame):
    return sorted(frame["text"], key=lambda text: int(text.split()[1]))


def numbered(*numbers):
    return [f"text {number}" for number in numbers]


def wanted(data=NAME, commit=OLD, notes=None):
    """The names of the files of each split."""
    files = open_dataset(data, commit, [] if notes is None else notes).files
    parts = f"snapshots/{commit}/"
    return {split: [str(file).split(parts)[1] for file in found] for split, found in files.items()}


# ---- splits and class names


def test_splits_and_class_names_as_the_card_says(serve):
    hub = serve({
        "README.md": CARD.encode(),
        "plain/train-00000-of-00002.parquet": parquet(0, 20),
        "plain/train-00001-of-00002.parquet": parquet(20, 20),
        "plain/test-00000-of-00001.parquet": parquet(40, 10),
        "plain/unsupervised-00000-of-00001.parquet": parquet(50, 10, label=-1),
        "other/a.csv": csv(0, 10),
    })  # fmt: skip
    splits = load(f"{NAME}:plain")
    assert splits.name == "jokes-plain" and splits.labels == ["dull", "funny"]
    assert texts(splits.test) == numbered(*range(40, 50))
    assert texts(pl.concat([splits.train, splits.validation])) == numbered(*range(40))
    for text, label in splits.train.rows():
        assert splits.labels[label] == ("dull", "funny")[int(text.split()[1]) % 2]
    described = describe_splits(splits)
    assert described | {"source": f"{NAME}:plain", "revision": OLD} == described
    printed = splits.notes[0]
    assert OLD in printed and "not used: unsupervised" in printed
    assert "plain/train-00000-of-00002.parquet, plain/train-00001-of-00002.parquet" in printed
    sent = [path for command, path in hub.requests if command == "GET"]
    assert not any("other/" in path or "unsupervised" in path for path in sent)


def test_one_entry_of_class_names_goes_for_csv_files_too(serve):
    names = "dataset_info: {features: [{name: y, dtype: {class_label: {names: [no, 'yes']}}}]}"
    content = csv(0, 40).replace(b"label", b"y")
    serve({"README.md": f"---\n{names.replace('no,', repr('no') + ',')}\n---\n".encode(),
           "train.csv": content})  # fmt: skip
    assert load(label_column="y").labels == ["no", "yes"]
    assert sum(len(frame) for _, frame in load(label_column="y").items()) == 40


def test_class_names_in_the_parquet_file_itself_are_not_named_again_by_the_card(serve):
    """Classes 0 and 1 are called 1 and 2: named twice, the first would become the second."""
    names = ["1", "2", "3"]
    features = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    card = (
        f"dataset_info: {{features: [{{name: label, dtype: {{class_label: {{names: {names}}}}}}}]}}"
    )
    serve({"data/train-00000-of-00001.parquet": parquet(0, 40, metadata=metadata),
           "README.md": f"---\n{card}\n---\n".encode()})  # fmt: skip
    splits = load()
    assert splits.labels == ["1", "2"]
    for text, label in splits.train.rows():
        assert label == int(text.split()[1]) % 2


def test_minus_one_is_no_label_where_classes_have_names(serve):
    files = {"plain/train-0.parquet": parquet(0, 40), "plain/test-0.parquet": parquet(90, 9, -1)}
    serve(files | {"README.md": CARD.encode()})
    splits = load()
    assert any("no row of it has a label" in note for note in splits.notes)
    assert set(splits.test["text"]) < set(numbered(*range(40)))


def test_minus_one_is_a_class_where_the_card_names_none(serve):
    serve({"train.csv": csv(0, 40).replace(b",0", b",-1")})
    assert load().labels == ["-1", "1"]


def test_a_test_table_without_the_label_column_is_not_used(serve):
    serve({"train.csv": csv(0, 40), "test.csv": b"text\nwhat is it?\n"})
    splits = load()
    assert len(splits.test) == 8
    assert any("test.csv: left out, as it has no column 'label'" in note for note in splits.notes)


@pytest.mark.parametrize(
    "files, expected",
    [
        (["train.csv", "test.csv", "val.csv", "dataset_infos.json"],
         {"train": ["train.csv"], "validation": ["val.csv"], "test": ["test.csv"]}),
        (["data/train-00000-of-00001-6ef3991c06080e14.parquet", "data/eval.parquet"],
         {"train": ["data/train-00000-of-00001-6ef3991c06080e14.parquet"],
          "test": ["data/eval.parquet"]}),
        (["train/part-0.jsonl", "train/part-1.jsonl", "dev/part-0.jsonl"],
         {"train": ["train/part-0.jsonl", "train/part-1.jsonl"],
          "validation": ["dev/part-0.jsonl"]}),
        (["plain_text/my_train.json", "plain_text/my_testing.json"],
         {"train": ["plain_text/my_train.json"], "test": ["plain_text/my_testing.json"]}),
        (["en/train.csv", "dataset_infos.json"], {"train": ["en/train.csv"]}),
        (["one.csv", "two.csv", "notes.txt"], {"train": ["one.csv", "two.csv"]}),
        (["train.csv", "train.parquet", "test.parquet"],  # the same rows twice
         {"train": ["train.parquet"], "test": ["test.parquet"]}),
        (["train.csv", "labels.csv"], {"train": ["train.csv"]}),
        (["train.jsonl.gz", "test.jsonl.gz"],
         {"train": ["train.jsonl.gz"], "test": ["test.jsonl.gz"]}),
    ],
)  # fmt: skip
def test_splits_by_the_names_of_files_and_folders(serve, files, expected):
    serve({file: b"x" for file in files})
    assert wanted() == expected


def test_a_card_with_patterns_alone(serve):
    serve({"README.md": b"---\nconfigs: [{config_name: default, data_dir: a, "
           b"data_files: ['*.csv', 'deep/**/x?.csv']}]\n---\n",
           "a/train.csv": b"x", "a/deep/b/c/x1.csv": b"x", "a/b/test.csv": b"x",
           "test.csv": b"x"})  # fmt: skip
    assert wanted() == {"train": ["a/train.csv"]}


def test_kinds_of_splits_are_configurations(serve):
    parts = "".join(
        f"\n  - {{split: {split}, path: data/{split}-*}}"
        for split in ("train_sft", "test_sft", "train_gen", "test_gen", "odd")
    )
    card = f"---\nconfigs:\n- config_name: default\n  data_files:{parts}\n---\n"
    files = ["data/train_sft-0.parquet", "data/test_sft-0.parquet", "data/train_gen-0.parquet"]
    serve({"README.md": card.encode()} | {file: b"x" for file in files})
    with pytest.raises(UserError, match=f"several configurations, sft, gen; .*{NAME}:sft"):
        wanted()
    assert wanted(f"{NAME}:sft") == {"train": [files[0]], "test": [files[1]]}
    assert wanted(f"{NAME}:gen") == {"train": [files[2]]}


@pytest.mark.parametrize(
    "files, card, config, message",
    [
        (["en/train.csv", "de/train.csv"], "", "",
         f"several configurations, en, de; name one: --data {NAME}:en"),
        (["en/train.csv", "de/train.csv"], "", "fr", "no configuration fr, but en, de"),
        (["jokes.py", "README.txt"], "", "", f"no Parquet.*{NAME}@refs/convert/parquet"),
        (["validation.csv", "test.csv"], "", "", "called train, they are validation, test"),
        (["train.csv"], "configs: 7", "", "not as the hub describes them"),
        (["train.csv"], "dataset_info: [{features: 7}]", "", "not as the hub describes them"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused_with_one_line(serve, files, card, config, message):
    files = {file: b"x" for file in files}
    serve(files | {"README.md": f"---\n{card}\n---\n".encode()})
    data = f"{NAME}:{config}" if config else NAME
    with pytest.raises(UserError, match=message) as error:
        open_dataset(data, OLD, [])
    assert str(error.value).startswith(f"--data {data}: ") and "\n" not in str(error.value)


def test_the_default_that_a_card_marks_is_taken_and_said(serve):
    card = """---
configs:
- {config_name: en, data_files: en.csv}
- {config_name: de, data_files: de.csv, default: true}
---
"""
    serve({"README.md": card.encode(), "en.csv": b"x", "de.csv": b"x"})
    assert wanted(notes=(notes := [])) == {"train": ["de.csv"]}
    assert "configuration de" in notes[0]


def test_a_card_that_is_no_yaml_is_said_and_not_needed(serve):
    serve({"README.md": b"---\na: [\n---\n", "train.csv": b"x"})
    assert wanted(notes=(notes := [])) == {"train": ["train.csv"]}
    assert "card cannot be read" in notes[0]
