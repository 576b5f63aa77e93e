"""What stands in an exported folder beside the weights: tokenizers and the card."""

import json

import pytest
from conftest import SHARED
from test_export import LONGEST, TEXTS
from test_pretrained import LABELS, SMALL, save_ours

from gpt2.heads import ClassificationHead
from gpt2.tokenizer import get_encoding
from gpt2.weights.export import export
from gpt2.weights.tokenizer_files import find_merges, write_tokenizer_files


def gpt2_encoding(monkeypatch):
    if not (SHARED / "tiktoken").is_dir():
        pytest.skip("tiktoken's gpt2 files are not here")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    return get_encoding("gpt2")


@pytest.mark.parametrize("name", ["mini", "gpt2"])
def test_exported_tokenizers_cut_as_tiktoken_does(name, tmp_path, monkeypatch):
    from transformers import GPT2Tokenizer
    from transformers import PreTrainedTokenizerFast as Fast

    encoding = gpt2_encoding(monkeypatch) if name == "gpt2" else get_encoding(name)
    write_tokenizer_files(encoding, tmp_path)
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    assert len(merges) - 1 == encoding.n_vocab - 257
    if name == "gpt2":  # the released file begins and ends so
        assert merges[1:4] == ["Ġ t", "Ġ a", "h e"] and merges[-1] == "Ġg azed"
    by_json = Fast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    by_lists = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in [*TEXTS, "", " ", "\n\n"]:
        expected = encoding.encode_ordinary(text)
        assert by_json(text, split_special_tokens=True)["input_ids"] == expected
        assert by_lists(text, split_special_tokens=True)["input_ids"] == expected
        assert by_json.decode(expected, clean_up_tokenization_spaces=False) == text


def test_merges_that_no_two_tokens_make_are_refused():
    ranks = {bytes([byte]): byte for byte in range(256)}
    assert find_merges(ranks | {b"ab": 256}) == {b"ab": (b"a", b"b")}
    with pytest.raises(ValueError, match="no two"):
        find_merges(ranks | {b"abc": 256})


def test_the_card_tells_what_the_run_was(tmp_path, capsys):
    head = ClassificationHead(SMALL, 3, "last")
    (tmp_path / "run").mkdir()
    save_ours(tmp_path / "run/best", SMALL, head, {"labels": LABELS, "max_length": LONGEST})
    metrics = {"loss": 0.5, "accuracy": 0.75, "f1": 0.7}
    results = {
        "data": {"name": "stories", "train": 1380, "validation": 10, "test": 12,
                 "removed": {"duplicate": 3, "empty text": 0}},
        "model": {"name": "gpt2", "init": "pretrained", "parameters": 9, "trainable": 4,
                  "origin": "pretrained weights of openai-community/gpt2, new head"},
        "before": {"test": metrics | {"accuracy": 0.25}}, "after": {"test": metrics},
        "baseline": {"name": "logistic regression", "features": "count", "test": metrics},
        "training": {"steps": 30, "epochs": 3, "tokens": 999, "seconds": 7.0, "seed": 5,
                     "best_step": 20},
    }  # fmt: skip
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    (tmp_path / "my-model.new").mkdir()
    export(tmp_path / "run", tmp_path / "my-model")
    assert (tmp_path / "my-model.new").is_dir()  # somebody else's
    card = (tmp_path / "my-model/README.md").read_text()
    for part in ("pipeline_tag: text-classification", "base_model: openai-community/gpt2",
                 "# my-model", "`bad`, `fair`, `good`", "`stories`: 1,380 train",
                 "duplicate 3", "30 steps", "seed 5", "step 20", "4 of 9 parameters",
                 "| accuracy", "25.0 %", "75.0 %", "first 48 tokens"):  # fmt: skip
        assert part in card, part
    assert "empty text" not in card

    # A run folder called gpt2 is not OpenAI's model.
    results["model"]["origin"] = "trunk and head of runs/gpt2/best (classification)"
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    export(tmp_path / "run", tmp_path / "other")
    assert "base_model" not in (tmp_path / "other/README.md").read_text()
