"""Readers, cleaning, splits and the dataset, on files of a few rows; errors that name the place."""

import json

import polars as pl
import pytest
from conftest import SHARED

from classification.data import IMDbDataset, load_splits
from classification.sources import DataSettings
from gpt2.support.errors import UserError
from gpt2.support.files import clean_text
from gpt2.tokenizer import get_encoding


def load(path, **settings):
    return load_splits(DataSettings(data=str(path), **settings), seed=1)


def all_rows(splits):
    return {
        (text, splits.labels[label])
        for _, frame in splits.items()
        for text, label in frame.select("text", "label").rows()
    }


def numbered(count, labels=("good", "bad")):
    return [(f"film number {i} was {labels[i % len(labels)]}", labels[i % len(labels)])
            for i in range(count)]  # fmt: skip


# ---- reading


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_the_same_rows_from_every_kind_of_file(tmp_path, suffix):
    rows = [*numbered(30, ("sad", "funny", "odd")), ('he said "no", twice\tand left', "odd")]
    frame = pl.DataFrame(rows, schema=["body", "topic"], orient="row")
    path = tmp_path / f"mine.{suffix}"
    {
        "csv": frame.write_csv,
        "tsv": lambda p: frame.write_csv(p, separator="\t"),
        "json": frame.write_json,
        "jsonl": frame.write_ndjson,
        "parquet": frame.write_parquet,
    }[suffix](path)
    splits = load(path, text_column="body", label_column="topic")
    assert splits.labels == ["funny", "odd", "sad"]
    assert all_rows(splits) == {(clean_text(text), label) for text, label in rows}


def test_labels_are_sorted_by_value_and_keep_their_spelling(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(
        f"text {i},{label}\n" for i, label in enumerate(["10", "2", "01"] * 10)))  # fmt: skip
    assert load(tmp_path / "a.csv").labels == ["01", "2", "10"]
    rows = [{"text": f"t {i}", "label": [True, 2, "x"][i % 3]} for i in range(30)]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert load(tmp_path / "b.json").labels == ["2", "true", "x"]


def test_whole_numbers_stored_as_floats_are_whole_labels(tmp_path):
    pl.DataFrame({"text": [f"t {i}" for i in range(21)], "label": [*[0.0, 1.0] * 10, None]}
                 ).write_parquet(tmp_path / "a.parquet")  # fmt: skip
    splits = load(tmp_path / "a.parquet")
    assert splits.labels == ["0", "1"] and splits.removed["missing label"] == 1


def test_sms_spam_has_no_header_and_bare_quotes(tmp_path):
    """As published: no header line, no suffix, tab-separated, quotes that never close."""
    lines = [
        f'ham\t"see you at {i}, he said' if i % 2 else f"spam\tWIN {i} pounds" for i in range(20)
    ]
    (tmp_path / "SMSSpamCollection").write_text("\n".join(lines) + "\n")
    splits = load(tmp_path / "SMSSpamCollection", columns="label,text")
    assert splits.labels == ["ham", "spam"]
    assert ('"see you at 7, he said', "ham") in all_rows(splits)
    assert sum(len(frame) for _, frame in splits.items()) == 20


def test_ag_news_has_two_text_columns_and_a_test_file(tmp_path):
    for name, count in (("train.csv", 20), ("test.csv", 4)):
        (tmp_path / name).write_text(
            "".join(f'"{i % 4 + 1}","{name} {i}","body, of {i}"\n' for i in range(count))
        )
    splits = load(tmp_path, columns="label,title,body", text_column="title,body")
    assert splits.labels == ["1", "2", "3", "4"] and len(splits.test) == 4
    assert "test.csv 3 body, of 3" in splits.test["text"].to_list()
    assert (len(splits.train), len(splits.validation)) == (16, 4)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b"\xef\xbb\xbf" + b"text,label\n" + b"".join(b"t%d,%d\n" % (i, i % 2) for i in range(20))
    )
    assert load(tmp_path / "a.csv").labels == ["0", "1"]


def test_a_split_column_is_followed(tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,label,fold\na,1,train\nb,0,Train\nc,1,dev\nd,0,test\ne,1,test\n"
    )
    splits = load(tmp_path / "a.csv", split_column="fold")
    assert [len(frame) for _, frame in splits.items()] == [2, 1, 2]


def write_imdb(folder, train, test):
    (folder / "plain_text").mkdir(parents=True)
    for name, rows in (("train", train), ("test", test)):
        pl.DataFrame(
            rows, schema={"text": pl.String, "label": pl.Int64}, orient="row"
        ).write_parquet(folder / "plain_text" / f"{name}-00000-of-00001.parquet")


