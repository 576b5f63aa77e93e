"""Chapter 1, cleaning: mend texts, drop the rows that would spoil a comparison, count both."""

from __future__ import annotations

import polars as pl

from gpt2.support.cells import bare_label, same_numbers
from gpt2.support.files import collapse_white_space, replace_br_tags, unescape_entities

_STEPS = {
    "HTML entities": unescape_entities,
    "<br />": replace_br_tags,
    "white space": collapse_white_space,
}  # together they are gpt2.support.files.clean_text, which prediction uses

# In the order of who gives way: a text that stands in two splits stays in the later one, so that
# what is measured stays as given.
_SPLITS = ("train", "validation", "test")


def clean(
    parts: dict[str, pl.DataFrame], notes: list[str]
) -> tuple[dict[str, pl.DataFrame], dict[str, int], dict[str, int]]:
    """Clean the raw splits: frames with `text` and `label` (String), and `group` where rows belong
    together.

    Returns the clean splits, {step: texts it changed} and {reason: rows removed}. Labels that are
    the same but for what nobody sees become one, which is told in `notes`.

    A test split that came with the data is evaluated as given: copies inside it stay, because
    published figures count them (199 in IMDb's). What goes are empty texts, and copies that
    contradict each other in their label, which no prediction could get right.
    """
    cleaned, removed = {}, {}
    given = {}
    parts = _merge_labels(parts, notes)
    for split in _SPLITS:
        if split in parts:
            given[split] = _clean_texts(parts[split], cleaned)
            given[split] = _drop(given[split], pl.col("text") != "", "empty text", removed)
            given[split] = _drop(
                given[split], pl.col("label").fill_null("") != "", "missing label", removed
            )

    one_label = pl.col("label").n_unique().over("text") == 1
    if "test" in given:
        given["test"] = _drop(given["test"], one_label, "contradicting labels", removed)
    training = pl.concat(
        [
            frame.with_columns(split=pl.lit(split))
            for split, frame in given.items()
            if split != "test"
        ]
    )
    training = _drop(training, one_label, "contradicting labels", removed)
    for split in ("train", "validation"):
        if split in given:
            rows = training.filter(pl.col("split") == split).drop("split")
            given[split] = _drop(rows, pl.col("text").is_first_distinct(), "duplicate", removed)

    for place, split in enumerate(_SPLITS):
        for later in _SPLITS[place + 1 :]:
            if split in given and later in given:
                for column, reason in (("text", "also in"), ("group", "film also in")):
                    if column in given[split].columns:
                        elsewhere = pl.col(column).is_in(given[later][column].unique().implode())
                        given[split] = _drop(given[split], ~elsewhere, f"{reason} {later}", removed)
    return given, cleaned, removed


def _clean_texts(frame: pl.DataFrame, cleaned: dict[str, int]) -> pl.DataFrame:
    texts = frame["text"].fill_null("").to_list()
    for step, function in _STEPS.items():
        changed = [function(text) for text in texts]
        count = sum(before != after for before, after in zip(texts, changed, strict=True))
        cleaned[step] = cleaned.get(step, 0) + count
        texts = changed
    return frame.with_columns(pl.Series("text", texts, dtype=pl.String))


def _merge_labels(parts: dict[str, pl.DataFrame], notes: list[str]) -> dict[str, pl.DataFrame]:
    """Labels without white space around them and without zero-width characters; `1.0` is `1` where
    there is a `1`."""
    there = {label for frame in parts.values() for label in frame["label"].drop_nulls()}
    bare = {label: bare_label(label) for label in there}
    numbers = same_numbers(set(bare.values()))
    merged = {label: numbers.get(short, short) for label, short in bare.items()}
    changed = [label for label in sorted(there) if merged[label] != label]
    if changed:
        rows = sum(frame["label"].is_in(changed).sum() for frame in parts.values())
        shown = ", ".join(f"{label!r} as {merged[label]!r}" for label in changed[:5])
        more = f", and {len(changed) - 5} more" if len(changed) > 5 else ""
        notes.append(f"labels of {rows:,} rows are read without what is not seen: {shown}{more}")
    return {
        split: frame.with_columns(pl.col("label").replace(merged)) for split, frame in parts.items()
    }


def _drop(frame: pl.DataFrame, keep: pl.Expr, reason: str, removed: dict[str, int]) -> pl.DataFrame:
    kept = frame.filter(keep)
    removed[reason] = removed.get(reason, 0) + len(frame) - len(kept)
    return kept
