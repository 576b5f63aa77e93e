"""Tables in: CSV, TSV, JSON, JSONL, Parquet and Arrow files, compressed too, and clean text.

read_columns   the columns of a file by name, with the values that the file gives them
read_table     the same as a polars DataFrame
read_rows      the same as dictionaries

What a reader leaves out or reads otherwise than its name says is told in `notes`, a list that the
caller prints. A bad file is answered by one `UserError` that names it and, where there is one, the
line.
"""

from __future__ import annotations

import bz2
import gzip
import html
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from html.entities import html5
from pathlib import Path
from typing import Any

import polars as pl

from gpt2.support.arrow_tables import DATASET_INFO, read_arrow_table
from gpt2.support.delimited import parse_delimited
from gpt2.support.errors import UserError
from gpt2.support.json_rows import parse_json_rows

TABLE_SUFFIXES = (
    ".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow",
)  # fmt: skip
_DELIMITED, _JSON = ("", ".csv", ".tsv", ".txt"), (".json", ".jsonl", ".ndjson")
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zip")
# The first bytes of what was compressed, whatever its name says.
_DECOMPRESS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress, b"\xfd7zXZ\0": lzma.decompress, b"BZh": bz2.decompress,
}  # fmt: skip
_ZIP = b"PK\x03\x04"
_ABOUT_TABLES = (DATASET_INFO, "dataset_infos.json", "dataset_dict.json", "state.json")

_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
# Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han and their signs: no spaces between words there.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def unescape_entities(text: str) -> str:
    """`&amp;` -> `&`, `&#345;` -> `ř`."""
    if "&" not in text:
        return text
    return _ENTITY.sub(_character, text)


def _character(entity: re.Match) -> str:
    """The character of one entity. Only whole names with their semicolon count: html.unescape
    follows HTML's old rules, which find "&not" in "R&notes;"."""
    name = entity[0][1:]
    if name[0] != "#":
        return html5.get(name, entity[0])
    try:
        return html.unescape(entity[0])
    except ValueError:  # more digits than Python reads; as every number that is no character
        return "\ufffd"


def replace_br_tags(text: str) -> str:
    """`<br />`, with or without its slash, becomes a space."""
    return _LINE_BREAK.sub(" ", text) if "<" in text else text


def collapse_white_space(text: str) -> str:
    """Every run of white space becomes one space; none is left at the ends."""
    return " ".join(text.split())


def clean_text(text: str) -> str:
    """What training and prediction both do to a text before it is encoded.

    >>> clean_text("A&amp;B<br /><br />was  fine ")
    'A&B was fine'
    """
    return collapse_white_space(replace_br_tags(unescape_entities(text)))


def table_suffix(path: Path) -> str:
    """What says how a file is read: its suffix, or the one before `.gz`, `.xz`, `.bz2` or `.zip`.

    >>> table_suffix(Path("train.CSV.gz")), table_suffix(Path("train.jsonl"))
    ('.csv', '.jsonl')
    """
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return name.suffix.lower()


def is_table(path: Path) -> bool:
    """Whether a file found in a folder is a table, by its name."""
    return is_table_name(path) and path.is_file()


def is_table_name(path: Path) -> bool:
    """Whether a file of this name is a table, wherever it lies."""
    return (
        table_suffix(path) in TABLE_SUFFIXES
        and path.name not in _ABOUT_TABLES
        and not path.name.startswith(".")
    )


def read_columns(
    path: Path, columns: Sequence[str] | None = None, notes: list[str] | None = None
) -> dict[str, Sequence[Any]]:
    """The columns of one file, by name. Values of JSON and Parquet keep their type; those of CSV
    and TSV are all strings, so that a label `01` stays `01`. A field that a JSON row lacks is None.

    `columns` names the columns of a CSV or TSV file that has no header line. A `.txt` file, or one
    without a suffix, is read as TSV if its first line has a tab, else as CSV.

    Raises UserError if the file is missing, empty, not UTF-8 or cannot be parsed.
    """
    notes = [] if notes is None else notes
    suffix, content = uncompressed(path)
    if columns and suffix not in _DELIMITED:
        raise UserError(f"{path}: --columns is for CSV and TSV files without a header line")
    if suffix in (".parquet", ".arrow"):
        table = read_arrow_table(path, content, suffix, notes)
        found = {column.name: column for column in table.iter_columns()}
    else:
        text = _decode(path, content)
        if suffix in _DELIMITED:
            names, rows = parse_delimited(path, text, suffix, columns, notes)
            table = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
            found = {column.name: column for column in table.iter_columns()}
        else:
            rows = parse_json_rows(path, text, suffix, notes)
            names = list(dict.fromkeys(name for row in rows for name in row))
            found = {name: [row.get(name) for row in rows] for name in names}
    if not any(len(column) for column in found.values()):
        raise UserError(f"{path}: the file has no rows")
    return found


