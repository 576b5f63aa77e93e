"""Instruction data as it is today: conversations of both kinds, and columns of many names."""

import json

import polars as pl
import pytest
from small_hub import SmallHub, turn_client_to

from gpt2.batching import IGNORE
from gpt2.support.errors import UserError
from gpt2.tokenizer import get_encoding
from instruction.data import InstructionDataset, load_splits
from instruction.sources import DataSettings
from instruction.template import Template

ENCODING = get_encoding("mini")
WRITE = "instruction/write_splits.py"


def load(path, **settings):
    return load_splits(DataSettings(data=str(path), **settings), Template(), ENCODING, 1)


def rows_of(path, **settings):
    """All rows of all splits, in the order of their instruction's last word, a number."""
    rows = [row for _, frame in load(path, **settings).items() for row in frame.rows()]
    return sorted(rows, key=lambda row: (int(row[0].split()[-1]), len(row[1])))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def openai(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def sharegpt(*turns):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"conversations": [{"from": names[role], "value": text} for role, text in turns]}


def three_answers(number):
    return (("system", "Be brief."), ("user", f"Say {number}"), ("assistant", f"It is {number}."),
            ("user", f"Again {number}"), ("assistant", "As I said."),
            ("user", f"Thanks {number}"), ("assistant", "Bye."))  # fmt: skip


# ---- conversations


