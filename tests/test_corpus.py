"""Which documents a corpus has: how they are read, cleaned, left out and split."""

import json

import numpy as np
import polars as pl
import pytest

from gpt2.support.errors import UserError
from gpt2.support.files import clean_text
from pretraining.corpus import CorpusSettings, clean_document, read_corpus


def texts_of(corpus):
    return sorted([*corpus.train["text"], *corpus.validation["text"]])


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def corpus_of(*data, seed=1, **settings):
    return read_corpus(CorpusSettings(tuple(map(str, data)), **settings), seed)


def test_cleaning_is_that_of_classification_but_for_lines():
    texts = ["A&amp;B<br /><br />was  fine ", "&lt;br&gt; x\u2028y\x85z", " tab\tin it", "&amp;lt;"]
    for text in texts:
        assert clean_document(text) == clean_text(text)
    code = "def f():  # add\r\n    return  1 \n\n\nend\n"
    assert clean_document(code) == "def f(): # add\n    return 1\n\n\nend"
    assert " ".join(clean_document(code).split()) == clean_text(code)


def test_all_formats_and_columns(tmp_path):
    frame = pl.DataFrame({"text": ["one", "two", "three"], "label": [1, 2, 3]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    frame.write_ndjson(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps(frame.to_dicts()))
    (tmp_path / "a.txt").write_text(
        "one\n<|endoftext|>\ntwo\n <|endoftext|> \r\nthree\n<|endoftext|>\n"
    )
    for suffix in ("parquet", "csv", "tsv", "jsonl", "json", "txt"):
        corpus = corpus_of(tmp_path / f"a.{suffix}")
        assert corpus.name == "a" and corpus.sources == ["a"]
        assert texts_of(corpus) == ["one", "three", "two"]
        assert len(corpus.validation) == 1
    assert corpus.removed == {"empty": 1, "excluded": 0, "duplicate": 0}
    rows = [{"instruction": "Say hi.", "input": None, "output": "- hi\n- ho"},
            {"instruction": "Add.", "input": "1 2", "output": "3"}]  # fmt: skip
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    for item in ("alpaca.json", "alpaca.json:instruction,input,output"):
        corpus = corpus_of(tmp_path / item)
        texts = texts_of(corpus)
        assert texts == ["Add.\n\n1 2\n\n3", "Say hi.\n\n- hi\n- ho"]
    corpus = corpus_of(f"{tmp_path / 'alpaca.json'}:output")
    assert texts_of(corpus) == ["- hi\n- ho", "3"]


def test_excluded_documents_and_copies_are_gone(tmp_path):
    """Also where white space, <br /> or entities differ; a file that is excluded is not read as
    data either, when it lies in the folder."""
    folder = tmp_path / "films"
    folder.mkdir()
    train = [f"train {i}" for i in range(20)]
    leaks = ["Seen &amp; heard.<br /><br />Twice", "  Seen & heard. \n Twice", "test  7"]
    copies = ["train<br />3", "train 4 "]
    pl.DataFrame({"text": train + leaks + copies}).write_parquet(folder / "train.parquet")
    test = [" Seen &#38; heard.<br>Twice", *(f"test<br />{i}" for i in range(9))]
    pl.DataFrame({"text": test}).write_parquet(folder / "test.parquet")
    corpus = corpus_of(folder, exclude=(str(folder / "test.parquet"),))
    assert corpus.removed == {"empty": 0, "excluded": 3, "duplicate": 2}
    assert texts_of(corpus) == sorted(train)
    assert corpus.sources == ["films"]
    assert corpus.test_files == []
    unaware = corpus_of(folder)
    assert unaware.test_files == [str(folder / "test.parquet")]


def test_each_source_gives_its_share_to_validation(tmp_path):
    (tmp_path / "many.jsonl").write_text(
        "".join(json.dumps({"text": f"m{i}"}) + "\n" for i in range(200))
    )
    (tmp_path / "few.jsonl").write_text(
        "".join(json.dumps({"text": f"f{i}"}) + "\n" for i in range(20))
    )
    (tmp_path / "book.txt").write_text(" ".join(f"w{i}" for i in range(1000)))
    data = [tmp_path / name for name in ("many.jsonl", "few.jsonl", "book.txt")]
    corpus = corpus_of(*data, validation_share=0.1)
    counts = dict(corpus.validation["source"].value_counts().rows())
    assert counts == {"many": 20, "few": 2, "book": 1}
    assert not set(corpus.validation["text"]) & set(corpus.train["text"])
    book = [frame.filter(source="book")["text"][0] for frame in (corpus.train, corpus.validation)]
    assert " ".join(book).split() == [f"w{i}" for i in range(1000)]
    assert 90 <= len(book[1].split()) <= 110
    # mixed, the same again, and another order with another seed
    place = np.flatnonzero(corpus.train["source"].to_numpy() == "few")
    assert place.min() < 60 and place.max() > 120
    assert corpus.train["source"][-1] != "book"  # else it would be the first to go
    again = corpus_of(*data, validation_share=0.1)
    assert again.train.equals(corpus.train) and again.validation.equals(corpus.validation)
    assert not corpus_of(*data, seed=2, validation_share=0.1).train.equals(corpus.train)
    kept = corpus_of(*data, validation_share=0.1, max_train=7, max_validation=1)
    assert len(kept.train) == 7 and len(kept.validation) == 3


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--data", "nothing.txt"], ["--data nothing.txt", "no such file"]),
        (["--data", "good.txt", "--exclude", "gone.csv"], ["--exclude gone.csv", "no such file"]),
        (["--data", "no_text.csv"], ["no_text.csv", "no column 'text'", "title, label"]),
        (["--data", "no_text.csv:body"], ["no_text.csv", "no column 'body'", "title, label"]),
        (["--data", "empty.txt"], ["empty.txt", "is empty"]),
        (["--data", "blank.txt"], ["blank.txt", "is empty"]),
        (["--data", "empty.csv"], ["empty.csv", "is empty"]),
        (["--data", "binary.txt"], ["binary.txt", "line 1 is not UTF-8"]),
        (["--data", "numbers.jsonl"], ["numbers.jsonl: row 2: 'text' is int, not text"]),
        (["--data", "paper.pdf"], ["paper.pdf", "'.pdf'", ".parquet"]),
        (["--data", "folder"], ["--data folder", "no file with texts", ".parquet"]),
        (["--data", "good.txt", "--exclude", "good.txt"], ["good.txt", "no texts are left"]),
        (["--data", "good.txt:text"], ["good.txt", "has no columns"]),
        (["--data", "good.txt", "--max-length", "513"], ["--max-length 513", "512"]),
        (["--data"], ["--data", "expected at least one argument"]),
    ],
)  # fmt: skip
def test_bad_input(call_script, tmp_path, flags, parts):
    (tmp_path / "good.txt").write_text("To be or not to be.")
    (tmp_path / "no_text.csv").write_text("title,label\nfine,1\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "numbers.jsonl").write_text('{"text": "one"}\n{"text": 2}\n')
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = call_script("pretraining/pretrain.py", *flags)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_no_texts_at_all(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n ,1\n")
    with pytest.raises(UserError, match="no texts are left"):
        corpus_of(tmp_path / "a.csv")
