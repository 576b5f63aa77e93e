"""Downloads from the Hugging Face hub: into its cache once, from there ever after."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from gpt2.command_line import UserError


def download_dataset(repository: str, patterns: list[str], revision: str) -> Path:
    """A local folder with the files of the dataset `repository` that match `patterns`, at the
    pinned commit `revision`. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere.

    Raises UserError if they are neither in the cache nor can be downloaded.
    """
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=patterns
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the dataset {repository} is not in the cache and cannot be downloaded ({reason}); "
            "if you have its files, name their folder: --data PATH"
        ) from None
    return Path(folder)
