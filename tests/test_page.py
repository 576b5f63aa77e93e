"""The page, asked over HTTP: the answers of predict.py and respond.py, whoever else asks at the
same time; what it refuses, and what it keeps. In a browser: test_browser.py."""

import json
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY, length_when_still, refused
from small_page import ask, models, page_of, send, stop_after, upload

from app.page import PageSettings, start_page
from classification.predictions import read_predictions
from gpt2.support.errors import UserError

pytest.importorskip("gradio", reason="the page needs gradio")
from app.classifier import _examples

# of its own use of pandas
pytestmark = pytest.mark.filterwarnings("ignore:.*keyword is deprecated", "ignore:.*downcasting")
TEXT = "A dull start, but what an ending!"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with page_of(tmp_path_factory.mktemp("page")) as page:
        yield page


def test_a_text_gets_the_answer_of_predict(page, call_script):
    (found,) = ask(page.url, "classify", TEXT)
    done = call_script("classification/predict.py", page.runs / "c", TEXT, "--json")
    expected = json.loads(done.stdout)
    assert found["run"] == "c" and found["label"] == expected["label"]
    assert found["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-5)


def test_the_bag_of_words_is_that_of_the_run(page, capsys):
    (classifier, again), _ = models(page.runs / "c", page.runs / "c/best")
    results = json.loads((page.runs / "c/results.json").read_text())
    kept = read_predictions(page.runs / "c")
    found = classifier.bag().predict_log_probabilities(kept.texts)
    np.testing.assert_allclose(found, kept.log_probabilities["baseline"], atol=1e-5)
    assert classifier.bag().heaviest_words() == results["baseline"]["heaviest_words"]
    # what the words move is all that is there, but for what stands before any word
    text, odds = kept.texts[0], [found[0, label] - found[0, 1 - label] for label in (0, 1)]
    moved = [
        sum(w for _, w in classifier.bag().telling_words(text, label, 999)) for label in (0, 1)
    ]
    constant = classifier.bag().regressions[0].intercept_[0]
    assert [moved[0] - constant, moved[1] + constant] == pytest.approx(odds, abs=1e-4)
    assert again.bag() is None and "without a bag of words" in capsys.readouterr().err


def test_an_instruction_gets_the_answer_of_respond(page, call_script):
    flags = ("--temperature", 1.5, "--top-p", 0.9, "--max-new-tokens", 12, "--seed", 5)
    for text in ("", "What a day!"):
        (found,) = ask(page.url, "respond", "Name three colours.", text, 1.5, 0.9, 12, 5)
        done = call_script(
            "instruction/respond.py", page.runs / "i", "Name three colours.", "--input", text,
            *flags,
        )  # fmt: skip
        assert found["answer"] == done.stdout.removesuffix("\n")
    # the penalty is the default there as well; without it this model says something else
    asked = ("instruction/respond.py", page.runs / "i", "Name three colours.")
    (found,) = ask(page.url, "respond", "Name three colours.", "", 0.0, 1.0, 128, 1)
    assert found["answer"] == call_script(*asked).stdout.removesuffix("\n")
    plain = call_script(*asked, "--repetition-penalty", 1)
    assert found["answer"] != plain.stdout.removesuffix("\n")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_comes_back_as_predict_labels_it(page, call_script, tmp_path, suffix):
    rows = [{"id": f"0{i}", "story": f"film {i} " * (1 + i % 5)} for i in range(40)]
    rows[3]["story"] = ""
    frame = pl.DataFrame(rows)
    file = tmp_path / f"new{suffix}"
    {".csv": frame.write_csv, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}[
        suffix
    ](file)
    found = upload(page.url, file)
    labelled = ask(page.url, "label_table", found, "story", "c")
    with urllib.request.urlopen(labelled["url"]) as response:
        (tmp_path / f"page{suffix}").write_bytes(response.read())
    call_script(
        "classification/predict.py", page.runs / "c", "--file", file, "--text-column", "story",
        "--out", f"expected{suffix}",
    )  # fmt: skip
    read = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}[suffix]
    one, other = read(tmp_path / f"page{suffix}"), read(tmp_path / f"expected{suffix}")
    if suffix == ".jsonl":  # a column of structs that only predict.py writes
        other = other.drop("probabilities")
    assert one.columns == other.columns and one["id"].to_list() == other["id"].to_list()
    assert one["label"].to_list() == other["label"].to_list() and one["label"][3] is None
    found, expected = [table["probability"].drop_nulls().to_list() for table in (one, other)]
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == 39


