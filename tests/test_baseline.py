"""The bag of words: what it learns, on which rows, and its words."""

import json

import numpy as np
import pytest
from conftest import SHARED

from baselines.train_logreg import FEATURES, BagOfWords
from classification.data import load_splits
from classification.evaluation import classification_metrics
from classification.sources import DataSettings
from gpt2.support.errors import UserError


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


def test_texts_without_words_are_refused():
    with pytest.raises(UserError, match="no words"):
        BagOfWords("count").fit(["! ?", "..."], np.array([0, 1]), 2)


def test_script_prints_the_same_figures_as_the_comparison(run_script, tmp_path):
    done = run_script("baselines/train_logreg.py", "--out", "run")
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