def read_table(
    path: Path, columns: Sequence[str] | None = None, notes: list[str] | None = None
) -> pl.DataFrame:
    """The rows of one file, read as `read_columns` does. Values of JSON that are no strings become
    their JSON text, so that a column has one type: 1 -> "1", true -> "true"."""
    found = read_columns(path, columns, notes)
    return pl.DataFrame(
        {
            name: column
            if isinstance(column, pl.Series)
            else pl.Series([_json_text(value) for value in column], dtype=pl.String)
            for name, column in found.items()
        }
    )


def read_rows(path: Path, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one file as dictionaries, read as `read_columns` does; a JSON row has the fields
    that it has in the file."""
    suffix, content = uncompressed(path)
    if suffix not in _JSON:
        return read_table(path, notes=notes).to_dicts()
    rows = parse_json_rows(path, _decode(path, content), suffix, [] if notes is None else notes)
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    return rows


def read_text(path: Path) -> str:
    """The whole of a text file, compressed or not. Raises UserError as `read_columns` does."""
    _, content = uncompressed(path)
    return _decode(path, content)


def _decode(path: Path, content: bytes | None) -> str:
    return decode_utf8(path, path.read_bytes() if content is None else content)


def uncompressed(path: Path) -> tuple[str, bytes | None]:
    """The suffix of a table and, if it was compressed, its content. Raises UserError if there is no
    file, if it is empty or if no reader knows it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    with path.open("rb") as file:
        start = file.read(len(b"version https://git-lfs"))
    if start == b"version https://git-lfs":
        raise UserError(
            f"{path}: is not the file but Git LFS's pointer to it; git lfs pull gets it"
        )
    suffix, content = table_suffix(path), None
    try:
        if start.startswith(_ZIP) and suffix in ("", *TABLE_SUFFIXES):
            suffix, content = _the_file_inside(path)
        for first_bytes, decompress in _DECOMPRESS.items():
            by_name = first_bytes != b"BZh" or path.suffix.lower() == ".bz2"  # these are letters
            if start.startswith(first_bytes) and by_name:
                content = decompress(path.read_bytes())
    except (
        OSError,
        EOFError,
        RuntimeError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] or type(error).__name__
        raise UserError(f"{path}: cannot be uncompressed ({reason})") from None
    if suffix not in ("", *TABLE_SUFFIXES):
        raise UserError(
            f"{path}: cannot read '{suffix}' files; use {', '.join(TABLE_SUFFIXES)}, or one of "
            f"these as {', '.join(COMPRESSIONS)}"
        )
    if content == b"":
        raise UserError(f"{path}: the file is empty")
    return suffix, content


def _the_file_inside(path: Path) -> tuple[str, bytes]:
    """Suffix and content of the one file in a zip."""
    with zipfile.ZipFile(path) as archive:
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not name.startswith("__MACOSX/")
        ]
        if len(names) != 1:
            raise UserError(
                f"{path}: holds {len(names)} files ({', '.join(names[:5])}), not one table; unzip "
                "it, and name the file or the folder"
            )
        return Path(names[0]).suffix.lower(), archive.read(names[0])


def read_utf8(path: Path) -> str:
    """The whole file as text, without a byte-order mark. Raises UserError, naming the line, if it
    is not UTF-8."""
    return decode_utf8(path, path.read_bytes())


def decode_utf8(name: Path | str, content: bytes) -> str:
    """`content` as text, without a byte-order mark. Raises UserError, with the line and the `name`
    of where it comes from, if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(
                f"{name}: is UTF-16, not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8"
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise UserError(
            f"{name}: line {line} is not UTF-8 (byte 0x{byte:02x}); "
            f"convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _json_text(value: object) -> str | None:
    """Strings and nulls stay; any other value becomes its JSON text."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def write_json(file: Path, content: Any) -> None:
    """Write `content` as JSON that a person can read too. (Half surrogates, as in a path that is
    not UTF-8, become escapes.)"""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
