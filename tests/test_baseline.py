"""The bag of words: what it learns, on which rows, and its words."""

import json

import numpy as np
import pytest
from conftest import SHARED

from baselines.train_logreg import FEATURES, BagOfWords, has_words
from classification.data import load_splits
from classification.evaluation import classification_metrics
from classification.sources import DataSettings


@pytest.mark.parametrize("features", FEATURES)
def test_learns_words_and_names_them(features):
    texts = [f"a lovely day {i}" for i in range(20)] + [f"a dreary day {i}" for i in range(20)]
    targets = np.array([1] * 20 + [0] * 20)
    model = BagOfWords(features).fit(texts, targets, num_classes=2)
    log_probabilities = model.predict_log_probabilities(["so lovely", "so dreary"])
    assert log_probabilities.argmax(axis=1).tolist() == [1, 0]
    np.testing.assert_allclose(np.exp(log_probabilities).sum(axis=1), 1)
    negative, positive = model.heaviest_words(2)
    assert any("dreary" in word for word in negative)
    assert any("lovely" in word for word in positive)


@pytest.mark.parametrize("features", FEATURES)
def test_three_classes(features):
    words = ["rain", "sun", "snow"]
    texts = [f"{words[i % 3]} today {i}" for i in range(30)]
    model = BagOfWords(features).fit(texts, np.arange(30) % 3, num_classes=3)
    assert model.predict_log_probabilities(words).argmax(axis=1).tolist() == [0, 1, 2]
    assert [names[0].split()[0] for names in model.heaviest_words(1)] == words


def test_naive_bayes_ratio_by_hand():
    """Class one has "a" twice of 2 + 2, the other once of 2 + 2: log(3/4) - log(2/5) and so on."""
    from scipy.sparse import csr_matrix

    from baselines.train_logreg import _naive_bayes_ratio

    X = csr_matrix(np.array([[1, 0], [1, 0], [1, 1]]))
    ratio = _naive_bayes_ratio(X, np.array([True, True, False]))
    assert ratio == pytest.approx([np.log(3 / 4) - np.log(2 / 4), np.log(1 / 4) - np.log(2 / 4)])


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(
    "good, bad", [("😀 !!", "😡 ..."), ("这部电影很好看", "这部电影太难看"),
                  ("とても楽しい映画", "つまらない映画"), ("หนังดีมาก", "หนังแย่มาก"), ("+", "-")]
)  # fmt: skip
def test_texts_without_words_or_without_spaces_are_learnt_by_characters(features, good, bad):
    texts = [f"{good}{'。' * i}" for i in range(20)] + [f"{bad}{'。' * i}" for i in range(20)]
    model = BagOfWords(features).fit(texts, np.array([1] * 20 + [0] * 20), num_classes=2)
    assert model.name == "logistic regression on characters"
    found = model.predict_log_probabilities([f"{good}。!?", f"{bad}。!?"]).argmax(axis=1)
    assert found.tolist() == [1, 0]
    assert all(model.heaviest_words(3))


@pytest.mark.parametrize(
    "texts", [["A fine film", "Dull"], ["Ein schöner Film", "😀"], ["Хороший фильм"],
              ["좋은 영화입니다"], ["فيلم جيد جدا"], ["अच्छी फिल्म"], ["the Tokyo 東京 film"]]
)  # fmt: skip
def test_texts_with_words_keep_words(texts):
    assert has_words(texts)


def test_script_prints_the_same_figures_as_the_comparison(call_script, tmp_path):
    done = call_script("baselines/train_logreg.py", "--out", "run")
    assert done.returncode == 0, done.stderr
    splits = load_splits(DataSettings(), seed=1)
    model = BagOfWords("count").fit(splits.train["text"], splits.train["label"].to_numpy(), 2)
    metrics = classification_metrics(
        model.predict_log_probabilities(splits.test["text"]), splits.test["label"].to_numpy()
    )
    assert f"{100 * metrics['accuracy']:.1f} %" in done.stdout.split("| test")[1]
    assert "speaks for 'negative': " in done.stdout
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["baseline"]["test"] == pytest.approx(metrics)
    assert results["data"]["test"] == 120


@pytest.mark.skipif(not (SHARED / "imdb").is_dir(), reason="the real reviews are not here")
def test_word_counts_on_the_real_reviews():
    """About the 85.3 % of README's curve at 6,400 labels."""
    data = DataSettings(data=str(SHARED / "imdb"), max_train=6400, max_test=5000)
    splits = load_splits(data, seed=1)
    model = BagOfWords("count").fit(splits.train["text"], splits.train["label"].to_numpy(), 2)
    predicted = model.predict_log_probabilities(splits.test["text"]).argmax(axis=1)
    assert (predicted == splits.test["label"].to_numpy()).mean() > 0.84
