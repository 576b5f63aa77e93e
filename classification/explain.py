"""Which words made the model decide so? Each is left out once.

    python classification/explain.py RUN "A dull start, but what an ending!"
    python classification/explain.py RUN "A dull start, but what an ending!" --html words.html
    python classification/explain.py RUN --check 50

The score of a word is what the log-odds of the label lose without it (Li et al. 2016,
"Understanding Neural Networks through Representation Erasure"): above 0 it speaks for the label,
below 0 against it. It says what moves this model, not what is true of the text, and nothing of
words that matter only together.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import html
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from classification.evaluation import confident_mistakes
from classification.predict import Answer, choose_label, predict
from classification.predictions import Predictions, read_predictions
from gpt2.checkpoint import Recipe
from gpt2.model import GPT2
from gpt2.support.device import DeviceSettings, choose_device
from gpt2.support.errors import UserError
from gpt2.support.files import UNSPACED, clean_text
from gpt2.support.flags import flag, parse_flags
from gpt2.support.intervals import Difference, paired_difference
from gpt2.support.script import run_script
from gpt2.support.tables import percent
from gpt2.weights.loading import load_model

Classify = Callable[[list[str]], list[Answer]]

_MOST_PIECES = 200  # each costs a prediction
_SHARE = 0.2  # of its words that a text loses in the check
_DRAWS = 3  # of random words, for each text of the check


@dataclass
class ExplainSettings:
    """Explanation"""

    label: str = flag("", "class to explain; left out, the one that is predicted")
    html: str = flag("", "write the coloured text to this file")
    check: int = flag(
        0, "test the scores on so many texts of the run's test split: taking out the words with "
        "the highest ones must cost more than taking out others", at_least=1,
    )  # fmt: skip
    seed: int = flag(1, "chooses the texts and the random words of --check", at_least=0)
    batch_size: int = flag(32, "texts at once; less if memory runs out", at_least=1)


@dataclass
class Explanation:
    """What each piece of a text does to the log-odds of `label`: `scores[i]` is what they lose
    without `pieces[i]`. A piece is a word; in a long text several, in one without spaces a
    character. `separator` joins the pieces to the text again."""

    label: str
    probability: float
    pieces: list[str]
    separator: str
    scores: list[float]


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", type=Path, help="a run folder of train_gpt.py")
        parser.add_argument("text", metavar="TEXT", nargs="?", help="what is to be explained")

    settings, on, arguments = parse_flags(
        [ExplainSettings, DeviceSettings],
        "Which words made the model decide so?",
        add_arguments=add_arguments,
    )
    if (arguments.text is None) == (settings.check == 0):
        raise UserError("give either a text to explain or --check N")
    if settings.check and (settings.html or settings.label):
        raise UserError("--html and --label are for a text; --check has many")
    if settings.html:
        _check_new(Path(settings.html))
    device = choose_device(on.device)
    model, recipe = load_model(arguments.run, "classification")
    if settings.label and settings.label not in recipe.settings["labels"]:
        known = ", ".join(recipe.settings["labels"])
        raise UserError(f"--label {settings.label}: the model has no such class; it has {known}")
    classify = classifier(model.to(device), recipe, settings.batch_size, on.precision)
    if settings.check:
        texts = read_predictions(arguments.run).texts
        print(check(classify, texts, settings.check, settings.seed))
        return
    found = explain(classify, arguments.text, settings.label, recipe.settings["threshold"])
    if found is None:
        raise UserError("the text is empty")
    print(describe(found))
    if settings.html:
        title = f"{found.label}, {percent(found.probability)}"
        page = html_page(title, [(title, coloured(found))])
        # What an argument holds that is no UTF-8 is shown as an escape.
        Path(settings.html).write_text(page, encoding="utf-8", errors="backslashreplace")
        print(f"\nin colours: {settings.html}")


def _check_new(file: Path) -> None:
    if not file.parent.is_dir():
        raise UserError(f"--html {file}: there is no folder {file.parent}")
    if file.exists():
        raise UserError(f"--html {file}: is there already; name another")


def classifier(
    model: GPT2, recipe: Recipe, batch_size: int = 32, precision: str = "auto"
) -> Classify:
    """The probabilities of each class for several texts, as predict.py gives them."""
    return lambda texts: [
        answer for _, answer in predict(model, recipe, texts, batch_size, precision)
    ]


def explain(
    classify: Classify, text: str, label: str = "", threshold: float | None = None
) -> Explanation | None:
    """The score of each word of `text` for `label`, left out for the one that is predicted, with
    `threshold` as in `choose_label`. None for a text without content."""
    pieces, separator = cut(clean_text(text))
    if not pieces:
        return None
    left = [without(pieces, separator, [place]) for place in range(len(pieces))]
    whole, *answers = classify([separator.join(pieces), *left])
    label = label or choose_label(whole, threshold)
    # Of the only word nothing is left: it has all the log-odds.
    scores = [
        log_odds(whole, label) - (log_odds(answer, label) if answer else 0.0) for answer in answers
    ]
    return Explanation(label, whole[label], pieces, separator, scores)


def cut(text: str) -> tuple[list[str], str]:
    """The pieces of `text` and what stands between them: words or, where there are no spaces
    between these, characters; at most 200, so that in a long text neighbours share one.

    >>> cut("A fine film"), cut("很好看")
    ((['A', 'fine', 'film'], ' '), (['很', '好', '看'], ''))
    """
    pieces, separator = text.split(), " "
    one_of_many_words = len(pieces) == 1 and UNSPACED.search(text)
    if one_of_many_words or len(text) > 16 * max(1, len(pieces)):
        pieces, separator = list(text), ""
    size = math.ceil(len(pieces) / _MOST_PIECES) or 1
    starts = range(0, len(pieces), size)
    return [separator.join(pieces[start : start + size]) for start in starts], separator


def without(pieces: list[str], separator: str, places: Collection[int]) -> str:
    """The text without the pieces at `places`."""
    return separator.join(piece for i, piece in enumerate(pieces) if i not in places)


def log_odds(answer: dict[str, float], label: str) -> float:
    """Of `label` against all other classes, finite also where a probability is 0 in float32."""
    others = sum(value for name, value in answer.items() if name != label)
    return math.log(max(answer[label], 1e-30)) - math.log(max(others, 1e-30))


def describe(found: Explanation) -> str:
    """The words by the size of their score, for a terminal."""
    order = sorted(range(len(found.pieces)), key=lambda place: -abs(found.scores[place]))
    lines = [f"{found.scores[place]:+9.2f}  {found.pieces[place]}" for place in order[:20]]
    more = f"\n           and {len(order) - 20} more" if len(order) > 20 else ""
    head = f"{found.label} {percent(found.probability)}; its log-odds lose without"
    return "\n".join([head, *lines]) + more


# ---- do the scores mean anything?


def check(classify: Classify, texts: list[str], count: int, seed: int) -> str:
    """A sentence on what `count` of `texts` lose in probability without a fifth of their words:
    those with the highest scores, and random ones (the comprehensiveness of DeYoung et al. 2020,
    "ERASER")."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(texts))[:count]
    top, at_random, share = [], [], percent(_SHARE)
    for place in chosen:
        found = explain(classify, texts[place])
        if found is None or len(found.pieces) < 2:
            continue  # nothing to choose from
        number = max(1, round(_SHARE * len(found.pieces)))
        highest = np.argsort(-np.array(found.scores), kind="stable")[:number]
        draws = [random.permutation(len(found.pieces))[:number] for _ in range(_DRAWS)]
        answers = classify([without(found.pieces, found.separator, c) for c in (highest, *draws)])
        lost = [found.probability - answer[found.label] for answer in answers]
        top.append(lost[0])
        at_random.append(np.mean(lost[1:]))
    if not top:
        raise UserError("--check: no text of the test split has two words")
    found = paired_difference(np.array(at_random), np.array(top))
    return (
        f"{len(top)} test texts without {share} of their words: the probability of the predicted "
        f"class falls by {100 * np.mean(top):.1f} points where these are the words with the "
        f"highest scores, by {100 * np.mean(at_random):.1f} where they are random; "
        f"{_say(found)}"
    )