def test_the_imdb_layout_has_named_labels(tmp_path):
    rows = [(f"review {i}", i % 2) for i in range(20)]
    write_imdb(tmp_path, rows, [("a test review", 0)])
    splits = load(tmp_path)
    assert splits.labels == ["negative", "positive"]
    assert ("review 3", "positive") in all_rows(splits)
    assert splits.test["text"].to_list() == ["a test review"]


def test_acl_imdb_keeps_each_film_on_one_side(tmp_path):
    """Line i of urls_pos.txt is the film of the review pos/i_*.txt."""
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            films = [f"tt{split == 'test'}{i // 4:04}" for i in range(40)]
            films = [film.replace("True", "9").replace("False", "1") for film in films]
            for i, film in enumerate(films):
                (folder / f"{i}_7.txt").write_text(f"{split} {label} {film} review {i}")
            (tmp_path / split / f"urls_{label}.txt").write_text(
                "".join(f"http://www.imdb.com/title/{film}/usercomments\n" for film in films)
            )
    splits = load(tmp_path)
    assert [len(frame) for _, frame in splits.items()] == [64, 16, 80]
    assert splits.labels == ["negative", "positive"]
    films = {split: {text.split()[2] for text in frame["text"]} for split, frame in splits.items()}
    assert films["train"].isdisjoint(films["validation"])
    assert films["train"] | films["validation"] == {f"tt1{i:04}" for i in range(10)}
    assert all(" pos " in text for text in splits.train.filter(label=1)["text"])


