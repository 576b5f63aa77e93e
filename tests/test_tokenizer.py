"""Encodings: exact round trips, plain text stays plain, a missing download is named."""

import os

import pytest
from conftest import SHARED

from classification.sources import SAMPLE
from gpt2.support.errors import UserError
from gpt2.support.files import read_table
from gpt2.tokenizer import get_encoding, load_encoding, save_encoding
from pretraining.train_tokenizer import train_bpe

TEXTS = [
    "a fine film",
    "<|endoftext|> is plain text here",
    "naïve café, 映画, 🎬!",
    "  two  spaces\nand a line",
]


@pytest.mark.parametrize("text", TEXTS)
def test_mini_round_trip_and_special_token_as_text(text):
    encoding = get_encoding("mini")
    tokens = encoding.encode_ordinary(text)
    assert encoding.decode(tokens) == text
    assert encoding.eot_token not in tokens


def test_mini_has_8192_tokens_and_every_byte():
    encoding = get_encoding("mini")
    assert encoding.n_vocab == 8192
    assert encoding.eot_token == 8191
    assert encoding.decode([8191]) == "<|endoftext|>"
    for byte in range(256):
        assert encoding.encode_single_token(bytes([byte])) < 8191


def test_mini_is_trained_on_film_reviews():
    """It must cut reviews into about as few tokens as GPT-2's six times larger vocabulary."""
    texts = read_table(SAMPLE)["text"].to_list()
    tokens = sum(map(len, get_encoding("mini").encode_ordinary_batch(texts)))
    assert sum(map(len, texts)) / tokens > 3.8


def test_saved_and_loaded_encodings_are_equal(tmp_path):
    encoding = get_encoding("mini")
    save_encoding(encoding, tmp_path)
    loaded = load_encoding(tmp_path)
    assert loaded.n_vocab == encoding.n_vocab and loaded.name == "mini"
    for text in TEXTS:
        assert loaded.encode_ordinary(text) == encoding.encode_ordinary(text)


def test_a_damaged_encoding_is_named(tmp_path):
    save_encoding(get_encoding("mini"), tmp_path)
    (tmp_path / "vocabulary.tiktoken").write_text("not base64 at all")
    with pytest.raises(UserError, match="not a readable encoding"):
        load_encoding(tmp_path)


def test_training_is_reproducible(tmp_path):
    texts = read_table(SAMPLE)["text"].to_list()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_encoding(train_bpe(texts, vocab_size=600), tmp_path / name)
    first, second = ((tmp_path / n / "vocabulary.tiktoken").read_bytes() for n in ("one", "two"))
    assert first == second
    encoding = load_encoding(tmp_path / "one")
    assert encoding.n_vocab == 600
    assert encoding.decode(encoding.encode_ordinary(TEXTS[2])) == TEXTS[2]
    assert len(encoding.encode_ordinary(" the")) == 1


def test_without_network_gpt2_is_refused_with_the_way_out(run_script):
    done = run_script("classification/train_gpt.py", "--model", "gpt2")
    assert done.returncode == 2 and "TIKTOKEN_CACHE_DIR" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not (SHARED / "tiktoken").is_dir(), reason="tiktoken's gpt2 files are not here")
def test_gpt2_is_the_released_encoding(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    encoding = get_encoding("gpt2")
    assert encoding.encode_ordinary("Hello world") == [15496, 995]
    assert encoding.eot_token == 50256
    save_encoding(encoding, tmp_path)
    assert load_encoding(tmp_path).encode_ordinary(TEXTS[2]) == encoding.encode_ordinary(TEXTS[2])
