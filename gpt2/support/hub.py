"""Downloads from the Hugging Face hub: into its cache once, from there ever after.

HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere. Every file that is handed out has the
checksum under which the hub knows it: a damaged one is deleted and said so.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.utils import HfHubHTTPError, logging

from gpt2.support.errors import UserError

_WAITS = (1, 2, 4)  # seconds between attempts, when the hub has an error of its own


def download_dataset(repository: str, files: Sequence[str], revision: str) -> list[Path]:
    """The local paths of `files` in the dataset `repository`, at the pinned commit `revision`. What
    is in the cache is not asked for again.

    Raises UserError if a file is neither in the cache nor can be downloaded, or comes damaged.
    """
    way_out = "if you have its files, name their folder: --data PATH"
    return [download(repository, file, revision, "dataset", way_out) for file in files]


def download(repository: str, file: str, revision: str, kind: str, way_out: str) -> Path:
    """The local path of one `file`; `kind` is "dataset" or "model". `way_out` ends the error: what
    the user can do without a network. Raises UserError."""
    logging.set_verbosity_error()  # retries would print ten lines before our one
    try:
        path = _from_cache_or_hub(repository, file, revision, kind)
    except Exception as error:  # OSErrors, the hub's own, and its HTTP library's plain ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the {kind} {repository} is not in the cache and {file} cannot be downloaded "
            f"({reason}); {way_out}"
        ) from None
    _check(path, f"{repository}/{file}")
    return path


def _from_cache_or_hub(repository: str, file: str, revision: str, kind: str) -> Path:
    cached = try_to_load_from_cache(repository, file, revision=revision, repo_type=kind)
    if isinstance(cached, str):
        return Path(cached)
    for wait in (*_WAITS, None):
        try:
            # Ask once without the hub's own retries: without a network it is long before they give
            # up.
            get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind, revision=revision))
            return Path(hf_hub_download(repository, file, repo_type=kind, revision=revision))
        except HfHubHTTPError as error:
            if wait is None or error.response is None or error.response.status_code < 500:
                raise
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _check(path: Path, name: str) -> None:
    """Compare a file of the cache with the checksum that it is filed under; delete it if they
    differ. It is done each time, because a kill may come between a download and its check."""
    blob = path.resolve()
    digest = {64: hashlib.sha256(), 40: hashlib.sha1()}.get(len(blob.name))  # LFS file, git file
    if digest is None or not re.fullmatch("[0-9a-f]+", blob.name):
        return  # a cache without links, as on Windows, does not keep checksums
    if len(blob.name) == 40:
        digest.update(b"blob %d\0" % blob.stat().st_size)
    with open(blob, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{name} is damaged: its checksum is {digest.hexdigest()[:12]}..., the hub's "
            f"{blob.name[:12]}...; it was deleted from the cache, so run again to download it anew"
        )