def test_real_files_have_bare_quotes_and_odd_line_characters(tmp_path):
    """A bare quote inside a CSV field, a blank line, U+2028 inside a message without quotes."""
    lines = [f'6" screen number {i} is fine,{i % 2}' for i in range(20)]
    (tmp_path / "a.csv").write_text("text,label\n\n" + "\n".join(lines) + "\n\n")
    splits = load(tmp_path / "a.csv")
    assert ('6" screen number 3 is fine', "1") in all_rows(splits)
    assert not any(splits.removed.values())
    lines = [f'ham\t"he said\u2028 {i}' if i % 2 else f"spam\tWIN {i}" for i in range(20)]
    (tmp_path / "sms").write_text("\r\n".join(lines), encoding="utf-8")
    assert ('"he said 7', "ham") in all_rows(load(tmp_path / "sms", columns="label,text"))


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    lines = [f'{{"text": "cut off {i} \\ud83d", "label": {i % 2}}}' for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert ("cut off 3 \ufffd", "1") in all_rows(load(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("column", ["text", "label"])
def test_columns_that_are_not_text_are_refused(tmp_path, column):
    data = {"text": ["a", "b"], "label": ["x", "y"], column: [b"\xff\xfe", b"\xfe"]}
    pl.DataFrame(data).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"column '{column}' is Binary"):
        load(tmp_path / "a.parquet")


def test_missing_numbers_are_missing_labels(tmp_path):
    labels = [*[0.0, 1.0] * 10, float("nan")]
    pl.DataFrame({"text": [f"t {i}" for i in range(21)], "label": labels}).write_parquet(
        tmp_path / "a.parquet"
    )
    splits = load(tmp_path / "a.parquet")
    assert splits.labels == ["0", "1"] and splits.removed["missing label"] == 1


# ---- cleaning


def test_clean_text():
    assert clean_text(" a<br /><br>b &amp; c\u00a0 &#345;\n") == "a b & c ř"
    assert clean_text("R&not and 3 < 4 > 2 &c;") == "R&not and 3 < 4 > 2 &c;"
    assert clean_text("R&notes; &copyright;") == "R&notes; &copyright;"
    assert clean_text("<br />") == ""


def test_every_removal_is_counted_and_no_text_stands_in_two_splits(tmp_path):
    train = [(f"train {i}", i % 2) for i in range(20)]
    train += [("twice", 1), ("twice<br />", 1)]  # equal once cleaned
    train += [("undecided", 0), ("undecided", 1)]
    train += [("in test", 1), ("  ", 0), (None, 1), ("no label", None)]
    test = [("in test", 0), ("copy", 1), ("copy", 1), ("both", 0), ("both", 1), ("only", 0)]
    write_imdb(tmp_path, train, test)
    splits = load(tmp_path)
    assert splits.removed == {
        "empty text": 2, "missing label": 1, "contradicting labels": 4, "duplicate": 1,
        "also in test": 1,
    }  # fmt: skip
    assert splits.cleaned["<br />"] == 1
    assert splits.test["text"].to_list() == ["in test", "copy", "copy", "only"]  # test as given
    texts = [set(frame["text"]) for _, frame in splits.items()]
    assert texts[0] | texts[1] == {f"train {i}" for i in range(20)} | {"twice"}
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


# ---- splitting


def test_splits_are_stratified_seeded_and_cut_from_the_data(tmp_path):
    rows = numbered(100, ("a", "a", "a", "b"))
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(tmp_path / "a.csv")
    first, again = load(tmp_path / "a.csv"), load(tmp_path / "a.csv")
    assert [len(frame) for _, frame in first.items()] == [64, 16, 20]
    assert [frame["label"].sum() for _, frame in first.items()] == [16, 4, 5]
    assert first.train.equals(again.train) and first.test.equals(again.test)
    other = load_splits(DataSettings(data=str(tmp_path / "a.csv")), seed=2)
    assert not first.test.equals(other.test)
    few = load(tmp_path / "a.csv", max_train=10, max_validation=5, max_test=3)
    assert [len(frame) for _, frame in few.items()] == [10, 5, 3]
    assert set(few.test["text"]) < set(first.test["text"])
    few = load(tmp_path / "a.csv", max_train=16)  # a quarter, and so of validation
    assert [len(frame) for _, frame in few.items()] == [16, 4, 20]


def test_fewer_rows_keep_the_share_of_each_class(tmp_path):
    rows = numbered(200, ("a",) * 19 + ("b",))
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(tmp_path / "a.csv")
    for seed in range(5):
        settings = DataSettings(data=str(tmp_path / "a.csv"), max_train=40)
        assert load_splits(settings, seed).train["label"].sum() == 2
    with pytest.raises(UserError, match="all training rows have the same label"):
        load(tmp_path / "a.csv", max_train=3)
    with pytest.raises(UserError, match="--max-train 1 is fewer than the 2 classes"):
        load(tmp_path / "a.csv", max_train=1)


def test_a_test_file_without_labels_is_refused(tmp_path):
    rows = "".join(f"t{i},{i % 2}\n" for i in range(20))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    (tmp_path / "test.csv").write_text("text,label\nx,\ny,\n")
    with pytest.raises(UserError, match="no test rows with a text and a label are left"):
        load(tmp_path)


def test_too_few_films_are_refused(tmp_path):
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / f"urls_{label}.txt").write_text(f"title/tt{len(split)}/\n" * 2)
            for i in range(2):
                (tmp_path / split / label / f"{i}_5.txt").write_text(f"{split} {label} {i}")
    with pytest.raises(UserError, match="too few rows to cut 20 % off"):
        load(tmp_path)


# ---- the dataset


def test_the_dataset_holds_exact_ids():
    encoding = get_encoding("mini")
    dataset = IMDbDataset(["a fine film", "<|endoftext|>"], [0, 2], encoding, max_length=100)
    tokens, target = dataset[0]
    assert (tokens.tolist(), target.item()) == (encoding.encode_ordinary("a fine film"), 0)
    tokens, target = dataset[1]
    assert encoding.eot_token not in tokens and target.item() == 2
    assert encoding.decode(tokens.tolist()) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("head", [0, 1, 2, 3]), ("tail", [2, 3, 4, 5]), ("head-tail", [0, 3, 4, 5])],
)
def test_what_is_kept_of_long_texts(truncation, kept):
    encoding = get_encoding("mini")
    tokens = encoding.encode_ordinary("one two three four five six")
    assert len(tokens) == 6
    short = encoding.encode_ordinary("one two")
    dataset = IMDbDataset(
        ["one two three four five six", "one two"], [0, 1], encoding, 4, truncation
    )
    assert dataset[0][0].tolist() == [tokens[place] for place in kept]
    assert dataset[1][0].tolist() == short


def test_long_texts_lose_their_end_and_are_counted():
    dataset = IMDbDataset(["one two three four", "one"], [0, 1], get_encoding("mini"), max_length=2)
    assert dataset.lengths.tolist() == [2, 1] and len(dataset[0][0]) == 2
    assert (dataset.full_lengths > dataset.lengths).tolist() == [True, False]


@pytest.mark.skipif(not (SHARED / "imdb").is_dir(), reason="the real reviews are not here")
def test_the_real_reviews():
    """Facts of IMDb: 25,000 test reviews, copies in train, none left in two splits."""
    splits = load(SHARED / "imdb")
    assert len(splits.test) == 25_000 and splits.test["label"].sum() == 12_500
    assert splits.removed["duplicate"] >= 96 and splits.removed["also in test"] >= 123
    assert splits.cleaned["<br />"] == 29_197
    texts = [set(frame["text"]) for _, frame in splits.items()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
