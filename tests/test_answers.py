"""How good are the answers: metrics by hand, every task judged right and wrong, batches."""

import json
import sys

import polars as pl
import pytest
import torch

from gpt2.generation import SamplingSettings
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.tokenizer import get_encoding
from instruction.evaluation import (
    Answer,
    answer_metrics,
    answer_prompts,
    judge_tasks,
    loops,
    rouge,
    task_metrics,
    well_formed,
)
from instruction.report import answer_records, metrics_table, task_records
from instruction.sources import SAMPLE
from instruction.tasks import TASKS, number
from instruction.template import Template

ENCODING = get_encoding("mini")


def test_rouge_by_hand():
    def of(answer, reference):
        return rouge([answer], [reference])

    assert of("A, b: c!", "a b c") == {"rouge_1": 1, "rouge_2": 1, "rouge_l": 1}  # case, signs
    assert of("a b", "c d") == of("", "a") == {"rouge_1": 0, "rouge_2": 0, "rouge_l": 0}
    # two of four words are right, both of the reference's two are found, no pair is
    found = of("a x b y", "a b")
    assert found["rouge_1"] == found["rouge_l"] == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert found["rouge_2"] == 0
    # the order counts for pairs and sequences: of "b a" against "a b" one word is in sequence
    assert of("b a", "a b") == {"rouge_1": 1, "rouge_2": 0, "rouge_l": pytest.approx(0.5)}
    # the mean over rows, and letters that English does not have
    assert rouge(["\u0434\u0430", "x"], ["\u0434\u0430", "y"])["rouge_1"] == 0.5


def test_rouge_is_that_of_the_package_in_english():
    from rouge_score.rouge_scorer import RougeScorer

    ours, theirs = "It's the 2nd-best film, isn't it?", "The second best film: isn't it? It is."
    scores = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(theirs, ours)
    assert list(rouge([ours], [theirs]).values()) == [s.fmeasure for s in scores.values()]


def test_without_the_package_rouge_is_left_out_and_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    metrics = answer_metrics([Answer("a", True)], ["a"], Template())
    assert "rouge_l" not in metrics and metrics["ends_with_eos"] == 1
    table = metrics_table(["1 row", "run"], [{"loss": 1.0, "perplexity": 2.7} | metrics])
    assert "| ROUGE" not in table and "pip install rouge-score" in table


@pytest.mark.parametrize(
    "answer, right",
    [("5", True), ("5.", True), ("2 + 3 = 5", True), ("It is 5.0", True), ("6", False), ("", False),
     ("1. One is\n5. Five is", False), ("1. It is 5", True)],
)  # fmt: skip
def test_a_number_counts_but_not_that_of_a_list_entry(answer, right):
    assert number(5)(answer) == right


@pytest.mark.parametrize(
    "text, expected",
    [
        ("and so on " * 4, True),
        ("the sea is blue. " * 4, True),
        ("8" * 12, True),
        ("ha" * 6, True),
        ("the cat and the dog and " * 5, True),
        ("I like it. You like it. " + "We all like it very much. " * 6, True),
        ("", False),
        ("one two three " * 3, False),
        ("no no no", False),
        ("-" * 40, False),
        ("| a | b |\n|-----|-----|\n| 1 | 2 |", False),
        ("row, row, row your boat, gently down the stream", False),
        ("1. Eat well.\n2. Sleep well.\n3. Walk a lot.\n4. Laugh a lot.", False),
    ],
)
def test_what_loops(text, expected):
    assert loops(text) is expected


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
    assert metrics["rouge_l"] == pytest.approx(2 / 5)  # nothing and other words share nothing


