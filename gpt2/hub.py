"""Downloads from the Hugging Face hub: into its cache once, from there ever after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import logging

from gpt2.command_line import UserError


def download_dataset(repository: str, files: Sequence[str], revision: str) -> list[Path]:
    """The local paths of `files` in the dataset `repository`, at the pinned commit `revision`. What
    is in the cache is not asked for again. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as
    everywhere.

    Raises UserError if a file is neither in the cache nor can be downloaded.
    """
    logging.set_verbosity_error()  # retries would print ten lines before our one
    try:
        return [
            Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
            for file in files
        ]
    except Exception as error:  # OSErrors, the hub's own, and its HTTP library's plain ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the dataset {repository} is not in the cache and cannot be downloaded ({reason}); "
            "if you have its files, name their folder: --data PATH"
        ) from None
