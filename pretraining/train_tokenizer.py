"""Train the `mini` encoding: an 8,192-token byte-level BPE.

How `gpt2/mini/vocabulary.tiktoken` was made (needs `pip install tokenizers`, takes about a minute):

    python pretraining/train_tokenizer.py IMDB/plain_text/unsupervised-00000-of-00001.parquet \\
        ALPACA/alpaca_data_cleaned.json --out gpt2/mini

The same files give the same bytes. Sennrich et al. 2016, "Neural Machine Translation of Rare Words
with Subword Units"; the byte level and the split into words are GPT-2's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl
import tiktoken
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from gpt2.support.errors import UserError
from gpt2.support.files import clean_text, read_table
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.tokenizer import save_encoding
from gpt2.weights.tokenizer_files import byte_characters


@dataclass
class TokenizerSettings:
    """Tokenizer"""

    out: str = flag("", "folder that gets encoding.json and vocabulary.tiktoken")
    vocab_size: int = flag(8192, "tokens, the 256 bytes and <|endoftext|> included", at_least=257)


def train_bpe(texts: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """A byte-level BPE with `vocab_size` tokens, `<|endoftext|>` the last of them."""
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError:
        raise UserError("training a tokenizer needs one more package: pip install tokenizers")
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts, vocab_size=vocab_size - 1, show_progress=False)
    byte_of = {character: byte for byte, character in byte_characters().items()}
    ranks = {
        bytes(byte_of[character] for character in token): rank
        for token, rank in trainer.get_vocab().items()
    }
    return tiktoken.Encoding(
        name="mini",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )


def main() -> None:
    def add_files(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="+", type=Path, help="tables; all text columns are read")

    settings, arguments = parse_flags(
        [TokenizerSettings], __doc__.splitlines()[0], add_arguments=add_files
    )
    if not settings.out:
        raise UserError("--out is missing: name the folder that gets the encoding")
    notes: list[str] = []
    texts = [
        clean_text(text)
        for file in arguments.files
        for column in read_table(file, notes=notes).select(pl.col(pl.String)).iter_columns()
        for text in column.drop_nulls()
    ]
    for note in [*(f"read {file}" for file in arguments.files), *notes]:
        print(note)
    encoding = train_bpe(texts, settings.vocab_size)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    save_encoding(encoding, out)
    characters = sum(map(len, texts))
    tokens = sum(map(len, encoding.encode_ordinary_batch(texts)))
    print(f"{len(texts):,} texts, {characters:,} characters, {tokens:,} tokens of {out}")


if __name__ == "__main__":
    run_script(main)
