"""Pre-training: which tokens are learnt, which documents are left out, and a whole run."""

import json
import math

import pytest
import torch
from conftest import refused
from test_corpus import corpus_of, texts_of

from gpt2.batching import IGNORE, collate
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.model import GPT2, GPT2Config
from gpt2.support.errors import UserError
from gpt2.tokenizer import get_encoding
from pretraining.corpus import TokenRows

SCRIPT = "pretraining/pretrain.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16)
MINI = get_encoding("mini")


def make_model(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=8192)
    return GPT2(config, LanguageModelHead(config)).eval()


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- tokens


def test_exact_ids_of_two_documents():
    first, second = MINI.encode_ordinary("A fine film"), MINI.encode_ordinary("Dull")
    end = MINI.eot_token
    rows = TokenRows(["A fine film", "Dull"], MINI, max_length=4)
    tokens = [row.tolist() for row, _ in rows]
    targets = [row.tolist() for _, row in rows]
    assert len(first) == 3 and len(second) == 2
    assert tokens == [[end, *first], [end, *second]]
    assert targets == [[*first, end], [*second, end]]
    assert rows.lengths.tolist() == [4, 3] and rows.targets == 7
    assert rows[0][0].dtype == rows[0][1].dtype == torch.int64


@pytest.mark.parametrize("max_length", [1, 7, 16, 10_000])
def test_each_token_is_a_target_once(max_length):
    texts = [f"Film number {i} was " + "very " * i + "long." for i in range(12)]
    rows = TokenRows(texts, MINI, max_length)
    stream = [MINI.eot_token]
    for text in texts:
        stream += [*MINI.encode_ordinary(text), MINI.eot_token]
    assert torch.cat([targets for _, targets in rows]).tolist() == stream[1:]
    assert torch.cat([tokens for tokens, _ in rows]).tolist() == stream[:-1]
    assert {len(tokens) for tokens, _ in list(rows)[:-1]} <= {max_length}
    assert [len(tokens) for tokens, _ in rows] == rows.lengths.tolist()
    assert rows.document_tokens.sum() == rows.targets


def test_the_special_token_in_a_text_stays_text():
    rows = TokenRows(["One <|endoftext|> two"], MINI, 512)
    stream = rows.stream.tolist()
    assert stream.count(MINI.eot_token) == 2 and stream[0] == stream[-1] == MINI.eot_token
    assert MINI.decode(stream[1:-1]) == "One <|endoftext|> two"


# ---- loss


