"""Pre-training: which tokens are learnt, which documents are left out, and a whole run."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from conftest import refused

from gpt2.batching import IGNORE, collate
from gpt2.command_line import UserError
from gpt2.corpus import CorpusSettings, TokenRows, clean_document, read_corpus
from gpt2.files import clean_text
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.model import GPT2, GPT2Config
from gpt2.tokenizer import get_encoding

SCRIPT = "gpt2/pretrain.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16)
MINI = get_encoding("mini")


def make_model(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=8192)
    return GPT2(config, LanguageModelHead(config)).eval()


def texts_of(corpus):
    return sorted([*corpus.train["text"], *corpus.validation["text"]])


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def corpus_of(*data, seed=1, **settings):
    return read_corpus(CorpusSettings(tuple(map(str, data)), **settings), seed)


# ---- tokens


def test_exact_ids_of_two_documents():
    first, second = MINI.encode_ordinary("A fine film"), MINI.encode_ordinary("Dull")
    end = MINI.eot_token
    rows = TokenRows(["A fine film", "Dull"], MINI, max_length=4)
    tokens = [row.tolist() for row, _ in rows]
    targets = [row.tolist() for _, row in rows]
    assert len(first) == 3 and len(second) == 2
    assert tokens == [[end, *first], [end, *second]]
    assert targets == [[*first, end], [*second, end]]
    assert rows.lengths.tolist() == [4, 3] and rows.targets == 7
    assert rows[0][0].dtype == rows[0][1].dtype == torch.int64


@pytest.mark.parametrize("max_length", [1, 7, 16, 10_000])
def test_each_token_is_a_target_once(max_length):
    texts = [f"Film number {i} was " + "very " * i + "long." for i in range(12)]
    rows = TokenRows(texts, MINI, max_length)
    stream = [MINI.eot_token]
    for text in texts:
        stream += [*MINI.encode_ordinary(text), MINI.eot_token]
    assert torch.cat([targets for _, targets in rows]).tolist() == stream[1:]
    assert torch.cat([tokens for tokens, _ in rows]).tolist() == stream[:-1]
    assert {len(tokens) for tokens, _ in list(rows)[:-1]} <= {max_length}
    assert [len(tokens) for tokens, _ in rows] == rows.lengths.tolist()
    assert rows.document_tokens.sum() == rows.targets


def test_the_special_token_in_a_text_stays_text():
    rows = TokenRows(["One <|endoftext|> two"], MINI, 512)
    stream = rows.stream.tolist()
    assert stream.count(MINI.eot_token) == 2 and stream[0] == stream[-1] == MINI.eot_token
    assert MINI.decode(stream[1:-1]) == "One <|endoftext|> two"


# ---- loss


def test_the_loss_is_that_of_all_logits_at_once(monkeypatch):
    """Chunks, which end inside rows here, change neither the loss nor its gradient."""
    rows = TokenRows(["A fine film, I think.", "Dull", "No, no."], MINI, 5)
    batch = collate(list(rows))
    model = make_model()
    logits = model(batch.tokens, batch.lengths)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr("gpt2.language_modelling._CHUNK", 3)
    loss, count = language_model_loss(model, batch)
    loss.backward()
    assert count == rows.targets
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_perplexity_is_the_same_at_any_batch_size():
    texts = [f"Review {i}: " + "good " * (i % 5) for i in range(40)]
    rows = TokenRows(texts, MINI, 9)
    losses = [evaluate_loss(make_model(), rows, size, "float32")["loss"] for size in (1, 7, 32)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_an_untrained_model_knows_nothing():
    rows = TokenRows(["The film begins where the book ends."], MINI, 64)
    metrics = evaluate_loss(make_model(), rows, 1, "float32")
    assert metrics["loss"] == pytest.approx(math.log(8192), abs=0.1)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


# ---- documents


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
        assert texts_of(corpus) == [
            "one",
            "three",
            "two",
        ]
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
    done = call_script(SCRIPT, *flags)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


# ---- runs


def test_a_whole_run_twice(call_script, tmp_path):
    """On the built-in texts, and repeatable bit for bit."""
    logs = []
    for name in ("one", "two"):
        done = call_script(SCRIPT, *TINY, "--max-steps", 6, "--log-every", 1, "--max-length", 64,
                           "--dropout", 0.1, "--out", name)  # fmt: skip
        assert done.returncode == 0, done.stderr
        records = read_jsonl(tmp_path / name / "metrics.jsonl")
        logs.append([{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records])
    assert logs[0] == logs[1] and len(logs[0]) == 8
    run = tmp_path / "one"
    assert {path.name for path in run.iterdir()} >= {"config.json", "metrics.jsonl", "results.json",
            "report.md", "curves.png", "best", "last"}  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == "pretraining"
    assert set(results["data"]["train_tokens"]) == {"sample_reviews", "sample_instructions"}
    assert results["training"]["tokens"] == 6 * 8 * 64
    for when in ("before", "after"):
        found = results[when]["validation_by_source"]
        tokens = results["data"]["validation_tokens"]
        mean = sum(found[s]["loss"] * tokens[s] for s in tokens) / sum(tokens.values())
        assert results[when]["validation"]["loss"] == pytest.approx(mean)
    assert results["before"]["validation"]["loss"] == pytest.approx(
        logs[0][0]["validation"]["loss"]
    )
    assert results["after"]["validation"]["loss"] < results["before"]["validation"]["loss"]
    assert logs[0][0]["validation"]["sample_reviews perplexity"] == pytest.approx(
        results["before"]["validation_by_source"]["sample_reviews"]["perplexity"]
    )
    assert done.stdout.count("  This film ...") == 2  # before training and after it
    report = (run / "report.md").read_text()
    assert "| sample_reviews" in report and "### Once upon a time ..." in report
    assert "next, fine-tune it" in done.stdout
    assert json.loads((run / "best/config.json").read_text())["task"] == "pretraining"


def test_a_tiny_text_is_learnt_by_heart(call_script, tmp_path):
    (tmp_path / "verse.txt").write_text("the rain it rains every day " * 8)
    done = call_script(SCRIPT, "--data", "verse.txt", "--model", "scratch", "--n-layer", 1,
                       "--n-embd", 32, "--validation-share", 0.2, "--epochs", 240,
                       "--learning-rate", 3e-3, "--evaluate-every", 240,
                       "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = json.loads((tmp_path / "run/results.json").read_text())["after"]["validation"]
    logged = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [record["loss"] for record in logged if "loss" in record][-1] < 0.2
    assert after["perplexity"] < 100  # of 8,192


def test_held_out_instructions_stay_out(call_script, tmp_path):
    """write_splits.py writes the rows of the tuning with the same --split-seed; a folder of them
    without its validation and test files is what pre-training may see."""
    from instruction.data import DataSettings, load_splits
    from instruction.template import Template

    done = call_script("instruction/write_splits.py", "--out", "splits/own", "--split-seed", 3)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "splits/own"
    splits = load_splits(DataSettings(), Template(), MINI, 3)
    for split, frame in splits.items():
        written = [
            json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()
        ]
        assert written == frame.to_dicts()
    held_out = [str(folder / f"{split}.jsonl") for split in ("validation", "test")]
    corpus = corpus_of(folder, exclude=tuple(held_out))
    assert len(corpus.train) + len(corpus.validation) == len(splits.train)
    learnt = "\n".join(texts_of(corpus))
    for frame in (splits.validation, splits.test):
        assert not any(instruction in learnt for instruction in frame["instruction"])
    again = call_script("instruction/write_splits.py", "--out", "splits/own")
    assert again.returncode == 2 and "is there already" in again.stderr
    assert "--out is missing" in call_script("instruction/write_splits.py").stderr


def test_a_split_does_not_depend_on_the_room_for_a_response():
    """What is held out must be the same for every --max-length and tokenizer."""
    from instruction.data import DataSettings, load_splits
    from instruction.template import Template

    long, short = (
        load_splits(DataSettings(max_length=length), Template(), MINI, 1) for length in (512, 60)
    )
    assert sum(short.removed.values()) > 0
    for (_, whole), (_, part) in zip(long.items(), short.items(), strict=True):
        assert part.rows() == [row for row in whole.rows() if row in set(part.rows())]
        assert set(part.rows()) < set(whole.rows())


def test_every_seed_is_measured_on_the_same_documents(call_script, monkeypatch):
    def read(settings, seed):
        raise UserError(f"documents of {seed}")

    monkeypatch.setattr("gpt2.pretrain.read_corpus", read)
    refused(call_script(SCRIPT, "--seed", 7), "documents of 1")
    refused(call_script(SCRIPT, "--seed", 7, "--split-seed", 3), "documents of 3")


def test_no_texts_at_all(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n ,1\n")
    with pytest.raises(UserError, match="no texts are left"):
        corpus_of(tmp_path / "a.csv")
