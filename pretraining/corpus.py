"""Plain texts for language modelling: from files to documents, from documents to rows of tokens.

read_corpus    files and folders  ->  documents, clean, without copies, cut into two splits
TokenRows      documents joined with <|endoftext|>, cut into rows of the context's length
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import tiktoken
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from gpt2.support.cells import text_of
from gpt2.support.errors import UserError
from gpt2.support.files import (
    TABLE_SUFFIXES,
    clean_text,
    collapse_white_space,
    is_table,
    read_rows,
    read_text,
    replace_br_tags,
    table_suffix,
    unescape_entities,
)
from gpt2.support.flags import flag
from gpt2.support.splits import counts_in_words, data_name
from gpt2.tokenizer import encode_texts

_REPOSITORY = Path(__file__).parent.parent
SAMPLE = (
    _REPOSITORY / "classification/sample_reviews.csv",
    _REPOSITORY / "instruction/sample_instructions.json",
)
SEPARATOR = "<|endoftext|>"  # a line of its own between the documents of a .txt file
# Taken where no columns are named: the first of these that a table has.
LAYOUTS = (("text",), ("instruction", "input", "output"))


@dataclass
class CorpusSettings:
    """Data"""

    data: tuple[str, ...] = flag(
        ("sample",),
        "files and folders with texts: Parquet, JSONL, JSON, CSV, TSV, or .txt. PATH:COLUMN,COLUMN "
        "names the columns, joined by an empty line; left out, `text`, or instruction, input and "
        "output. sample stands for the built-in reviews and instructions",
        may_change=True,
        names=("sample",),
    )
    exclude: tuple[str, ...] = flag(
        (),
        "files and folders, written as for --data, whose texts must not be in: a test split. White "
        "space, <br /> and entities make no difference",
        may_change=True,
        names=(),
    )
    validation_share: float = flag(
        0.01, "share of each source's documents kept for validation, at least one document",
        above=0, at_most=0.5,
    )  # fmt: skip
    split_seed: int = flag(
        1, "which documents are for validation, and which --max-... keeps; apart from --seed, so "
        "that runs of several seeds are measured on the same documents", at_least=0,
        at_most=2**32 - 1,
    )  # fmt: skip
    max_train: int = flag(0, "training documents kept, for a quick trial; 0 keeps all", at_least=0)
    max_validation: int = flag(
        0, "validation documents kept of each source; 0 keeps all", at_least=0
    )
    max_length: int = flag(0, "tokens of a row; 0 takes the model's whole context", at_least=0)


@dataclass
class Corpus:
    """Two DataFrames with the columns `text` and `source` (String), in the order in which they are
    learnt, and what was left out."""

    name: str
    sources: list[str]
    train: pl.DataFrame
    validation: pl.DataFrame
    removed: dict[str, int]  # reason -> documents
    test_files: list[str]  # files that were read though their names say that they are for testing
    notes: list[str]  # files read, and what reading did otherwise than their names say


def read_corpus(settings: CorpusSettings, seed: int) -> Corpus:
    """Read, clean and split what `settings.data` names. The result depends on the files, the
    settings and `seed` alone. Raises UserError for data that cannot be used."""
    notes: list[str] = []
    excluded_files, excluded = set(), set()
    for item in settings.exclude:
        for file, columns in _find(item, "--exclude"):
            excluded_files.add(file.resolve())
            excluded.update(map(clean_text, _read_documents(file, columns, notes)))

    texts, sources, test_files = [], [], []
    for item in settings.data:
        for file, columns in _find(item, "--data"):
            if file.resolve() in excluded_files:
                notes.append(f"{file}: left out, as --exclude names it")
                continue
            if re.search("(^|[^a-z])test([^a-z]|$)", "/".join(file.parts[-2:]).lower()):
                test_files.append(str(file))
            found = _read_documents(file, columns, notes)
            bar = tqdm(found, desc=f"cleaning {file.name}", unit="text", disable=None, leave=False)
            texts += map(clean_document, bar)
            sources += [file.stem if item == "sample" else item_name(item)] * len(found)

    # Two documents are the same if clean_text would make the same of them.
    keys = [collapse_white_space(text) for text in texts]
    documents = pl.DataFrame(
        {"text": texts, "source": sources, "key": keys},
        schema=dict.fromkeys(("text", "source", "key"), pl.String),
    ).with_columns(excluded=pl.Series([key in excluded for key in keys], dtype=pl.Boolean))
    removed = {}
    for reason, keep in (
        ("empty", pl.col("key") != ""),
        ("excluded", ~pl.col("excluded")),
        ("duplicate", pl.col("key").is_first_distinct()),
    ):
        kept = documents.filter(keep)
        removed[reason] = len(documents) - len(kept)
        documents = kept
    if documents.is_empty():
        left_out = counts_in_words(removed) or "none removed"
        raise UserError(f"--data {' '.join(settings.data)}: no texts are left ({left_out})")

    # One shuffle mixes the sources, so that neighbouring rows, and the documents that share a row,
    # are of all kinds.
    documents = documents.select("text", "source").sample(fraction=1, shuffle=True, seed=seed)
    train, validation = _split(documents, settings.validation_share)
    if settings.max_train:
        train = train[: settings.max_train]
    if settings.max_validation:
        place = pl.int_range(pl.len()).over("source")
        validation = validation.filter(place < settings.max_validation)
    there = set(documents["source"])
    return Corpus(
        name="+".join(dict.fromkeys(map(item_name, settings.data))),
        sources=[source for source in dict.fromkeys(sources) if source in there],
        train=train,
        validation=validation,
        removed=removed,
        test_files=test_files,
        notes=notes,
    )


def item_name(item: str) -> str:
    """The name of what an item of `--data`, PATH or PATH:COLUMN,COLUMN, names."""
    return data_name(str(_split_columns(item)[0]), ["sample"])


def clean_document(text: str) -> str:
    """Entities become characters and <br /> a space, as in classification; runs of white space
    become one space, but line ends and the indentation of lines stay: lists, verses, code.

    >>> clean_document("A&amp;B<br /><br />was  fine \\n\\tor  not\\n")
    'A&B was fine\\n\\tor not'
    """
    lines = []
    for line in replace_br_tags(unescape_entities(text)).split("\n"):
        content = collapse_white_space(line)
        indentation = line[: len(line) - len(line.lstrip())] if content else ""
        lines.append(indentation + content)
    return "\n".join(lines).strip()


def _split_columns(item: str) -> tuple[Path, list[str]]:
    """`PATH:COLUMN,COLUMN` -> the path and the columns. A path that is there may hold a colon."""
    path, colon, columns = item.rpartition(":")
    if not colon or Path(item).exists():
        return Path(item), []
    return Path(path), [name.strip() for name in columns.split(",")]


def _find(item: str, flag_shown: str) -> list[tuple[Path, list[str]]]:
    """The files that an item of `--data` or `--exclude` names, each with its columns."""
    if item == "sample":
        return [(file, []) for file in SAMPLE]
    path, columns = _split_columns(item)
    if path.is_file():
        if columns and table_suffix(path) == ".txt":
            raise UserError(f"{flag_shown} {item}: {path.name} is plain text, it has no columns")
        return [(path, columns)]
    if not path.is_dir():
        raise UserError(
            f"{flag_shown} {path}: no such file or folder (write PATH or PATH:COLUMN,COLUMN; "
            "sample is built in)"
        )
    files = [file for file in sorted(path.rglob("*")) if is_table(file)]
    if not files:
        raise UserError(
            f"{flag_shown} {path}: no file with texts in it; such files end in "
            f"{', '.join(TABLE_SUFFIXES)}"
        )
    return [(file, columns) for file in files]


def _read_documents(file: Path, columns: Sequence[str], notes: list[str]) -> list[str]:
    """The documents of one file, as they are."""
    if table_suffix(file) == ".txt":
        text = read_text(file)
        if not text.strip():
            raise UserError(f"{file}: the file is empty")
        documents = [[]]
        for line in text.split("\n"):
            if line.strip() == SEPARATOR:
                documents.append([])
            else:
                documents[-1].append(line)
        notes.append(f"read {file}: {len(documents):,} documents")
        return ["\n".join(lines) for lines in documents]
    rows = read_rows(file, notes)
    there = list(dict.fromkeys(name for row in rows for name in row))
    columns = columns or next((names for names in LAYOUTS if set(names) <= set(there)), ["text"])
    for name in columns:
        if name not in there:
            raise UserError(
                f"{file}: no column '{name}'; name the columns with the text, as in "
                f"{file.name}:{there[0]}; the file has: {', '.join(there)}"
            )
    documents = []
    for number, row in enumerate(rows, start=1):
        parts = [text_of(row.get(name), file, number, name) for name in columns]
        documents.append("\n\n".join(part.strip() for part in parts if part and part.strip()))
    notes.append(f"read {file}: {len(documents):,} documents")
    return documents


def _split(documents: pl.DataFrame, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut the first `share` of each source's documents off for validation. A source of a single
    document, such as a book, gives the document's end."""
    documents = documents.with_row_index("row")
    rows = pl.len().over("source")
    place = pl.int_range(pl.len()).over("source")
    single = documents.filter(rows == 1)
    several = documents.filter(rows > 1).with_columns(
        held_out=place < (share * rows).round().clip(lower_bound=1)
    )
    cuts = [_word_border(text, round((1 - share) * len(text))) for text in single["text"]]
    parts = []
    for held_out in (False, True):
        texts = [
            text[cut:].strip() if held_out else text[:cut]
            for text, cut in zip(single["text"], cuts, strict=True)
        ]
        part = several.filter(held_out=held_out).drop("held_out")
        part = pl.concat([part, single.with_columns(text=pl.Series(texts, dtype=pl.String))])
        parts.append(part.sort("row").drop("row"))  # mixed as they were
    return parts[0], parts[1]


