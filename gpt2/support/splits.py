"""What the data of all tasks do alike: names, splits, what was removed, what a trial keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from gpt2.support.errors import UserError

# The words for a split in the names of files, folders and splits, and what they mean here.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip

_HUB_NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^@]+))?(@(?P<revision>.+))?", re.ASCII
)
_FILE = re.compile(
    r".*\.(csv|tsv|txt|json|jsonl|ndjson|parquet|arrow)(\.(gz|xz|bz2|zip))?", re.IGNORECASE
)


def hub_name(data: str) -> re.Match | None:
    """`repository`, `config` and `revision` (None where left out) of what `--data` names, if that
    is a data set of the hub: OWNER/NAME, OWNER/NAME:CONFIG, OWNER/NAME@REVISION. A file or folder
    of that name comes first, and `data/train.csv` is a file that is not there.

    >>> hub_name("me/jokes:short@main").group("repository", "config", "revision")
    ('me/jokes', 'short', 'main')
    >>> hub_name("imdb"), hub_name("data/train.csv"), hub_name("../me/jokes")
    (None, None, None)
    """
    found = _HUB_NAME.fullmatch(data)
    if not found or Path(data).exists() or _FILE.fullmatch(found["repository"]):
        return None
    return found


def data_name(data: str, built_in: Collection[str]) -> str:
    """The name of what `--data` names, for files and folders: itself if built in, else without
    folder and suffix; of the hub, without its owner.

    >>> data_name("imdb", ["imdb"]), data_name("tables/mine.csv", ["imdb"])
    ('imdb', 'mine')
    >>> data_name("me/jokes-v1.5:short@main", [])
    'jokes-v1.5-short'
    """
    if data in built_in:
        return data
    if found := hub_name(data):
        name = found["repository"].split("/")[1]
        return re.sub(r"[^\w.-]", "-", f"{name}-{found['config']}" if found["config"] else name)
    return Path(data).resolve().stem


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


def parse_fold(fold: str) -> tuple[int, int]:
    """ "2/5" -> (2, 5): the second of five parts of the training rows is for validation. Raises
    UserError."""
    number, slash, count = fold.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--fold {fold}: must be K/N, as 2/5 for the second of five parts")
    if int(count) < 2:
        raise UserError(f"--fold {fold}: one part would leave no training rows")
    return int(number), int(count)


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
