"""Instruction tuning: exact targets, truncation, losses, learning by heart, readers, metrics."""

import json
import math

import numpy as np
import pytest
import torch

from gpt2.batching import IGNORE, collate
from gpt2.checkpoint import Checkpoint
from gpt2.command_line import UserError
from gpt2.generation import SamplingSettings
from gpt2.heads import LanguageModelHead
from gpt2.language_modelling import evaluate_loss, language_model_loss
from gpt2.model import GPT2, GPT2Config
from gpt2.run_folder import RunFolder
from gpt2.tokenizer import get_encoding
from gpt2.training import TrainingConfig, train
from instruction.data import SAMPLE, DataSettings, InstructionDataset, load_splits
from instruction.evaluation import (
    Answer,
    answer_metrics,
    answer_prompts,
    loops,
    rouge_l,
    task_metrics,
    well_formed,
)
from instruction.tasks import TASKS
from instruction.template import Template

ROWS = [
    ("Say hello.", "", "Hello!"),
    ("Repeat the input.", "a <|endoftext|> b", "a <|endoftext|> b"),
    ("What {is} this?", "braces {instruction} {input}", "Braces: {}"),
    ("Write two lines.", "", "one\ntwo naïve 🎬"),
]
ENCODING = get_encoding("mini")
EOT = ENCODING.eot_token


def make_dataset(rows=ROWS, max_length=512, **more):
    return InstructionDataset(rows, Template(), ENCODING, max_length, **more)


def tiny_model(dtype=torch.float32, n_positions=512):
    torch.manual_seed(0)
    config = GPT2Config(2, 2, 32, n_positions, 8192, dropout=0.0)
    return GPT2(config, LanguageModelHead(config)).to(dtype).eval()


# ---- the dataset


def test_targets_that_count_decode_to_output_and_eos_exactly():
    dataset = make_dataset()
    for row, (instruction, text, output) in enumerate(ROWS):
        tokens, targets = dataset[row]
        counted = targets[targets != IGNORE].tolist()
        assert counted[-1] == EOT and EOT not in counted[:-1]
        assert ENCODING.decode(counted) == output + "<|endoftext|>"
        prompt = Template().prompt(instruction, text)
        assert ENCODING.decode(tokens.tolist()) == prompt + output
        assert EOT not in tokens


def test_targets_are_the_next_tokens():
    tokens, targets = make_dataset()[0]
    prompt = len(ENCODING.encode_ordinary(Template().prompt("Say hello.")))
    assert (targets[: prompt - 1] == IGNORE).all()
    assert targets[prompt - 1 : -1].tolist() == tokens[prompt:].tolist()
    everything = make_dataset(train_on_prompt=True)[0]
    assert everything[1][:-1].tolist() == tokens[1:].tolist() and everything[1][-1] == EOT


def test_prompt_and_response_are_encoded_apart():
    template = Template(without_input="Answer: {instruction} ->")
    dataset = InstructionDataset([("x", "", " yes")], template, ENCODING, 512)
    tokens, _ = dataset[0]
    expected = ENCODING.encode_ordinary("Answer: x ->") + ENCODING.encode_ordinary(" yes")
    assert tokens.tolist() == expected


def test_an_over_long_row_loses_its_end_and_never_its_eos():
    rows = [("Count.", "", "one two three four five six seven")]
    prompt = len(make_dataset(rows).prompts[0])
    dataset = make_dataset(rows, max_length=prompt + 3)
    tokens, targets = dataset[0]
    assert len(tokens) == prompt + 3 and dataset.truncated == 1
    assert ENCODING.decode(targets[targets != IGNORE].tolist()) == "one two three<|endoftext|>"
    assert make_dataset(rows, max_length=prompt + 7).truncated == 0
    with pytest.raises(ValueError, match="no room"):
        make_dataset(rows, max_length=prompt)


def test_the_template_takes_braces_as_they_are():
    prompt = Template().prompt("What {is} {input}?", "braces {instruction}")
    assert "### Instruction:\nWhat {is} {input}?\n\n### Input:\nbraces {instruction}\n" in prompt
    assert prompt.endswith("### Response:\n")
    assert "### Input:" not in Template().prompt("Hi")


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


