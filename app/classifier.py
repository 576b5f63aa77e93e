"""What the page has for classifiers: a text, its probabilities and telling words; a table."""

from __future__ import annotations

import collections
import html
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import polars as pl

from app.models import Classifier, Log
from app.safely import limited, said_to_visitor
from classification.explain import coloured, explain
from classification.predict import Answer, choose_label, new_columns
from classification.predictions import read_predictions
from gpt2.support.errors import UserError
from gpt2.support.streaming import add_columns, new_names, open_table, require_columns, texts_of
from gpt2.support.table_output import SUFFIXES, writing_table
from gpt2.support.tables import percent, shorten

_SHOWN_CLASSES = 8
_EXAMPLES = 4  # of the test split, right and wrong ones


def classifier_page(classifiers: list[Classifier], log: Log, most_characters: int) -> None:
    """Add the components and what they do to the gr.Blocks that is open."""

    def show(text: str) -> Iterator[str]:
        """The cards of all models; first the probabilities, then what takes longer."""
        with said_to_visitor():
            text = limited(text, most_characters)
            answers = [_answer(classifier, text, log) for classifier in classifiers]
            cards = [
                _card(classifier, answer)
                for classifier, answer in zip(classifiers, answers, strict=True)
            ]
            yield _grid(cards)
            for place, classifier in enumerate(classifiers):
                cards[place] += _words(classifier, text) + _bag(classifier, text)
                yield _grid(cards)

    def classify(text: str) -> list[dict[str, Any]]:
        """What each model says of a text: its label and the probability of each class."""
        with said_to_visitor():
            text = limited(text, most_characters)
            return [
                {"run": classifier.name, **_answer(classifier, text, log)}
                for classifier in classifiers
            ]

    def columns_of(upload: str | None, name: str) -> gr.Dropdown:
        if upload is None:
            return gr.Dropdown(choices=[], value=None)
        with said_to_visitor(upload):
            names = list(open_table(Path(upload)).schema)
            usual = _named(classifiers, name).recipe.settings["text_column"]
            return gr.Dropdown(choices=names, value=usual if usual in names else names[0])

    def label(
        upload: str | None, column: str | None, name: str, progress=gr.Progress()  # noqa: B008
    ) -> Iterator[Any]:  # fmt: skip
        """The labelled table; before it nothing, after each batch, so that Gradio can end the work
        there when the visitor has gone."""
        with said_to_visitor(upload):
            if upload is None:
                raise UserError("first choose a file")
            if not Path(upload).is_file():
                raise UserError("the table has been removed meanwhile; choose it once more")
            out = _new_file_beside(Path(upload))
            classifier = _named(classifiers, name)
            for done, rows in label_table(classifier, Path(upload), str(column or ""), out, log):
                _keep_young(Path(upload), out)
                yield gr.skip()
                progress((done, rows), unit="rows", desc="labelling")
            yield str(out)

    text = gr.Textbox(
        "", label="Text", lines=4, max_lines=12, max_length=most_characters, elem_id="text"
    )
    button = gr.Button("Classify", variant="primary")
    cards = gr.HTML(elem_id="cards")
    shown = [text], [cards]
    button.click(show, *shown, api_visibility="private", show_progress="minimal")
    text.submit(show, *shown, api_visibility="private", show_progress="minimal")
    gr.api(classify, api_name="classify")

    for heading, examples in _examples(classifiers[0], len(classifiers) > 1).items():
        if examples:
            texts, labels = zip(*examples, strict=True)
            gr.Examples(
                [[one] for one in texts], [text], [cards], show, cache_examples=False,
                run_on_click=True, label=heading, example_labels=list(labels),
                api_visibility="private",
            )  # fmt: skip

    with gr.Accordion("A whole table", open=False):
        gr.Markdown(
            "It comes back with two more columns, the label and its probability. Both tables are "
            "removed after a quarter of an hour."
        )
        names = [classifier.name for classifier in classifiers]
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        upload = gr.File(label="Table", file_types=list(SUFFIXES), elem_id="upload", height=140)
        column = gr.Dropdown(
            [], label="Column with the text", interactive=True, elem_id="column",
            allow_custom_value=True,  # which columns there are, label_table checks
        )  # fmt: skip
        start = gr.Button("Label the table")
        labelled = gr.File(
            label="Labelled table", interactive=False, elem_id="labelled", height=100
        )
    upload.change(columns_of, [upload, model], [column], api_visibility="private")
    start.click(
        label, [upload, column, model], [labelled], api_name="label_table",
        concurrency_limit=2,  # the other requests that are worked on at once are for texts
    )  # fmt: skip


