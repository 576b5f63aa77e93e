"""What the adapters of a run stand on, recognised by its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from gpt2.lora import LoRA
from gpt2.support.errors import UserError


def sha256_of(files: Iterable[Path]) -> str:
    """SHA-256 of the content of `files`, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_there(lora: LoRA) -> None:
    """Raises UserError if the folder that the adapters stand on is gone."""
    if not Path(lora.base).is_dir():
        raise UserError(
            f"{lora.base}: is gone, and a run of --train lora stands on the weights in it (SHA-256 "
            f"{lora.base_sha256[:12]}...); put it back, or a link to where it is now: ln -s NEW "
            f"{lora.base}"
        )


def check_unchanged(lora: LoRA, found: str) -> None:
    """Raises UserError if `found`, the SHA-256 of what lies there now, is that of others."""
    if found != lora.base_sha256:
        raise UserError(
            f"{lora.base}: holds other weights now (SHA-256 {found[:12]}...) than those that a run "
            f"of --train lora stands on ({lora.base_sha256[:12]}...); put those back"
        )