def ragged_rows():
    """Responses from 3 to 400 tokens."""
    return [("Go on.", "", "word " * count) for count in (2, 399, 7, 30, 150, 3, 90, 12)]


def test_response_loss_is_the_same_at_batch_size_1_7_and_32():
    model, dataset = tiny_model(), make_dataset(ragged_rows())
    losses = [evaluate_loss(model, dataset, size, "float32")["loss"] for size in (1, 7, 32)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    metrics = evaluate_loss(model, dataset, 4, "float32")
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def test_gradients_do_not_depend_on_micro_batches(tmp_path, monkeypatch):
    gradients = {}
    for size in (8, 4, 1, 5):
        model = tiny_model(torch.float64)
        (tmp_path / str(size)).mkdir()

        def capture(optimizer, closure=None, size=size, model=model):
            gradients[size] = [parameter.grad.clone() for parameter in model.parameters()]

        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.AdamW, "step", capture)
            config = TrainingConfig(epochs=1, batch_size=8, micro_batch_size=size, clip=0,
                                    precision="float32")  # fmt: skip
            train(model, make_dataset(ragged_rows()), language_model_loss, lambda: {"loss": 0.0},
                  config, 1, RunFolder(tmp_path / str(size)),
                  Checkpoint("instruction", ENCODING, {}))  # fmt: skip
    for size in (4, 1, 5):
        for one, other in zip(gradients[8], gradients[size], strict=True):
            assert (one - other).abs().max() < 1e-6


def test_four_rows_learnt_by_heart_are_answered_word_for_word_and_stop(tmp_path):
    model, dataset = tiny_model(), make_dataset()
    config = TrainingConfig(epochs=150, batch_size=4, learning_rate=1e-2, evaluate_every=150,
                            weight_decay=0.0, precision="float32")  # fmt: skip
    train(model, dataset, language_model_loss, lambda: {"loss": 0.0}, config, 1,
          RunFolder(tmp_path), Checkpoint("instruction", ENCODING, {}))  # fmt: skip
    model.eval()
    answers = answer_prompts(
        model, ENCODING, dataset.prompts, SamplingSettings(max_new_tokens=60), 4, "float32"
    )
    assert [answer.text for answer in answers] == [row[2] for row in ROWS]
    assert all(answer.ended for answer in answers)


# ---- readers


def load(path, **settings):
    return load_splits(DataSettings(data=str(path), **settings), Template(), ENCODING, seed=1)


def test_the_sample_is_what_it_says():
    rows = json.loads(SAMPLE.read_text())
    assert len(rows) >= 300
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert 0.3 < sum(bool(row["input"]) for row in rows) / len(rows) < 0.4
    splits = load("sample")
    assert not any(splits.removed.values())
    assert [len(frame) for _, frame in splits.items()] == [272, 34, 34]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_the_same_rows_from_every_kind_of_file(tmp_path, suffix):
    import polars as pl

    rows = [{"q": f"Say {i}, please", "a": f"It is {i}"} for i in range(30)]
    path = tmp_path / f"mine.{suffix}"
    frame = pl.DataFrame(rows)
    {"json": frame.write_json, "jsonl": frame.write_ndjson, "csv": frame.write_csv,
     "parquet": frame.write_parquet}[suffix](path)  # fmt: skip
    splits = load(path, instruction_column="q", output_column="a")
    assert [len(frame) for _, frame in splits.items()] == [24, 3, 3]
    found = {row for _, frame in splits.items() for row in frame.rows()}
    assert found == {(row["q"], "", row["a"]) for row in rows}
    again = load(path, instruction_column="q", output_column="a")
    assert splits.test.equals(again.test)


