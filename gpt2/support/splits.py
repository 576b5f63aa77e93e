"""What the data of all tasks do alike: their name, what was removed, how many a trial keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path


def data_name(data: str, built_in: Collection[str]) -> str:
    """The name of what `--data` names: itself if built in, else without folder and suffix.

    >>> data_name("imdb", ["imdb"]), data_name("tables/mine.csv", ["imdb"])
    ('imdb', 'mine')
    """
    return data if data in built_in else Path(data).resolve().stem


def short_text(texts: Iterable[str], limit: int = 70) -> str:
    """The first text to show as an example of `texts`, in a command too: on one line, neither long
    nor a word, without quotes and not like a flag. If none is so, the beginning of the first one.

    >>> short_text(["no", "it's long enough", "a fine example"])
    'a fine example'
    """
    texts = list(texts)
    for text in texts:
        if 10 <= len(text) <= limit and text.isprintable() and not set(text) & set("'\"\\"):
            if not text.startswith("-"):
                return text
    beginning = " ".join(texts[0].split()).lstrip("- ") or "..."
    return beginning if len(beginning) <= limit else beginning[:limit].rsplit(" ", 1)[0]


def rows_to_keep(
    sizes: dict[str, int], max_train: int, max_validation: int, max_test: int
) -> dict[str, int]:
    """The most rows of each split that the `--max-...` flags keep, given the `sizes` of the splits;
    0 keeps all. With `max_train` alone, validation keeps the same share of its rows: 64 training
    rows on trial should not be followed by 5,000 for validation.

    >>> rows_to_keep({"train": 1000, "validation": 200, "test": 50}, 100, 0, 0)
    {'train': 100, 'validation': 20, 'test': 0}
    """
    if max_train and not max_validation:
        share = min(1, max_train / sizes["train"])
        max_validation = math.ceil(share * sizes["validation"])
    return {"train": max_train, "validation": max_validation, "test": max_test}


def counts_in_words(counts: dict[str, int]) -> str:
    """Reasons or steps and how often, in one line, without what did not happen.

    >>> counts_in_words({"empty text": 0, "duplicate": 1200})
    'duplicate 1,200'
    """
    return ", ".join(f"{what} {count:,}" for what, count in counts.items() if count)