@pytest.mark.parametrize("kind", [openai, sharegpt])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_first_answer_of_a_conversation(tmp_path, kind, suffix):
    rows = [kind(*three_answers(number)) for number in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    if suffix == "parquet":
        path = tmp_path / "a.parquet"
        pl.DataFrame(rows).write_parquet(path)
    assert rows_of(path) == [(f"Be brief.\n\nSay {n}", "", f"It is {n}.") for n in range(20)]
    splits = load(path)
    assert [len(frame) for _, frame in splits.items()] == [16, 2, 2]
    assert splits.notes[-1] == (
        "conversations 20, system texts put before the instruction 20, turns left out (--turns all "
        "learns from them) 80"
    )


@pytest.mark.parametrize("kind", [openai, sharegpt])
def test_every_answer_with_what_came_before(tmp_path, kind):
    path = write(tmp_path / "a.jsonl", [kind(*three_answers(number)) for number in range(20)])
    expected = []
    for n in range(20):
        first = f"User: Say {n}\nAssistant: It is {n}."
        second = f"\nUser: Again {n}\nAssistant: As I said."
        expected += [(f"Be brief.\n\nSay {n}", "", f"It is {n}."),
                     (f"Be brief.\n\nAgain {n}", first, "As I said."),
                     (f"Be brief.\n\nThanks {n}", first + second, "Bye.")]  # fmt: skip
    assert rows_of(path, turns="all") == expected
    splits = load(path, turns="all")
    assert splits.notes[-1] == "conversations 20, system texts put before the instruction 20"
    assert [len(frame) for _, frame in splits.items()] == [48, 6, 6]
    conversations = [{row[0].split()[-1] for row in frame.rows()} for _, frame in splits.items()]
    assert [len(found) for found in conversations] == [16, 2, 2]  # none stands in two splits
    assert len(set.union(*conversations)) == 20


def test_the_answer_alone_is_learnt_and_ids_are_exact(tmp_path):
    path = write(tmp_path / "a.jsonl", [openai(*three_answers(number)) for number in range(20)])
    rows = load(path, turns="all").train.rows()
    dataset = InstructionDataset(rows, Template(), ENCODING, 512)
    for number, (instruction, before, answer) in enumerate(rows):
        tokens, targets = dataset[number]
        prompt = ENCODING.encode_ordinary(Template().prompt(instruction, before))
        response = [*ENCODING.encode_ordinary(answer), ENCODING.eot_token]
        assert tokens.tolist() == [*prompt, *response[:-1]]
        assert targets.tolist() == [IGNORE] * (len(prompt) - 1) + response


@pytest.mark.parametrize(
    "turns, first, every",
    [
        # a greeting comes before the question: no answer, but said
        ([("assistant", "Hello."), ("user", "A 1"), ("assistant", "B")],
         ("A 1", "", "B"), [("A 1", "Assistant: Hello.", "B")]),
        # two messages of the user, and one without an answer at the end
        ([("user", "A"), ("user", "B 1"), ("assistant", "C"), ("user", "D")],
         ("A\n\nB 1", "", "C"), [("A\n\nB 1", "", "C")]),
        # the assistant calls a tool, which says nothing by itself, and answers then
        ([("user", "A 1"), ("assistant", "ask B"), ("tool", "C"), ("assistant", "D")],
         ("A 1", "", "ask B"),
         [("A 1", "", "ask B"), ("A 1", "Assistant: ask B\nTool: C", "D")]),
        # instructions of the system may come late
        ([("user", "A 1"), ("assistant", "B"), ("developer", "S"), ("user", "C 1"),
          ("assistant", "D")],
         ("A 1", "", "B"), [("A 1", "", "B"), ("S\n\nC 1", "User: A 1\nAssistant: B", "D")]),
        # OpenAI's list of parts
        ([("user", [{"type": "text", "text": "A"}, {"type": "text", "text": "B 1"}]),
          ("assistant", " C ")], ("A\nB 1", "", "C"), [("A\nB 1", "", "C")]),
    ],
    ids=["greeting", "several messages", "tool", "late system", "parts"],
)  # fmt: skip
def test_conversations_of_every_shape(tmp_path, turns, first, every):
    others = [openai(*three_answers(number)) for number in range(100, 120)]
    path = write(tmp_path / "a.jsonl", [openai(*turns), *others])
    assert rows_of(path)[0] == first
    assert rows_of(path, turns="all")[: len(every)] == every


def test_an_answer_of_weight_0_is_not_learnt(tmp_path):
    rows = [openai(*three_answers(number)) for number in range(20)]
    for row in rows:
        row["messages"][2]["weight"] = 0
        row["messages"][4]["weight"] = 1
    path = write(tmp_path / "a.jsonl", rows)
    assert rows_of(path)[0] == ("Be brief.\n\nAgain 0", "", "As I said.")
    assert len(rows_of(path, turns="all")) == 40


def test_conversations_without_question_or_answer_are_counted(tmp_path):
    rows = [openai(*three_answers(number)) for number in range(20)]
    rows += [openai(("user", "alone")), openai(("assistant", "alone")), {"messages": []},
             {"messages": None}, openai(("user", "call 7"), ("assistant", None))]  # fmt: skip
    path = write(tmp_path / "a.jsonl", rows)
    for turns in ("first", "all"):
        removed = load(path, turns=turns).removed
        assert removed | {"empty instruction": 3, "empty output": 2} == removed


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": "hello"}, "row 2: the conversation is str, not a list of turns"),
        ({"messages": ["hello"]}, "row 2: turn 1 has no `role` and `content`, nor `from`"),
        ({"messages": [{"content": "x"}]}, "row 2: turn 1 has no `role` and `content`"),
        (openai(("user", "x"), ("narrator", "y")), "row 2: turn 2 is by 'narrator', but must be"),
        (openai(("user", 7)), "row 2: turn 1 is int, not text"),
        (openai(("user", [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}])),
         "row 2: turn 1 has a part that is 'image_url'; only text can be learnt"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_with_its_row(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", [openai(*three_answers(0)), row])
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_too_few_conversations_are_no_rows_to_split(tmp_path):
    path = write(tmp_path / "a.jsonl", [openai(*three_answers(number)) for number in range(9)])
    with pytest.raises(UserError, match="9 usable conversations are left, at least 10 are needed"):
        load(path, turns="all")


def test_all_turns_of_a_file_without_conversations_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "x", "output": "y"}])
    with pytest.raises(UserError, match=r"--turns all is for conversations.* instruction, output"):
        load(path, turns="all")


# ---- columns