# For each task in the order of TASKS, an answer that solves it and some that nearly do.
JUDGED = [
    ("Yes, it is.", ["No.", "It is, yes.", "Yesterday."]),
    ("no", ["I do not know", "Not at all", "yes"]),
    ("Yes!", ["no", "Birds"]),
    ("No, it is a star.", ["yes", "Now and then"]),
    ("yes", ["no", "The cat"]),
    ("No.", ["Yes.", "None"]),
    ("The review is positive.", ["It is positive or negative.", "negative", "positively"]),
    ("Negative", ["positive", "negative positive"]),
    ("Sentiment: negative.", ["positive"]),
    ("An eagle is a bird.", ["mammal", "bird or mammal"]),
    ("fruit", ["vegetable", "It is a fruit, not a vegetable, or a vegetable."]),
    ("hammer", ["apple, hammer", "plum"]),
    ("3 + 4 = 7", ["3 + 4 = 8", "7 or 8", "34", "-7", "7.5"]),
    ("4", ["10 - 6", "6"]),
    ("The answer is 30.", ["5 by 6", "300", "3 0"]),
    ("There are 7 days in a week.", ["8", "seventy"]),
    ("Anna has 5 apples.", ["2 and 3", "6"]),
    ("12", ["twelve", "1 2"]),
    ("4 words", ["5", "four"]),
    ("3", ["pen, book, lamp"]),
    ("It has 3 letters.", ["cup", "4"]),
    ("5", ["4", "Emma, Paul"]),
    ("The river is wide.", ["The rivers are wide.", "A driver."]),
    ("Snow falls in winter.", ["It is a snowy winter."]),
    ("My garden is small.", ["The gardener"]),
    ("The dog has a ball.", ["The dog runs.", "A ball"]),
    ("The moon shines at night.", ["The moon is round.", "Midnight"]),
    ("Paris", ["London", "Parisian"]),
    ("The person is Thomas.", ["Peter"]),
    ("It is green.", ["red", "greener"]),
    ("On Tuesday", ["Monday"]),
    ("Norway", ["Sweden"]),
    ("PLEASE CLOSE THE DOOR", ["Please close the door", "PLEASE OPEN THE DOOR", "PLEASE"]),
    ("GOOD MORNING", ["Good Morning", "GOOD EVENING"]),
    ("the train is late", ["The train is late", "the bus is late", "late"]),
    ("GOOD NIGHT!", ["Good night", "GOODNIGHT"]),
    ("1. Apple\n2. Pear\n3. Plum", ["1. Apple\n2. Pear", "apple", "1. Apple 2. Apple 3. Apple"]),
    ("cat, dog, cow, pig and hen.", ["cat, dog, cow and pig.", "a, b, c, d, e, f", "dog " * 5]),
    ("red\nblue\ngreen\nblack", ["red\nblue\ngreen", "a, b, c, c, c, and d", "a, b, c, and"]),
    ("- eat fruit\n- drink water", ["- eat fruit", "- eat\n- eat", "Eat."]),
    ("Here they are: 1) paint 2) a brush 3) paper", ["paint, a brush, paper, light", "1) paint"]),
    ('{"name": "A", "age": 3}', ['{"name": "A"}', '{"name": "A", "age": 3', '["name", "age"]']),
    ('{"city": "Rome"}', ['{"city": "Paris"}', "Rome", '{"town": "Rome"}']),
    ('{"answer": 4}', ["answer: 4", '{"answer": 5}', "4"]),
    ("A bridge is a road over water.", ["A bridge. It is a road.", "A bridge is a road", "Road."]),
    ("The sea is 3.5 km deep!", ["Deep. Blue. Cold.", "the sea"]),
    ("People sleep to rest.", ["To rest", "People sleep. They rest."]),
]


def test_every_task_is_judged_right_and_wrong():
    for task, (right, wrong) in zip(TASKS, JUDGED, strict=True):
        assert task.solved_by(right), (task.instruction, right)
        for answer in wrong:
            assert not task.solved_by(answer), (task.instruction, answer)


def test_silence_babble_and_an_echo_solve_no_task():
    for task in TASKS:
        for answer in ("", " ", "the of", ". . .", "\ufffd" * 3, "[" * 5000, task.instruction,
                       task.input):  # fmt: skip
            assert not task.solved_by(answer), (task.instruction, answer[:20])


def test_tasks_are_many_different_and_not_in_the_sample():
    assert len(TASKS) >= 40
    assert len({(task.instruction, task.input) for task in TASKS}) == len(TASKS)
    sample = {(row["instruction"], row["input"]) for row in json.loads(SAMPLE.read_text())}
    assert not sample & {(task.instruction, task.input) for task in TASKS}


def test_task_success_is_a_rate_in_all_and_by_kind():
    answers = [Answer(right if task.kind == "number" else "", True)
               for task, (right, _) in zip(TASKS, JUDGED, strict=True)]  # fmt: skip
    solved = judge_tasks(answers)
    numbers = sum(task.kind == "number" for task in TASKS)
    metrics = task_metrics(solved)
    assert metrics["task_success"] == numbers / len(TASKS)
    assert metrics["task_success_by_kind"] == {
        task.kind: float(task.kind == "number") for task in TASKS
    }
    records = task_records([""] * len(TASKS), [answer.text for answer in answers])
    assert [record["solved"] for record in records] == solved


# ---- answers in batches


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(2, 2, 32, 128, 8192, dropout=0.0)
    model = GPT2(config, LanguageModelHead(config)).eval()
    with torch.no_grad():  # rough weights: answers that depend on the prompt
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_depends_on_its_prompt_and_its_number_alone(model, temperature):
    """Not on the batch size, nor on the prompts that it shares a batch with."""
    texts = ["Say hello.", "a " * 60, "Name three colours.", "b", "Count to ten " * 9, "c d e"]
    prompts = [ENCODING.encode_ordinary(text) for text in texts]
    settings = SamplingSettings(max_new_tokens=12, temperature=temperature)

    def answers(some, batch_size, seed=5):
        return answer_prompts(model, ENCODING, some, settings, batch_size, "float32", seed)

    whole = answers(prompts, 6)
    assert len({answer.text for answer in whole}) == 6
    for batch_size in (1, 4):
        assert answers(prompts, batch_size) == whole
    assert [answers([prompt], 1, 5 + row)[0] for row, prompt in enumerate(prompts)] == whole
    assert (answers(prompts, 6, seed=6) == whole) == (temperature == 0)


def test_records_hold_each_row_with_its_two_answers():
    rows = pl.DataFrame({"instruction": ["a", "b"], "input": ["", "i"], "output": ["x", "y"]})
    records = answer_records(rows, ["1", "2"], ["3", "4"])
    assert records == [
        {"instruction": "a", "input": "", "reference": "x", "before": "1", "after": "3"},
        {"instruction": "b", "input": "i", "reference": "y", "before": "2", "after": "4"},
    ]
