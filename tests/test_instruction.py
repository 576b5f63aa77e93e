"""Instruction tuning: exact targets, truncation, losses, gradients, learning by heart."""

import json
import math

import numpy as np
import pytest
import torch

from gpt2.batching import IGNORE, collate
from gpt2.checkpoint import Recipe
from gpt2.generation import SamplingSettings, stream_text
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.model import GPT2, GPT2Config
from gpt2.optimization import TrainingConfig
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from gpt2.training import train
from instruction.data import InstructionDataset
from instruction.evaluation import answer_prompts
from instruction.sources import SAMPLE
from instruction.template import Template

ROWS = [
    ("Say hello.", "", "Hello!"),
    ("Repeat the input.", "a <|endoftext|> b", "a <|endoftext|> b"),
    ("What {is} this?", "braces {instruction} {input}", "Braces: {}"),
    ("Write two lines.", "", "one\ntwo naïve 🎬"),
]
# The special token's name anywhere is text, at the very end of an answer too.
SPECIAL = [
    ("What does <|endoftext|> mean?", "", "It ends a text."),
    ("Name the token.", "", "<|endoftext|>"),
    ("Repeat.", "<|endoftext|>", "twice: <|endoftext|><|endoftext|>"),
    ("<|endoftext|>", "<|endoftext|>", "<|endoftext|> first"),
]
ENCODING = get_encoding("mini")
EOT = ENCODING.eot_token


def make_dataset(rows=ROWS, max_length=512, **more):
    return InstructionDataset(rows, Template(), ENCODING, max_length, **more)


def tiny_model(dtype=torch.float32, n_positions=512):
    torch.manual_seed(0)
    config = GPT2Config(2, 2, 32, n_positions, 8192, dropout=0.0)
    return GPT2(config, LanguageModelHead(config)).to(dtype).eval()


# ---- the template


def test_the_template_is_alpacas_and_takes_braces_as_they_are():
    assert (
        Template()
        .prompt("Hi")
        .startswith("Below is an instruction that describes a task. Write a response")
    )
    prompt = Template().prompt("What {is} {input}?", "braces {instruction}")
    assert prompt.startswith("Below is an instruction that describes a task, paired with an input")
    assert "### Instruction:\nWhat {is} {input}?\n\n### Input:\nbraces {instruction}\n" in prompt
    assert prompt.endswith("\n\n### Response:\n")
    assert "### Input:" not in Template().prompt("Hi")


def test_a_template_of_ones_own_has_its_placeholders_in_any_order():
    template = Template(
        with_input="{input} | {instruction} | {input}", without_input="{instruction}?"
    )
    assert template.prompt("{input}", "{instruction}") == "{instruction} | {input} | {instruction}"
    assert template.prompt("a\\1") == "a\\1?"
    assert template.headings() == []
    assert Template().headings() == ["### Input:", "### Instruction:", "### Response:"]


@pytest.mark.parametrize(
    "texts, missing",
    [
        ({"with_input": "{instruction}"}, "{input}"),
        ({"with_input": "{input}"}, "{instruction}"),
        ({"without_input": "Answer!"}, "{instruction}"),
    ],
)
def test_a_template_without_a_placeholder_is_refused(texts, missing):
    with pytest.raises(ValueError, match=f"lacks {missing}"):
        Template(**texts)


# ---- the dataset


def sample_rows():
    return [tuple(row.values()) for row in json.loads(SAMPLE.read_text())]


@pytest.mark.parametrize(
    "rows", [ROWS, SPECIAL, sample_rows()], ids=["rows", "special", "the whole sample"]
)
def test_targets_that_count_decode_to_output_and_eos_exactly(rows):
    dataset = make_dataset(rows)
    assert len(dataset) == len(rows) and dataset.truncated == 0
    for number, (instruction, text, output) in enumerate(rows):
        tokens, targets = dataset[number]
        assert tokens.dtype == targets.dtype == torch.int64
        assert len(tokens) == len(targets) == dataset.lengths[number]
        counted = targets[targets != IGNORE].tolist()
        assert counted[-1] == EOT and EOT not in counted[:-1]
        assert ENCODING.decode(counted) == output + "<|endoftext|>"
        assert EOT not in tokens
        prompt = Template().prompt(instruction, text)
        assert ENCODING.decode(tokens.tolist()) == prompt + output
        assert ENCODING.decode(dataset.prompt(number)) == prompt


def test_targets_are_the_next_tokens():
    tokens, targets = make_dataset()[0]
    prompt = len(ENCODING.encode_ordinary(Template().prompt("Say hello.")))
    assert (targets[: prompt - 1] == IGNORE).all()
    assert targets[prompt - 1 : -1].tolist() == tokens[prompt:].tolist()
    everything = make_dataset(train_on_prompt=True)[0]
    assert everything[1][:-1].tolist() == tokens[1:].tolist() and everything[1][-1] == EOT


def test_prompt_and_response_are_encoded_apart():
    template = Template(without_input="{instruction} The answer is in")
    dataset = InstructionDataset([("x", "", "teresting")], template, ENCODING, 512)
    apart = ENCODING.encode_ordinary("x The answer is in") + ENCODING.encode_ordinary("teresting")
    assert dataset[0][0].tolist() == apart
    assert apart != ENCODING.encode_ordinary("x The answer is interesting")


