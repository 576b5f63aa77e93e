"""explain.py: what each word does to a prediction, whether that means anything, and the colours."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused

from classification.explain import (
    check,
    coloured,
    cut,
    describe,
    explain,
    html_page,
    without,
    write_mistakes,
)
from classification.predictions import Predictions

EXPLAIN = "classification/explain.py"


def counting(texts):
    """A classifier that finds `good` and `bad` in texts, and nothing else."""
    answers = []
    for text in texts:
        odds = np.exp(2.0 * text.split().count("good") - 1.0 * text.split().count("bad"))
        answers.append({"bad": 1 / (1 + odds), "good": odds / (1 + odds)} if text else None)
    return answers


def test_a_word_is_worth_what_the_log_odds_lose_without_it():
    found = explain(counting, " a good,  good and\nbad film ")
    assert found.label == "good" and found.pieces == ["a", "good,", "good", "and", "bad", "film"]
    np.testing.assert_allclose(found.scores, [0, 0, 2, 0, -1, 0], atol=1e-9)
    other = explain(counting, "a good, good and bad film", "bad")
    np.testing.assert_allclose(other.scores, [0, 0, -2, 0, 1, 0], atol=1e-9)
    assert describe(found).splitlines()[1].split() == ["+2.00", "good"]


def test_texts_of_one_word_and_of_none():
    assert explain(counting, "good").scores == pytest.approx([2.0])
    assert explain(counting, " \n") is None


def test_a_threshold_chooses_the_class_that_is_explained():
    assert explain(counting, "a bad film", threshold=0.2).label == "good"
    assert explain(counting, "a bad film", threshold=0.5).label == "bad"


def test_a_long_text_is_cut_into_runs_of_words_and_comes_together_again():
    text = " ".join(f"word{i}" for i in range(450))
    pieces, separator = cut(text)
    assert len(pieces) == 150 and pieces[0] == "word0 word1 word2"
    assert separator.join(pieces) == text
    assert without(pieces, separator, [0, 149]) == " ".join(pieces[1:149])


@pytest.mark.parametrize("text", ["很好看", "とても良い", "ดีมาก", "很好看的电影" * 5])
def test_words_without_spaces_are_cut_into_characters(text):
    assert cut(text) == (list(text), "")


def test_one_word_is_one_piece():
    assert cut("good") == (["good"], " ") and cut("좋아요") == (["좋아요"], " ")


def test_the_check_tells_scores_that_mean_something_from_those_that_do_not():
    random = np.random.default_rng(0)
    words = ["good", *(f"w{i}" for i in range(9))]
    texts = [" ".join(random.permutation(words)) for _ in range(20)]
    said = check(counting, texts, 12, seed=1)
    assert said.startswith("12 test texts without 20.0 %") and said.endswith("mean something")
    # a classifier that no word moves
    said = check(lambda texts: [{"bad": 0.4, "good": 0.6}] * len(texts), texts, 12, seed=1)
    assert "0.0 points more" in said and said.endswith("may be luck")


def test_what_is_in_a_text_is_never_markup():
    found = explain(counting, 'good <script>alert("x")</script> a&b')
    page = html_page("<b>", [("<i>", coloured(found))])
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and "a&amp;b" in page
    assert "http" not in page  # nothing is fetched


def test_mistakes_in_colours(tmp_path):
    texts = ["a good film", "a bad film", "good good"]
    rows = np.array([[a["bad"], a["good"]] for a in counting(texts)])
    kept = Predictions(texts, ["bad", "good"], np.array([0, 0, 1]), {"after": np.log(rows)})
    write_mistakes(tmp_path, kept, counting)
    page = (tmp_path / "mistakes.html").read_text()
    assert page.count("<h2>") == 1 and "good with 88.1 %, is bad" in page
    assert [m[1] for m in re.findall(r'title="([^"]+)">([^<]+)<', page)] == ["a", "good", "film"]


def test_a_text_that_is_no_utf_8_in_colours(call_script, tmp_path, monkeypatch):
    model = SimpleNamespace(to=lambda device: None)
    recipe = SimpleNamespace(settings={"labels": ["bad", "good"], "threshold": None})
    monkeypatch.setattr("classification.explain.load_model", lambda *given: (model, recipe))
    monkeypatch.setattr("classification.explain.classifier", lambda *given: counting)
    # a script's own standard output takes such a text, pytest's does not
    monkeypatch.setattr("classification.explain.describe", lambda found: "")
    done = call_script(EXPLAIN, "run", "a good \udcff film", "--html", "words.html")
    assert done.returncode == 0, done.stderr
    assert ">\\udcff<" in (tmp_path / "words.html").read_text()


def test_bad_flags_are_refused(call_script, tmp_path):
    (tmp_path / "there.html").write_text("mine")
    refused(call_script(EXPLAIN, "run"), "either a text to explain or --check")
    refused(call_script(EXPLAIN, "run", "text", "--check", 5), "either a text")
    refused(call_script(EXPLAIN, "run", "--check", 5, "--html", "x.html"), "--html")
    refused(call_script(EXPLAIN, "run", "text", "--html", "there.html"), "is there already")
    refused(call_script(EXPLAIN, "run", "text", "--html", "no/x.html"), "no folder")
    refused(call_script(EXPLAIN, "run", "text"), "run: not a run folder")
