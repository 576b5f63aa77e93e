"""Chapter 3, text to token ids and back, served by tiktoken.

Two encodings: "gpt2", the released one with 50,257 tokens, which tiktoken downloads once; and
"mini", 8,192 tokens trained on film reviews and instructions, which lies in `gpt2/mini/`.

Data is always encoded as plain text: a text that contains "<|endoftext|>" has thirteen characters
there. The special token itself is added by its id, `encoding.eot_token`.

An encoder (gpt2/encoder.py) brings tokens of its own, an `EncoderTokenizer`.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tiktoken

from gpt2.support.errors import UserError
from gpt2.support.files import write_json

if TYPE_CHECKING:
    import tokenizers  # comes with transformers

MINI_FOLDER = Path(__file__).parent / "mini"
_LONGEST_SPACE = 100_000  # characters


class EncoderTokenizer:
    """The tokens of an encoder, behind the one method of tiktoken's that a classifier calls.

    before, after   ids of the special tokens around every text: [CLS] and [SEP] of BERT
    special         what its special tokens are called: {"pad_token": "[PAD]", ...}
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: dict[str, str]) -> None:
        self.tokenizer, self.special = tokenizer, special
        tokenizer.no_truncation()  # some files bring both, and rows are cut and padded elsewhere
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "[SEP]" inside a text is five characters
        plain, around = self.encode_ordinary("a"), tokenizer.encode("a").ids
        starts = range(len(around) - len(plain) + 1)
        start = next(i for i in starts if around[i : i + len(plain)] == plain)
        self.before, self.after = around[:start], around[start + len(plain) :]

    def encode_ordinary(self, text: str) -> list[int]:
        """The token ids of `text`, without those around it."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, and tokenizer_config.json, by which transformers reads it too."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        write_json(folder / "tokenizer_config.json", config)

    @staticmethod
    def load(folder: Path) -> EncoderTokenizer:
        """What `save` wrote. Raises UserError if it is damaged."""
        import tokenizers

        try:
            special = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            del special["tokenizer_class"]
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            return EncoderTokenizer(tokenizer, special)
        except Exception as error:  # the library raises nothing more particular
            raise UserError(f"{folder}: not a readable tokenizer ({error!r})") from None


Encoding = tiktoken.Encoding | EncoderTokenizer


def tokens_around(encoding: Encoding) -> tuple[list[int], list[int]]:
    """The special tokens before and after every text: none of GPT-2."""
    return getattr(encoding, "before", []), getattr(encoding, "after", [])


def get_encoding(name: str) -> tiktoken.Encoding:
    """The encoding called `name`, "gpt2" or "mini".

    Raises UserError if "gpt2" is neither in tiktoken's cache nor can be downloaded.

    >>> get_encoding("mini").decode(get_encoding("mini").encode_ordinary("a fine film"))
    'a fine film'
    """
    if name == "mini":
        return load_encoding(MINI_FOLDER)
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a bad hash a ValueError
        raise UserError(
            f"the '{name}' encoding cannot be downloaded ({type(error).__name__}); on a machine "
            "without a network set TIKTOKEN_CACHE_DIR to a folder that holds tiktoken's two cached "
            "gpt2 files, or use --model mini"
        ) from None


def encode_text(encoding: Encoding, text: str) -> list[int]:
    """The token ids of `text`, taken as plain text.

    tiktoken panics at half a million white-space characters in a row; such a run is encoded in
    pieces.
    """
    if len(text) <= _LONGEST_SPACE:
        return encoding.encode_ordinary(text)
    tokens, start = [], 0
    for space in re.finditer(r"\s+", text):
        for cut in range(space.start() + _LONGEST_SPACE, space.end(), _LONGEST_SPACE):
            tokens += encoding.encode_ordinary(text[start:cut])
            start = cut
    return tokens + encoding.encode_ordinary(text[start:])


def encode_texts(encoding: Encoding, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each of `texts`, by several threads. Raises TypeError for one string, whose
    items are letters."""
    if isinstance(texts, str):
        raise TypeError(f"a list of texts is needed, not the one text {texts[:40]!r}")
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(partial(encode_text, encoding), texts))


def save_encoding(encoding: Encoding, folder: Path) -> None:
    """Write `encoding` into `folder` as two files that `load_encoding` reads: a vocabulary in
    tiktoken's own format (one base64 token and its rank a line) and what else defines it; an
    encoder's in its own."""
    if isinstance(encoding, EncoderTokenizer):
        encoding.save(folder)
        return
    (folder / "vocabulary.tiktoken").write_text(_vocabulary(encoding))
    description = {
        "name": encoding.name,
        "pattern": encoding._pat_str,
        "special_tokens": encoding._special_tokens,
    }
    (folder / "encoding.json").write_text(
        json.dumps(description, indent=2) + "\n", encoding="utf-8"
    )


@functools.lru_cache(maxsize=1)  # a run saves the same one with each checkpoint
def _vocabulary(encoding: tiktoken.Encoding) -> str:
    ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks)


def load_encoding(folder: Path) -> Encoding:
    """The encoding that `save_encoding` wrote into `folder`. Raises UserError if it is not there or
    is damaged."""
    if not (folder / "encoding.json").exists() and (folder / "tokenizer.json").exists():
        return EncoderTokenizer.load(folder)
    try:
        description = json.loads((folder / "encoding.json").read_text(encoding="utf-8"))
        lines = (folder / "vocabulary.tiktoken").read_text().splitlines()
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
        return tiktoken.Encoding(
            name=description["name"],
            pat_str=description["pattern"],
            mergeable_ranks=ranks,
            special_tokens=description["special_tokens"],
            explicit_n_vocab=len(ranks) + len(description["special_tokens"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{folder}: not a readable encoding ({error!r})") from None
