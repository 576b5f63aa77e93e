"""Encodings in the Hugging Face layout: vocab.json and merges.txt, or both inside tokenizer.json.

There a byte-level token is written in printable characters (`Ġthe` for ` the`), and a list of
merges says which two tokens make a new one, in order of priority. tiktoken keeps the bytes and one
rank a token, which is its id and its priority in one; the merges follow from the ranks.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiktoken
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from gpt2.support.errors import UserError
from gpt2.support.files import read_utf8


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where that is printable, else a character
    from 256 on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def find_merges(ranks: dict[bytes, int]) -> dict[bytes, tuple[bytes, bytes]]:
    """The two tokens that each token of more than one byte is made of, in order of rank.

    They are what byte-pair encoding comes to on the token's own bytes, when it may use nothing but
    what ranks before. Raises ValueError if that is not two tokens.
    """
    merges = {}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            first = min(range(len(joined)), key=joined.__getitem__)
            if joined[first] >= rank:
                raise ValueError(f"no two tokens make {token!r}")
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if not all(ranks.get(part, rank) < rank for part in parts):
            raise ValueError(f"no two earlier tokens make {token!r}")
        merges[token] = (parts[0], parts[1])
    return merges


def write_tokenizer_files(
    encoding: tiktoken.Encoding, folder: Path, normalizer: dict[str, Any] | None = None
) -> None:
    """Write `encoding` as vocab.json, merges.txt and tokenizer.json. `normalizer` goes into
    tokenizer.json, and says what is done to a text before it is cut into tokens."""
    characters = byte_characters()

    def shown(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    ranks = encoding._mergeable_ranks
    merges = [[shown(a), shown(b)] for a, b in find_merges(ranks).values()]
    vocabulary = {shown(token): rank for token, rank in ranks.items()} | encoding._special_tokens
    vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": name, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for name, number in encoding._special_tokens.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocabulary,
            # As one string each: every version of the tokenizers library reads that.
            "merges": [" ".join(merge) for merge in merges],
        },
    }  # fmt: skip
    for name, content in (("vocab.json", vocabulary), ("tokenizer.json", tokenizer)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_bytes(("\n".join(lines) + "\n").encode())  # on Windows too


def read_tokenizer_files(folder: Path, vocab_size: int, end_token: int | None) -> tiktoken.Encoding:
    """The encoding of a folder in the Hugging Face layout, from vocab.json and merges.txt or from
    tokenizer.json.

    `end_token` is config.json's `eos_token_id`: whatever its name there, it is <|endoftext|> here.
    Ids below `vocab_size` that are no token (a vocabulary padded to a round number) get names.
    Raises UserError for a file that is missing, damaged or not a byte-level BPE as GPT-2's.
    """
    try:
        # Saved again by transformers, a folder may have tokenizer.json alone.
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            source = folder / "merges.txt"
            vocabulary = json.loads(read_utf8(folder / "vocab.json"))
            text = read_utf8(source).replace("\r\n", "\n")
            lines = [line for line in text.split("\n") if line.strip()]
            merges = [line.split(" ") for line in lines if not line.startswith("#version")]
            special = _added_tokens(folder)
            if _settings(folder).get("add_prefix_space"):
                raise UserError(f"{folder}: its tokenizer_config.json has add_prefix_space, which "
                                "GPT-2 does not know")  # fmt: skip
        else:
            source = folder / "tokenizer.json"
            description = json.loads(read_utf8(source))
            _check_byte_level(source, description)
            vocabulary, merges = description["model"]["vocab"], description["model"]["merges"]
            merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
            special = {token["content"]: token["id"] for token in description["added_tokens"]}
        return _make_encoding(source, vocabulary, merges, special, vocab_size, end_token)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be read ({error!r})") from None


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return json.loads(read_utf8(file)) if file.is_file() else {}


def _added_tokens(folder: Path) -> dict[str, int]:
    """Tokens outside of vocab.json."""
    if (folder / "added_tokens.json").is_file():
        return json.loads(read_utf8(folder / "added_tokens.json"))
    if (folder / "tokenizer.json").is_file():
        added = json.loads(read_utf8(folder / "tokenizer.json"))["added_tokens"]
        return {token["content"]: token["id"] for token in added}
    return {}


def _check_byte_level(source: Path, description: dict[str, Any]) -> None:
    """Refuse what GPT-2's tokenizers do not do, because it would change the tokens unseen. What is
    done to the text before (a normalizer) is not the encoding's: see the exported model's card."""
    model, splitter = description["model"], description["pre_tokenizer"] or {}
    found = {
        f"a {model.get('type', 'BPE')} model": model.get("type", "BPE") == "BPE",
        f"pre_tokenizer {splitter.get('type')}": splitter.get("type") == "ByteLevel",
        "add_prefix_space": not splitter.get("add_prefix_space"),
        "no split into words": splitter.get("use_regex", True),
        "a word suffix": not model.get("end_of_word_suffix"),
        "a subword prefix": not model.get("continuing_subword_prefix"),
    }
    for name, fine in found.items():
        if not fine:
            raise UserError(f"{source}: has {name}, which is not a byte-level BPE as GPT-2's")


def _make_encoding(
    source: Path,
    vocabulary: dict[str, int],
    merges: list[list[str]],
    special: dict[str, int],
    vocab_size: int,
    end_token: int | None,
) -> tiktoken.Encoding:
    byte_of = {character: byte for byte, character in byte_characters().items()}
    made = {left + right for left, right in merges}
    # What is neither a byte nor made by a merge is never cut from a text: a special token.
    special = special | {
        token: number
        for token, number in vocabulary.items()
        if token not in made and token not in byte_of
    }
    ranks = {
        bytes(byte_of[character] for character in token): number
        for token, number in vocabulary.items()
        if token not in special
    }
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise UserError(f"{source}: has no token for some bytes; is it a byte-level BPE?")
    given = [tuple(bytes(byte_of[c] for c in part) for part in pair) for pair in merges]
    try:
        same = list(find_merges(ranks).values()) == given
    except ValueError:
        same = False
    if not same:
        raise UserError(f"{source}: the ids of its tokens do not follow the order of its merges")

    names = {number: name for name, number in special.items()}
    if len(names) < len(special) or names.keys() & set(ranks.values()):
        raise UserError(f"{source}: two tokens have the same id")
    if max([*ranks.values(), *names]) >= vocab_size:
        raise UserError(
            f"{source}: has token {max([*ranks.values(), *names])}, but the model's vocabulary has "
            f"{vocab_size:,} (vocab_size of config.json)"
        )
    if ENDOFTEXT not in special:
        if end_token not in names:
            raise UserError(f"{source}: has no {ENDOFTEXT}, and config.json no eos_token_id for it")
        names[end_token] = ENDOFTEXT
    taken = set(ranks.values())
    for number in range(vocab_size):
        if number not in taken:
            names.setdefault(number, f"<|unused {number}|>")
    return tiktoken.Encoding(
        name=source.parent.resolve().name,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={name: number for number, name in sorted(names.items())},
        explicit_n_vocab=vocab_size,
    )