def _say(found: Difference) -> str:
    interval = f"{100 * found.value:.1f} points more (95 %: {100 * found.low:.1f} to "
    verdict = "the scores mean something" if found.low > 0 else "that may be luck"
    return f"{interval}{100 * found.high:.1f}), {verdict}"


# ---- colours


def coloured(found: Explanation) -> str:
    """The text as HTML: blue words speak for the label, orange ones against it. The strongest word
    has the full colour, or one that is worth 1 where all are weaker."""
    strongest = max(1.0, *(abs(score) for score in found.scores))
    spans = []
    for piece, score in zip(found.pieces, found.scores, strict=True):
        # Both colours are readable under black and under white letters.
        colour = "59, 130, 246" if score > 0 else "234, 115, 23"
        style = f"background: rgba({colour}, {0.6 * abs(score) / strongest:.2f})"
        spans.append(f'<span style="{style}" title="{score:+.2f}">{html.escape(piece)}</span>')
    return found.separator.join(spans)


def html_page(title: str, texts: list[tuple[str, str]]) -> str:
    """A page with a heading over each coloured text. It needs nothing from elsewhere."""
    body = "\n".join(f"<h2>{html.escape(head)}</h2>\n<p>{text}</p>" for head, text in texts)
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
body {{ font: 1.1rem/1.7 system-ui, sans-serif; overflow-wrap: anywhere;
max-width: 45rem; margin: 2rem auto; padding: 0 1rem }}
h2 {{ font-size: 1.1rem }}
span {{ border-radius: .2rem; padding: .1rem 0 }}
</style>
<p>Blue words speak for the class that the model has named, orange ones against it. The number under
the pointer is what its log-odds lose when the word is left out.</p>
{body}
</html>
"""


def write_mistakes(folder: Path, predictions: Predictions, classify: Classify) -> None:
    """Write mistakes.html into a run folder: the report's confident mistakes, and what misled the
    model."""
    mistakes = confident_mistakes(
        predictions.log_probabilities["after"],
        predictions.targets,
        predictions.texts,
        predictions.labels,
    )
    texts = []
    for mistake in mistakes:
        found = explain(classify, mistake["text"], mistake["predicted"])
        head = (
            f"{mistake['predicted']} with {percent(mistake['probability'])}, is {mistake['label']}"
        )
        texts.append((head, coloured(found)))
    page = html_page("The most confident mistakes", texts)
    (folder / "mistakes.html").write_text(page, encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    run_script(main)