def test_twenty_clients_at_once(page):
    """Nothing is lost, and everybody gets what is said to him alone."""

    def visit(number):
        (answer,) = ask(page.url, "respond", f"Tell {number}.", "", 1.5, 1.0, 8, number)
        (labelled,) = ask(page.url, "classify", f"film {number} " * number)
        return answer["answer"], labelled["probabilities"]

    alone = [visit(number) for number in range(1, 21)]
    assert len({answer for answer, _ in alone}) == 20  # or a mix-up would not show
    with ThreadPoolExecutor(20) as clients:
        together = list(clients.map(visit, range(1, 21)))
    assert [answer for answer, _ in together] == [answer for answer, _ in alone]
    for (_, one), (_, other) in zip(together, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_text_waits_for_one_batch_of_a_table(page, tmp_path, monkeypatch):
    """Whoever uploads a long table, others get their turn after the batch at hand."""
    classifiers, _ = page.models
    classifier, order, predict = classifiers[0], [], page.predict

    def slow(model, recipe, texts, *rest):
        texts = list(texts)
        order.append(texts[0])
        time.sleep(0.05)
        return predict(model, recipe, texts, *rest)

    monkeypatch.setattr("app.models.predict", slow)
    table = threading.Thread(target=classifier.classify, args=(["long"] * 40 * 4,))
    table.start()
    while len(order) < 3:
        time.sleep(0.005)
    before = len(order)
    classifier.classify(["short"])
    assert order.index("short") <= before + 1
    table.join()
    assert order.count("long") == 40 and order[-1] == "long"


def test_who_leaves_in_the_middle_of_an_answer_ends_it(page):
    """A client that closes its connection: the model works no more, and the next one is served."""
    _, (assistant,) = page.models
    with stop_after(assistant, seconds_a_token=0.03) as tokens:
        event = send(page.url, "respond", "Go on.", "", 1.5, 1.0, 400, 1)
        stream = urllib.request.urlopen(f"{page.url}/gradio_api/call/respond/{event}")
        while len(tokens) < 5:
            assert stream.readline(), f"the answer ended after {len(tokens)} tokens"
        stream.close()
        count = length_when_still(tokens)
        assert count < 300
    (found,) = ask(page.url, "respond", "Hello.", "", 0.0, 1.0, 2, 1)
    assert "answer" in found


def test_who_leaves_in_the_middle_of_a_table_ends_it(page, tmp_path, monkeypatch):
    """Nobody waits for what nobody wants; and of many tables two are labelled at a time."""
    done, predict = [], page.predict

    def slow(model, recipe, texts, *rest):
        done.append(1)
        time.sleep(0.03)
        return predict(model, recipe, texts, *rest)

    monkeypatch.setattr("app.models.predict", slow)
    pl.DataFrame({"text": ["long"] * 4 * 300}).write_csv(tmp_path / "long.csv")
    streams = []
    for _ in range(3):
        event = send(page.url, "label_table", upload(page.url, tmp_path / "long.csv"), "text", "c")
        streams.append(urllib.request.urlopen(f"{page.url}/gradio_api/call/label_table/{event}"))
    while len(done) < 5:
        assert streams[0].readline(), f"the table ended after {len(done)} batches"
    for stream in streams:
        stream.close()
    count = length_when_still(done)
    assert count < 200  # of 900
    assert not list(page.folder.rglob("long-labelled*"))
    assert ask(page.url, "classify", TEXT)


@pytest.mark.parametrize(
    "name, data, part",
    [
        ("classify", ["  \n"], "the text is empty"),
        ("classify", ["x" * 3000], "3,000 characters; 2,000 are allowed"),
        ("classify", [None], "must be a string"),
        ("classify", [["a"]], "must be a string"),
        ("respond", ["go", 5, 0, 1, 8, 1], "must be a string"),
        ("respond", ["go", "", 0, 1, 8, None], "must be numbers"),
        ("respond", ["go", "", 0, [1], 8, 1], "must be numbers"),
        ("respond", ["go", "", 0, 1, 8, -3], "the seed must be 0 to"),
        ("respond", ["go", "", 0, 1, 8, 2**70], "the seed must be 0 to"),
        ("respond", ["", "", 0, 1, 8, 1], "the text is empty"),
        ("respond", ["go " * 600, "", 0, 1, 8, 1], "no room for an answer"),
        ("respond", ["go", "", -1, 1, 8, 1], "temperature must be 0 to 2"),
        ("respond", ["go", "", 0, 1, 10**9, 1], "the length 1 to"),
        ("respond", ["go", "", "hot", 1, 8, 1], "must be numbers"),
    ],
)
def test_bad_input_is_answered_and_the_page_goes_on(page, name, data, part, capfd):
    with pytest.raises(RuntimeError) as refusal:
        ask(page.url, name, *data)
    assert part in str(refusal.value) and "Traceback" not in capfd.readouterr().err
    assert ask(page.url, "classify", TEXT)


def test_bad_tables_are_answered(page, tmp_path):
    files = {
        "no.csv": (b"", "no.csv"),
        "other.csv": (b"body\nfine\n", "no column 'text'"),
        "broken.parquet": (b"PAR1", "not a readable Parquet file"),
        "not.csv": (b"text\n\xff\xfe\n", "not UTF-8"),
        "markup.csv": (b"<img src=x>\nfine\n", "&lt;img src=x&gt;"),  # the page shows HTML
        "some.txt": (b"text\n", "Invalid file type"),
    }
    for name, (content, part) in files.items():
        (tmp_path / name).write_bytes(content)
        found = upload(page.url, tmp_path / name)
        with pytest.raises(RuntimeError) as refusal:
            ask(page.url, "label_table", found, "text", "c")
        said = str(refusal.value)
        assert part in said and "Traceback" not in said and str(page.folder) not in said
    (tmp_path / "large.csv").write_bytes(b"text\n" + b"x" * 2**21)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        upload(page.url, tmp_path / "large.csv")
    assert refusal.value.code == 413


def test_other_files_of_the_machine_are_not_served(page):
    for path in (REPOSITORY / "README.md", "/etc/passwd", page.runs / "c/config.json"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{page.url}/gradio_api/file={quote(str(path))}")
        assert refusal.value.code in (403, 404)
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        with pytest.raises((RuntimeError, urllib.error.HTTPError)):
            ask(page.url, "label_table", file, "text", "c")


def test_who_comes_after_too_many_is_asked_to_try_again(page, monkeypatch):
    monkeypatch.setattr(page.blocks._queue, "max_size", 0)
    with pytest.raises((RuntimeError, urllib.error.HTTPError)):
        ask(page.url, "classify", TEXT)
    monkeypatch.undo()
    assert ask(page.url, "classify", TEXT)


def test_nothing_is_kept_unless_it_is_asked_for(page, tmp_path_factory):
    ask(page.url, "classify", "a text like no other")
    kept = [file for file in page.folder.rglob("*") if file.is_file()]
    assert not any(b"like no other" in file.read_bytes() for file in kept)
    folder = tmp_path_factory.mktemp("logged")
    with page_of(folder, log=str(folder / "log.jsonl")) as logged:
        ask(logged.url, "classify", "said <b>once</b>")
        ask(logged.url, "respond", "Hello.", "you", 0.0, 1.0, 2, 1)
        about = json.loads(urllib.request.urlopen(f"{logged.url}/config").read())
    one, other = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert one["text"] == "said <b>once</b>" and one["label"] in ("negative", "positive")
    assert other["instruction"] == "Hello." and other["input"] == "you" and "output" in other
    assert "Inputs and answers are logged." in json.dumps(about)


def test_the_script(page, call_script, tmp_path, monkeypatch):
    """It says where the page is, who may see it and what is kept; and ends with its folder."""
    seen = []

    def wait(folder):
        seen.append(Path(folder))
        (Path(folder) / "upload.csv").write_text("text\n")
        raise KeyboardInterrupt

    monkeypatch.setattr("app.page.wait", wait)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handled = set()
    monkeypatch.setattr("signal.getsignal", lambda number: signal.SIG_DFL)
    monkeypatch.setattr("signal.signal", lambda number, handler: handled.add(number))
    done = call_script("app/page.py", page.runs / "c")
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:" in done.stdout and "this machine alone" in done.stdout
    assert "not kept" in done.stdout and not seen[0].exists()
    assert handled >= {signal.SIGTERM, signal.SIGHUP}
    handled.clear()
    monkeypatch.setattr("signal.getsignal", lambda number: signal.SIG_IGN)  # as under nohup
    assert call_script("app/page.py", page.runs / "c").returncode == 0
    assert signal.SIGTERM in handled and signal.SIGHUP not in handled
    taken = page.url.rsplit(":", 1)[1]
    refused(call_script("app/page.py", page.runs / "c", "--port", taken), f"--port {taken}")
    refused(call_script("app/page.py", tmp_path / "no"), "not a run folder")
    refused(call_script("app/page.py", page.runs / "c", "--log", "no/x.jsonl"), "no/x.jsonl")
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(call_script("app/page.py", page.runs / "c"), "pip install -e '.[app]'")


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", "192.0.2.1", "2001:db8::1", "::x"])
def test_an_address_that_is_not_of_this_machine(page, host):
    with pytest.raises(UserError, match=f"--host {re.escape(host)}: cannot be used"):
        start_page(*page.models, PageSettings(host=host), str(page.folder))


def test_an_address_of_ipv6(page):
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    blocks = start_page(*page.models, PageSettings(host="::1"), str(page.folder))
    assert blocks.local_url.startswith("http://[::1]:")
    assert ask(blocks.local_url.rstrip("/"), "classify", TEXT)
    blocks.close(verbose=False)


def test_several_runs_and_one_of_neither_task(page, tmp_path):
    found, _ = models(page.runs / "c", page.runs / "c/best")
    assert [one.name for one in found] == ["c", "best"]
    found, _ = models(page.runs / "c", page.runs / "c")
    assert [one.name for one in found] == [str(page.runs / "c")] * 2
    with pytest.raises(UserError, match="neither a run nor a model"):
        models(tmp_path)


def test_of_several_runs_it_is_said_whose_the_examples_are(page):
    (classifier,), _ = page.models
    for is_one_of_many, whose in ((True, "c"), (False, "the model")):
        for heading in _examples(classifier, is_one_of_many):
            assert heading.startswith(f"Test texts that {whose} gets ")
