"""Downloads from the Hugging Face hub: into its cache once, from there ever after.

HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere. Every file that is handed out has the
checksum under which the hub knows it: a damaged one is deleted and said so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging

from gpt2.support.durable import write_file
from gpt2.support.errors import UserError

T = TypeVar("T")

_WAITS = (1, 2, 4)  # seconds between attempts, when the hub has an error of its own
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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
    except GatedRepoError:
        where = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
        raise UserError(
            f"the {kind} {repository} is gated: accept its conditions at {where}, then {_LOG_IN}"
        ) from None
    except Exception as error:  # OSErrors, the hub's own, and its HTTP library's plain ones
        raise UserError(
            f"the {kind} {repository} is not in the cache and {file} cannot be downloaded "
            f"({_reason(error)}); {way_out}"
        ) from None
    _check(path, f"{repository}/{file}")
    return path


def list_files(
    kind: str, repository: str, revision: str, way_out: str = ""
) -> tuple[str, dict[str, int]]:
    """The commit of `revision` (a commit, branch or tag) of `repository`, a "dataset" or "model",
    and the files it has: path inside the repository -> bytes. `way_out` ends the error: what the
    user can do without a network.

    The answer is kept in the cache, beside the files: a commit is not asked for again, and a branch
    is what it was when the hub could last be reached, which is printed. Raises UserError.
    """
    logging.set_verbosity_error()
    what = "data set" if kind == "dataset" else kind
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}/listings"
    kept = folder / f"{revision.replace('/', '--')}.json"
    if re.fullmatch("[0-9a-f]{40}", revision) and kept.is_file():
        return revision, json.loads(kept.read_text(encoding="utf-8"))["files"]
    try:
        info = _patiently(
            lambda: HfApi().repo_info(
                repository, revision=revision, repo_type=kind, files_metadata=True
            )
        )
    except RevisionNotFoundError:
        raise UserError(
            f"the {what} {repository} of the hub has no revision '{revision}'"
        ) from None
    except RepositoryNotFoundError:  # the hub says the same of private ones
        raise UserError(
            f"the hub has no {what} {repository} for you; is the name right? If it is private or "
            f"gated, {_LOG_IN}"
        ) from None
    except Exception as error:
        if not kept.is_file() and (found := _in_cache(kind, repository, revision)):
            return found
        if not kept.is_file():
            end = f"; {way_out}" if way_out else ""
            raise UserError(
                f"the {what} {repository} is not in the cache and the hub cannot be asked for it "
                f"({_reason(error)}){end}"
            ) from None
        listing = json.loads(kept.read_text(encoding="utf-8"))
        print(f"{repository}: the hub cannot be asked; its commit in the cache is used")
        return listing["commit"], listing["files"]
    listing = {
        "commit": info.sha,
        "files": {file.rfilename: file.size or 0 for file in info.siblings or []},
    }
    with contextlib.suppress(OSError):  # a cache that cannot be written: the download will say so
        folder.mkdir(parents=True, exist_ok=True)
        for file in (kept, folder / f"{info.sha}.json"):
            write_file(file, json.dumps(listing, indent=2).encode())
    return info.sha, listing["files"]


def _in_cache(kind: str, repository: str, revision: str) -> tuple[str, dict[str, int]] | None:
    """The same as `list_files`, of a model that another program has downloaded."""
    config = try_to_load_from_cache(repository, "config.json", revision=revision, repo_type=kind)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent  # its name is the commit
    files = {
        file.relative_to(snapshot).as_posix(): file.stat().st_size
        for file in snapshot.rglob("*")
        if file.is_file()
    }
    return snapshot.name, files


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _from_cache_or_hub(repository: str, file: str, revision: str, kind: str) -> Path:
    cached = try_to_load_from_cache(repository, file, revision=revision, repo_type=kind)
    if isinstance(cached, str):
        return Path(cached)

    def ask_and_download() -> Path:
        # Ask once without the hub's own retries: without a network it is long before they give up.
        get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind, revision=revision))
        return Path(hf_hub_download(repository, file, repo_type=kind, revision=revision))

    return _patiently(ask_and_download)


def _patiently(work: Callable[[], T]) -> T:
    """What `work` returns; while the hub has an error of its own, it is tried again."""
    for wait in (*_WAITS, None):
        try:
            return work()
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