def test_every_removal_is_counted(tmp_path):
    rows = [{"instruction": f"Say {i}", "input": "", "output": "ok"} for i in range(42)]
    rows += [{"instruction": "Say 3", "input": "", "output": "other"},
             {"instruction": "Say 3", "input": "x", "output": "kept: another input"},
             {"instruction": "empty", "input": None, "output": "  "},
             {"instruction": " ", "output": "x"},
             {"instruction": "long " * 600, "input": "", "output": "x"}]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    splits = load(tmp_path / "a.json")
    assert splits.removed == {"empty instruction": 1, "empty output": 1, "duplicate": 1,
                              "no room for a response": 1}  # fmt: skip
    assert sum(len(frame) for _, frame in splits.items()) == 43


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", '[{"instruction": "x",\n "output": }]', "line 2 is not JSON"),
        ("a.jsonl", '{"instruction": "x", "output": "y"}\n{"ins', "line 2 is not JSON"),
        ("a.json", '[{"instruction": "x", "output": "y"}, 7]', "row 2 is not an object"),
        ("a.json", '[{"instruction": "x", "output": "y"}, {"instruction": "x"}]',
         "row 2 has no field 'output'"),
        ("a.json", '[{"instruction": "x", "output": 7}]', "row 1: 'output' is int, not text"),
        ("a.csv", "text,label\na,1\n", "no field 'instruction' .* a file for classification"),
        ("a.json", '[{"instruction": "x", "output": "y"}]', "1 usable rows are left"),
        ("a.json", "[]", "the file has no rows"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / name)
    assert len(str(error.value).splitlines()) == 1


# ---- how good are the answers


def test_rouge_l_by_hand():
    assert rouge_l("a b c", "a b c") == 1
    assert rouge_l("a b", "c d") == 0
    assert rouge_l("a x b y", "a b") == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert rouge_l("", "a") == 0


def test_format_adherence_by_hand():
    template = Template()
    good = Answer("A fine answer.", True)
    bad = [Answer("A fine answer.", False), Answer("", True), Answer("x ### Response: y", True),
           Answer("and so on " * 4, True)]  # fmt: skip
    assert well_formed(good, template)
    assert not any(well_formed(answer, template) for answer in bad)
    metrics = answer_metrics([good, *bad], ["A fine answer."] * 5, template)
    assert metrics["format_adherence"] == 0.2 and metrics["ends_with_eos"] == 0.8
    assert metrics["empty"] == metrics["repeats_template"] == metrics["loops"] == 0.2
    assert not loops("one two three " * 3)


# A right and a wrong answer to each kind of check, by the task's number in TASKS.
JUDGED = [
    (0, "Yes, it is.", "No."),
    (1, "no", "I do not know"),
    (6, "The review is positive.", "It is positive or negative."),
    (11, "hammer", "apple, hammer"),
    (12, "3 + 4 = 7", "3 + 4 = 8"),
    (14, "The answer is 30.", "5 by 6"),
    (20, "The river is wide.", "The rivers are wide."),
    (23, "The dog has a ball.", "The dog runs."),
    (30, "PLEASE CLOSE THE DOOR", "Please close the door"),
    (32, "the train is late", "THE TRAIN IS LATE"),
    (34, "1. Apple\n2. Pear\n3. Plum", "1. Apple\n2. Pear"),
    (34, "apple, pear and plum.", "apple"),
    (37, "- eat\n- drink", "- eat"),
    (39, '{"name": "A", "age": 3}', '{"name": "A"}'),
    (41, '{"answer": 4}', "answer: 4"),
    (42, "A bridge is a road over water.", "A bridge. It is a road."),
]


@pytest.mark.parametrize("number, right, wrong", JUDGED)
def test_checkers_judge_right_and_wrong_answers(number, right, wrong):
    assert TASKS[number].check(right) and not TASKS[number].check(wrong)


def test_there_are_enough_tasks_and_silence_solves_none():
    assert len(TASKS) >= 40
    assert len({(task.instruction, task.input) for task in TASKS}) == len(TASKS)
    metrics = task_metrics([Answer("", True)] * len(TASKS))
    assert metrics["task_success"] == 0
    assert {TASKS[number].kind for number, _, _ in JUDGED} >= set(
        metrics["task_success_by_kind"]
    ) - {"extraction"}
    sample = {(row["instruction"], row["input"]) for row in json.loads(SAMPLE.read_text())}
    assert not sample & {(task.instruction, task.input) for task in TASKS}


def test_answers_come_in_the_order_of_the_prompts():
    model = tiny_model()
    prompts = [ENCODING.encode_ordinary("a " * count) for count in (9, 2, 30, 4)]
    settings = SamplingSettings(max_new_tokens=5)
    together = answer_prompts(model, ENCODING, prompts, settings, 2, "float32")
    alone = [answer_prompts(model, ENCODING, [p], settings, 1, "float32")[0] for p in prompts]
    assert together == alone
    assert np.all([isinstance(answer, Answer) for answer in together])