@pytest.mark.parametrize(
    "instruction, text, output",
    [
        ("prompt", None, "completion"),
        ("question", None, "answer"),
        ("question", None, "response"),
        ("instruction", None, "response"),
        ("instruction", "context", "response"),
        ("Question", "Context", "Answer"),
        ("prompt", "input", "output"),
    ],
)
def test_columns_are_found_and_said(tmp_path, instruction, text, output):
    rows = [{"id": n, instruction: f"Say {n}", output: f"It is {n}"} for n in range(20)]
    if text:
        rows = [row | {text: "here"} for row in rows]
    path = write(tmp_path / "a.jsonl", rows)
    assert rows_of(path) == [(f"Say {n}", "here" if text else "", f"It is {n}") for n in range(20)]
    names = [f"{instruction} as instruction", f"{output} as output"]
    names[1:1] = [f"{text} as input"] if text else []
    assert f"{path}: {', '.join(names)}" in load(path).notes


def test_the_columns_that_were_found_are_those_that_a_run_keeps(tmp_path):
    """respond.py and evaluate.py read the same columns of other files."""
    rows = [{"question": f"Say {i}", "answer": f"It is {i}"} for i in range(20)]
    splits = load(write(tmp_path / "a.jsonl", rows))
    assert splits.columns["instruction_column"] == "question"
    assert splits.columns["output_column"] == "answer"


def test_named_and_default_columns_are_not_guessed_about(tmp_path):
    row = {"instruction": "i", "output": "o", "prompt": "p", "completion": "c", "messages": []}
    path = write(tmp_path / "a.jsonl", [row | {"instruction": f"i {n}"} for n in range(20)])
    assert rows_of(path)[0] == ("i 0", "", "o") and len(load(path).notes) == 1
    del row["instruction"], row["messages"]
    path = write(tmp_path / "a.jsonl", [row | {"prompt": f"p {n}"} for n in range(20)])
    with pytest.raises(UserError, match="may be prompt, the input none, the answer output or comp"):
        load(path)
    named = {"instruction_column": "prompt", "output_column": "completion"}
    assert rows_of(path, **named)[0] == ("p 0", "", "c")
    with pytest.raises(UserError, match="no field 'nope'"):
        load(path, instruction_column="nope")


def test_write_splits_says_what_it_read(tmp_path, call_script):
    path = write(tmp_path / "a.jsonl", [sharegpt(*three_answers(number)) for number in range(20)])
    done = call_script(WRITE, "--data", path, "--out", "out")
    assert (
        done.returncode == 0 and "turns left out (--turns all learns from them) 80" in done.stdout
    )
    done = call_script(WRITE, "--data", path, "--out", "all", "--turns", "all")
    lines = (tmp_path / "all/train.jsonl").read_text().splitlines()
    assert len(lines) == 48 and set(json.loads(lines[0])) == {"instruction", "input", "output"}


# ---- instructions of the hub


def test_instructions_of_the_hub_keep_their_splits(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)

    def content(start, count):
        rows = [
            openai(("user", f"Say {n}"), ("assistant", "ok")) for n in range(start, start + count)
        ]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    files = {"data/train-0.jsonl": content(0, 20), "data/train-1.jsonl": content(20, 20),
             "data/test-0.jsonl": content(39, 6)}  # fmt: skip
    with SmallHub("me/chat", "3" * 40, files) as hub:
        turn_client_to(hub, monkeypatch)
        splits = load("me/chat", turns="all")
        with pytest.raises(UserError, match="me/typo: no such file or folder here, and the hub"):
            load("me/typo")
    assert sorted(row[0] for row in splits.test.rows()) == [f"Say {n}" for n in range(39, 45)]
    assert len(splits.validation) == 4 and len(splits.train) == 35
    assert splits.removed["duplicate"] == 1  # the test split keeps what stands in both
    assert splits.revision == "3" * 40 and splits.name == "chat"
    assert f"commit {'3' * 40}" in splits.notes[0]