def _word_border(text: str, place: int) -> int:
    """The end of the last whole word of text[:place]; `place` itself if there is just one word.

    >>> _word_border("to be or not", 7), _word_border("tobeornot", 7)
    (5, 7)
    """
    words = text[:place].rsplit(None, 1)
    return len(words[0]) if len(words) > 1 else place


class TokenRows(Dataset):
    """Documents as one stream of tokens, cut into rows. Row i is (tokens (length,) int64, targets
    (length,) int64), and targets[t] is the token that follows tokens[t].

    The stream is <|endoftext|>, then each document and <|endoftext|>. Every token of it but the
    first is a target once. All rows have `max_length` tokens, but for the last one. A row may hold
    several documents, and attention sees across their borders, as in GPT-2's own training; the
    model learns from <|endoftext|> that what came before no longer counts.

    A document is encoded as plain text: "<|endoftext|>" inside it is thirteen characters.

    >>> from gpt2.tokenizer import get_encoding
    >>> rows = TokenRows(["A fine film", "Dull"], get_encoding("mini"), max_length=4)
    >>> [(tokens.tolist(), targets.tolist()) for tokens, targets in rows]
    [([8191, 32, 2147, 358], [32, 2147, 358, 8191]), ([8191, 35, 924], [35, 924, 8191])]
    """

    def __init__(
        self,
        documents: Sequence[str],
        encoding: tiktoken.Encoding,
        max_length: int,
        progress: str = "",
    ) -> None:
        end = np.array([encoding.eot_token], dtype=np.int32)
        pieces, counts = [end], []
        bar = tqdm(total=len(documents), desc=progress, unit="text", leave=False,
                   disable=None if progress else True)  # fmt: skip
        for start in range(0, len(documents), 1000):
            chunk = list(documents[start : start + 1000])
            for tokens in encode_texts(encoding, chunk):
                pieces += [np.array(tokens, dtype=np.int32), end]
                counts.append(len(tokens) + 1)
            bar.update(len(chunk))
        bar.close()
        self.stream = np.concatenate(pieces)
        self.max_length = max_length
        self.document_tokens = np.array(counts, dtype=np.int64)  # each with its <|endoftext|>
        self.targets = len(self.stream) - 1
        starts = np.arange(0, self.targets, max_length)
        self.lengths = np.minimum(max_length, self.targets - starts)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.max_length
        row = torch.from_numpy(self.stream[start : start + self.max_length + 1].astype(np.int64))
        return row[:-1], row[1:]
