"""Files that survive a kill, a full disk and a flipped bit.

A folder is written under another name, flushed to disk and renamed, so that under its own name it
is always whole. It carries SHA256SUMS, which `sha256sum --check SHA256SUMS` reads as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gpt2.support.errors import UserError

MANIFEST = "SHA256SUMS"


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder to write into; when the block ends it takes the place of `folder`.

    Whatever happens in between, a whole folder is left: the new one or the one before, which goes
    only when the new one is on disk. Raises UserError if the new one cannot be written.
    """
    new, old = _sibling(folder, ".new"), _sibling(folder, ".old")
    try:
        if not folder.exists() and old.exists():
            old.rename(folder)  # a kill came between the two renames below
        for left_over in (new, old):
            if left_over.exists():
                shutil.rmtree(left_over)
        new.mkdir()
        yield new
        sums = [f"{_sha256(file)}  {file.name}\n" for file in sorted(new.iterdir())]
        (new / MANIFEST).write_bytes("".join(sums).encode())  # "\n" on Windows too
        for file in new.iterdir():
            shutil.copymode(new / MANIFEST, file)  # safetensors makes files only their owner reads
            _flush(file)
        _flush(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        kept = "; what was saved before is intact" if whole_folder(folder).exists() else ""
        raise UserError(f"{folder}: cannot be written ({reason}){kept}") from None
    shutil.rmtree(old, ignore_errors=True)


def whole_folder(folder: Path) -> Path:
    """Where the last whole version of `folder` lies: under its own name, or beside it if a kill
    came while a newer one was taking its place."""
    old = _sibling(folder, ".old")
    return old if old.is_dir() and not folder.exists() else folder


def check_folder(folder: Path) -> None:
    """Raises UserError unless `folder` holds the files of its manifest, byte for byte, and no
    other (but for hidden ones, which file managers make)."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"{folder}: has no {MANIFEST}, so it is not a whole checkpoint")
    expected = {}
    for line in manifest.read_bytes().decode(errors="replace").split("\n")[:-1]:
        checksum, _, name = line.partition("  ")
        expected[name] = checksum
    present = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    for name in sorted(expected.keys() - present):
        raise UserError(
            f"{folder / name}: is missing, with SHA-256 {expected[name]} expected by {MANIFEST}"
        )
    for name in sorted(present - expected.keys() - {MANIFEST}):
        raise UserError(f"{folder / name}: does not belong to this checkpoint; it was not opened")
    for name, checksum in expected.items():
        found = _sha256(folder / name)
        if found != checksum:
            raise UserError(
                f"{folder / name}: is damaged or another checkpoint's: SHA-256 is {found}, "
                f"expected {checksum}"
            )


def write_file(file: Path, content: bytes) -> None:
    """Write `file` so that it has its old content or the new one, never a part."""
    new = _sibling(file, ".new")
    try:
        new.write_bytes(content)
        _flush(new)
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)  # a part of it would take what is left of a full disk
        raise


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk itself."""
    if path.is_dir() and os.name != "posix":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