@pytest.mark.parametrize("scale", [1, 0.25])
def test_the_loss_is_that_of_all_logits_at_once(monkeypatch, scale):
    """Chunks, which end inside rows here, change neither the loss nor its gradient."""
    rows = TokenRows(["A fine film, I think.", "Dull", "No, no."], MINI, 5)
    batch = collate(list(rows))
    model = make_model()
    logits = model(batch.tokens, batch.lengths)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    (scale * expected).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr("gpt2.language_modelling._TARGETS_AT_ONCE", 3)
    monkeypatch.setattr("gpt2.language_modelling._ROWS_AT_ONCE", 2)
    loss, count = language_model_loss(model, batch)
    (scale * loss).backward()
    assert count == rows.targets
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_perplexity_is_the_same_at_any_batch_size():
    texts = [f"Review {i}: " + "good " * (i % 5) for i in range(40)]
    rows = TokenRows(texts, MINI, 9)
    losses = [evaluate_loss(make_model(), rows, size, "float32")["loss"] for size in (1, 7, 32)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_an_untrained_model_knows_nothing():
    rows = TokenRows(["The film begins where the book ends."], MINI, 64)
    metrics = evaluate_loss(make_model(), rows, 1, "float32")
    assert metrics["loss"] == pytest.approx(math.log(8192), abs=0.1)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


# ---- runs


def test_a_whole_run_twice(call_script, tmp_path):
    """On the built-in texts, and repeatable bit for bit."""
    logs = []
    for name in ("one", "two"):
        done = call_script(SCRIPT, *TINY, "--max-steps", 6, "--log-every", 1, "--max-length", 64,
                           "--dropout", 0.1, "--out", name)  # fmt: skip
        assert done.returncode == 0, done.stderr
        records = read_jsonl(tmp_path / name / "metrics.jsonl")
        logs.append([{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records])
    assert logs[0] == logs[1] and len(logs[0]) == 8
    run = tmp_path / "one"
    assert {path.name for path in run.iterdir()} >= {"config.json", "metrics.jsonl", "results.json",
            "report.md", "curves.png", "best", "last"}  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == "pretraining"
    assert set(results["data"]["train_tokens"]) == {"sample_reviews", "sample_instructions"}
    assert results["training"]["tokens"] == 6 * 8 * 64
    for when in ("before", "after"):
        found = results[when]["validation_by_source"]
        tokens = results["data"]["validation_tokens"]
        mean = sum(found[s]["loss"] * tokens[s] for s in tokens) / sum(tokens.values())
        assert results[when]["validation"]["loss"] == pytest.approx(mean)
    assert results["before"]["validation"]["loss"] == pytest.approx(
        logs[0][0]["validation"]["loss"]
    )
    assert results["after"]["validation"]["loss"] < results["before"]["validation"]["loss"]
    assert logs[0][0]["validation"]["sample_reviews perplexity"] == pytest.approx(
        results["before"]["validation_by_source"]["sample_reviews"]["perplexity"]
    )
    assert done.stdout.count("  This film ...") == 2  # before training and after it
    report = (run / "report.md").read_text()
    assert "| sample_reviews" in report and "### Once upon a time ..." in report
    assert "next, fine-tune it" in done.stdout
    assert json.loads((run / "best/config.json").read_text())["task"] == "pretraining"


def test_a_tiny_text_is_learnt_by_heart(call_script, tmp_path):
    (tmp_path / "verse.txt").write_text("the rain it rains every day " * 8)
    done = call_script(SCRIPT, "--data", "verse.txt", "--model", "scratch", "--n-layer", 1,
                       "--n-embd", 32, "--validation-share", 0.2, "--epochs", 240,
                       "--learning-rate", 3e-3, "--evaluate-every", 240,
                       "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = json.loads((tmp_path / "run/results.json").read_text())["after"]["validation"]
    logged = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [record["loss"] for record in logged if "loss" in record][-1] < 0.2
    assert after["perplexity"] < 100  # of 8,192


def test_held_out_instructions_stay_out(call_script, tmp_path):
    """write_splits.py writes the rows of the tuning with the same --split-seed; a folder of them
    without its validation and test files is what pre-training may see."""
    from instruction.data import load_splits
    from instruction.sources import DataSettings
    from instruction.template import Template

    done = call_script("instruction/write_splits.py", "--out", "splits/own", "--split-seed", 3)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "splits/own"
    splits = load_splits(DataSettings(), Template(), MINI, 3)
    for split, frame in splits.items():
        written = [
            json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()
        ]
        assert written == frame.to_dicts()
    held_out = [str(folder / f"{split}.jsonl") for split in ("validation", "test")]
    corpus = corpus_of(folder, exclude=tuple(held_out))
    assert len(corpus.train) + len(corpus.validation) == len(splits.train)
    learnt = "\n".join(texts_of(corpus))
    for frame in (splits.validation, splits.test):
        assert not any(instruction in learnt for instruction in frame["instruction"])
    done = call_script("instruction/write_splits.py", "--out", "texts", "--split-seed", 3,
                       "--form", "text")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for split, frame in splits.items():
        row = frame.row(-1, named=True)
        last = json.loads((tmp_path / f"texts/{split}.jsonl").read_text().splitlines()[-1])
        prompt = Template().prompt(row["instruction"], row["input"])
        assert last == {"text": prompt + row["output"]}
    again = call_script("instruction/write_splits.py", "--out", "splits/own")
    assert again.returncode == 2 and "is there already" in again.stderr
    assert "--out is missing" in call_script("instruction/write_splits.py").stderr


def test_a_split_does_not_depend_on_the_room_for_a_response():
    """What is held out must be the same for every --max-length and tokenizer."""
    from instruction.data import load_splits
    from instruction.sources import DataSettings
    from instruction.template import Template

    long, short = (
        load_splits(DataSettings(max_length=length), Template(), MINI, 1) for length in (512, 60)
    )
    assert sum(short.removed.values()) > 0
    for (_, whole), (_, part) in zip(long.items(), short.items(), strict=True):
        assert part.rows() == [row for row in whole.rows() if row in set(part.rows())]
        assert set(part.rows()) < set(whole.rows())


def test_every_seed_is_measured_on_the_same_documents(call_script, monkeypatch):
    def read(settings, seed):
        raise UserError(f"documents of {seed}")

    monkeypatch.setattr("pretraining.pretrain.read_corpus", read)
    refused(call_script(SCRIPT, "--seed", 7), "documents of 1")
    refused(call_script(SCRIPT, "--seed", 7, "--split-seed", 3), "documents of 3")