def test_an_over_long_row_loses_its_end_and_never_its_eos():
    rows = [("Count.", "", "one two three four five six seven"), *ROWS]
    prompt = len(make_dataset(rows).prompt(0))
    for room, expected in ((1, "one"), (3, "one two three"), (6, "one two three four five six")):
        dataset = make_dataset(rows[:1], max_length=prompt + room)
        tokens, targets = dataset[0]
        assert len(tokens) == prompt + room and dataset.truncated == 1
        assert ENCODING.decode(targets[targets != IGNORE].tolist()) == expected + "<|endoftext|>"
    assert make_dataset(rows[:1], max_length=prompt + 7).truncated == 0
    with pytest.raises(ValueError, match="row 0 has no room"):
        make_dataset(rows[:1], max_length=prompt)


# ---- the loss


def test_the_loss_equals_the_plain_one_over_all_positions():
    model, dataset = tiny_model(), make_dataset()
    batch = collate([dataset[row] for row in range(4)])
    total, count = language_model_loss(model, batch)
    logits = model(batch.tokens, batch.lengths)
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    assert count == int((batch.targets != IGNORE).sum())
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=0)


def ragged_dataset():
    """Responses from 3 to 400 tokens."""
    counts = (2, 399, 7, 30, 150, 3, 90, 12)
    dataset = make_dataset([("Go on.", "", "word " * count) for count in counts])
    targets = [int((dataset[row][1] != IGNORE).sum()) for row in range(8)]
    assert min(targets) < 5 and max(targets) >= 400
    return dataset


def test_response_loss_is_the_same_at_batch_size_1_7_and_32():
    model, dataset = tiny_model(torch.float64), ragged_dataset()
    losses = [evaluate_loss(model, dataset, size, "float32")["loss"] for size in (1, 7, 32)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)
    metrics = evaluate_loss(model, dataset, 4, "float32")
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def gradient(tmp_path, monkeypatch, micro_batch_size):
    """What reaches AdamW in one step over the eight ragged rows."""
    captured, model = [], tiny_model(torch.float64)
    (tmp_path / str(micro_batch_size)).mkdir()

    def capture(optimizer, closure=None):
        captured.extend(parameter.grad.clone() for parameter in model.parameters())

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", capture)
        config = TrainingConfig(epochs=1, batch_size=8, micro_batch_size=micro_batch_size, clip=0,
                                learning_rate=6e-4, precision="float32")  # fmt: skip
        train(model, ragged_dataset(), language_model_loss, lambda: {"loss": 0.0}, config, 1,
              RunFolder(tmp_path / str(micro_batch_size)),
              Recipe("instruction", ENCODING, {}))  # fmt: skip
    return captured


def difference(first, second):
    return max((one - other).abs().max().item() for one, other in zip(first, second, strict=True))


def test_gradients_do_not_depend_on_micro_batches(tmp_path, monkeypatch):
    whole = gradient(tmp_path, monkeypatch, 8)
    for size in (4, 1, 5):  # 5 + 3
        assert difference(whole, gradient(tmp_path, monkeypatch, size)) < 1e-12

    # The rule that other trainers had, a mean of the micro-batches' means, would depend on the cut.
    model, dataset = tiny_model(torch.float64), ragged_dataset()
    order = np.argsort(dataset.lengths, kind="stable")
    for rows in (order[:5], order[5:]):
        total, count = language_model_loss(model, collate([dataset[row] for row in rows]))
        (total / count / 2).backward()
    assert difference(whole, [parameter.grad for parameter in model.parameters()]) > 1e-4


# ---- learning by heart


@pytest.fixture(scope="module")
def learnt_by_heart(tmp_path_factory):
    model, dataset = tiny_model(), make_dataset()
    config = TrainingConfig(epochs=150, batch_size=4, learning_rate=1e-2, evaluate_every=150,
                            weight_decay=0.0, precision="float32")  # fmt: skip
    train(model, dataset, language_model_loss, lambda: {"loss": 0.0}, config, 1,
          RunFolder(tmp_path_factory.mktemp("heart")),
          Recipe("instruction", ENCODING, {}))  # fmt: skip
    return model.eval(), dataset


def test_four_rows_learnt_by_heart_are_answered_word_for_word_and_stop(learnt_by_heart):
    model, dataset = learnt_by_heart
    prompts = [dataset.prompt(row) for row in range(4)]
    settings = SamplingSettings(max_new_tokens=60)
    answers = answer_prompts(model, ENCODING, prompts, settings, 4, "float32")
    assert [answer.text for answer in answers] == [row[2] for row in ROWS]
    assert all(answer.ended for answer in answers)
    cut = answer_prompts(model, ENCODING, prompts, SamplingSettings(max_new_tokens=2), 4, "float32")
    assert not any(answer.ended for answer in cut)


def test_they_are_streamed_word_for_word_and_no_piece_ends_inside_a_character(learnt_by_heart):
    model, _ = learnt_by_heart
    settings = SamplingSettings(max_new_tokens=60)
    for instruction, text, output in ROWS:
        prompt = ENCODING.encode_ordinary(Template().prompt(instruction, text))
        pieces = list(stream_text(model, ENCODING, prompt, settings, precision="float32"))
        assert "".join(pieces) == output
        assert len([piece for piece in pieces if piece]) > 1
    assert len(ENCODING.encode_ordinary("🎬")) > 1  # several tokens, one piece
    assert "🎬" in pieces and not any("\ufffd" in piece for piece in pieces)