def label_table(
    classifier: Classifier, file: Path, column: str, out: Path, log: Log
) -> Iterator[tuple[int, int | None]]:
    """Label the table `file` as predict.py does, into `out`, which appears at the end. Yields after
    each batch how many of how many rows are done. Raises UserError for what is no table, has no
    such column, or holds no text there."""
    table = open_table(file)
    require_columns(table, [column], "the column with the text")
    names = new_names(table, ["label", "probability"])
    kinds = {"label": pl.String(), "probability": pl.Float64()}
    schema = table.schema | {names[name]: kind for name, kind in kinds.items()}
    threshold, done = classifier.recipe.settings["threshold"], 0
    with writing_table(out, schema) as write:
        for part in table.parts():
            texts = texts_of(table, part, column, done + 1)
            answers: list[Answer] = [None] * len(texts)
            for batch in classifier.batches(texts):
                for place, answer in batch:
                    answers[place] = answer
                    _keep(classifier, texts[place], answer, log)
                done += len(batch)
                yield done, table.rows
            new = new_columns(answers, names, threshold)
            write(add_columns(part, {names[name]: values for name, values in new.items()}))


def _new_file_beside(file: Path) -> Path:
    folder = tempfile.mkdtemp(dir=file.parent)
    return Path(folder) / f"{file.stem}-labelled{file.suffix}"


def _keep_young(file: Path, out: Path) -> None:
    """Old files are removed, but not those of a table that is being labelled."""
    for one in (file, *out.parent.rglob("*")):
        with suppress(OSError):  # gone in this moment
            os.utime(one)


def _named(classifiers: list[Classifier], name: str | None) -> Classifier:
    return next((one for one in classifiers if one.name == name), classifiers[0])


def _answer(classifier: Classifier, text: str, log: Log) -> dict[str, Any]:
    (answer,) = classifier.classify([text])
    _keep(classifier, text, answer, log)
    label = choose_label(answer, classifier.recipe.settings["threshold"])
    return {"label": label, "probability": answer[label], "probabilities": answer}


def _keep(classifier: Classifier, text: str, answer: Answer, log: Log) -> None:
    label = choose_label(answer, classifier.recipe.settings["threshold"])
    probability = answer[label] if answer else None
    log.write(classifier.name, text=text, label=label, probability=probability)


# ---- what is shown; everything that a visitor or a file has written goes through html.escape


def _grid(cards: list[str]) -> str:
    return f'<div class="cards">{"".join(f"<section>{card}</section>" for card in cards)}</div>'


def _card(classifier: Classifier, answer: dict[str, Any]) -> str:
    bars = _bars(answer["probabilities"], answer["label"])
    calibrated = classifier.recipe.settings["temperature"] != 1
    kind = "calibrated on validation" if calibrated else "as the model gives them"
    return (
        f"<h3>{html.escape(classifier.name)}: {html.escape(answer['label'])}</h3>"
        f"{bars}<p class='note'>Probabilities, {kind}.</p>"
    )


def _bars(probabilities: dict[str, float], chosen: str) -> str:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    rows = [
        f"<tr{' class=chosen' if name == chosen else ''}><th>{html.escape(name)}</th>"
        f'<td><div class="bar" style="width: {100 * value:.1f}%"></div></td>'
        f"<td>{percent(value)}</td></tr>"
        for name, value in ranked[:_SHOWN_CLASSES]
    ]
    rest = ranked[_SHOWN_CLASSES:]
    if rest:
        others = sum(value for _, value in rest)
        rows.append(f"<tr><th>{len(rest)} others</th><td></td><td>{percent(others)}</td></tr>")
    return f'<table class="bars">{"".join(rows)}</table>'


def _words(classifier: Classifier, text: str) -> str:
    found = explain(classifier.classify, text, "", classifier.recipe.settings["threshold"])
    return (
        f'<p class="words">{coloured(found)}</p><p class="note">Blue words speak for '
        f"{html.escape(found.label)}, orange ones against it: what its log-odds lose when the word "
        "is left out (Li et al. 2016).</p>"
    )


def _bag(classifier: Classifier, text: str) -> str:
    bag = classifier.bag()
    if bag is None:
        return '<p class="note">No bag of words: its training rows are not here any more.</p>'
    (found,) = np.exp(bag.predict_log_probabilities([text]))
    place = int(found.argmax())
    words = [
        f"{html.escape(word)} {weight:+.2f}" for word, weight in bag.telling_words(text, place)
    ]
    return (
        f"<p class='note'>The bag of words: {html.escape(classifier.labels[place])}, "
        f"{percent(found[place])}; {', '.join(words) or 'it knows none of the words'}.</p>"
    )


def _examples(classifier: Classifier, is_one_of_many: bool) -> dict[str, list[tuple[str, str]]]:
    """Short texts of the test split with how they are shown, by heading."""
    whose = classifier.name if is_one_of_many else "the model"
    found: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    try:
        kept = read_predictions(classifier.folder)
    except UserError:  # a checkpoint without its run
        return found
    order = sorted(range(len(kept.texts)), key=lambda row: abs(len(kept.texts[row]) - 120))
    right = kept.right("after")
    for row in order:
        heading = f"Test texts that {whose} gets {'right' if right[row] else 'wrong'}"
        if len(found[heading]) < _EXAMPLES:
            label = kept.labels[kept.targets[row]]
            found[heading].append((kept.texts[row], f"{label}: {shorten(kept.texts[row], 70)}"))
    return dict(sorted(found.items()))
