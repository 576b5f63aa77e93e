"""Instructions whose answers a program can judge: did the model do what it was told?

Each task is an instruction, an input (often none) and a check of the answer. A check asks for what
the instruction asks for, not for one wording.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """`kind` is the heading under which its success is reported."""

    kind: str
    instruction: str
    input: str
    check: Callable[[str], bool]

    def solved_by(self, answer: str) -> bool:
        """Whether `answer` passes the check. Saying the question again is no answer, though it may
        have the right word in it."""
        return answer.strip() not in (self.instruction, self.input) and self.check(answer)


def words(answer: str) -> list[str]:
    """The words of an answer in lower case.

    >>> words("No, it isn't.")
    ['no', 'it', "isn't"]
    """
    return re.findall(r"[\w']+", answer.lower())


def says(expected: str) -> Callable[[str], bool]:
    """The answer's first word is `expected` (a yes, a no, one of two classes)."""
    return lambda answer: words(answer)[:1] == [expected]


def contains(*expected: str) -> Callable[[str], bool]:
    """All of these words stand in the answer."""
    return lambda answer: set(expected) <= set(words(answer))


def chooses(expected: str, *others: str) -> Callable[[str], bool]:
    """The answer has the word `expected` and none of the `others`."""
    return lambda answer: expected in words(answer) and not set(others) & set(words(answer))


def number(expected: int) -> Callable[[str], bool]:
    """`expected` is the last number in the answer: "3 + 4 = 7" answers 7. The numbers of a list's
    entries do not count, or every list of five answers 5."""

    def check(answer: str) -> bool:
        answer = re.sub(r"^\s*\d+[.)]\s+(?=\S)", "", answer, flags=re.MULTILINE)
        numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == expected

    return check


def upper_case(*expected: str) -> Callable[[str], bool]:
    """These words, and not one lower-case letter."""
    return lambda answer: answer.isupper() and contains(*expected)(answer)


def lower_case(*expected: str) -> Callable[[str], bool]:
    """These words, and not one capital."""
    return lambda answer: answer.islower() and contains(*expected)(answer)


def list_of(count: int) -> Callable[[str], bool]:
    """A list of `count` entries, all different: numbered, bulleted, one a line, or by commas."""

    def check(answer: str) -> bool:
        numbered = re.split(r"(?:^|\s)\d+[.)](?!\d)", answer)[1:]
        bulleted = re.split(r"(?m)^\s*[-*•]", answer)[1:]
        lines = answer.strip().splitlines()
        if len(numbered) > 1 or len(bulleted) > 1:
            entries = max(numbered, bulleted, key=len)
        elif len(lines) > 1:
            entries = lines
        else:
            entries = re.split(r",\s*(?:and\b)?|\s+and\b", answer)
        found = [" ".join(words(entry)) for entry in entries if words(entry)]
        return len(found) == len(set(found)) == count

    return check


def json_object(**expected: object) -> Callable[[str], bool]:
    """Valid JSON: an object with these keys and values; None takes any value."""

    def check(answer: str) -> bool:
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and all(
            key in found and (value is None or str(found[key]).lower() == str(value).lower())
            for key, value in expected.items()
        )

    return check


def one_sentence(answer: str) -> bool:
    """Three words or more, and a full stop, exclamation or question mark at the end only."""
    ends = [found.end() for found in re.finditer(r"[.!?]+(?=\s|$)", answer.strip())]
    return len(words(answer)) >= 3 and ends == [len(answer.strip())]


TASKS = [
    # --- a yes or a no
    Task("yes or no", "Is ice colder than boiling water? Answer yes or no.", "", says("yes")),
    Task("yes or no", "Can a fish ride a bicycle to school? Answer yes or no.", "", says("no")),
    Task("yes or no", "Answer with yes or no: do birds have feathers?", "", says("yes")),
    Task("yes or no", "Answer with yes or no: is the sun a planet?", "", says("no")),
    Task("yes or no", "Does the sentence mention an animal? Reply yes or no.",
         "The cat slept on the warm window sill.", says("yes")),
    Task("yes or no", "Does the sentence mention a colour? Reply yes or no.",
         "He walked to the station in the rain.", says("no")),
    # --- one of two classes
    Task("classification", "Is this review positive or negative?",
         "A wonderful film, I loved every minute of it.", chooses("positive", "negative")),
    Task("classification", "Is this review positive or negative?",
         "A boring, badly acted waste of time.", chooses("negative", "positive")),
    Task("classification", "Classify the sentiment as positive or negative.",
         "The food was cold and the waiter was rude.", chooses("negative", "positive")),
    Task("classification", "Classify the animal as a bird or a mammal.", "eagle",
         chooses("bird", "mammal")),
    Task("classification", "Classify the word as a fruit or a vegetable.", "banana",
         chooses("fruit", "vegetable")),
    Task("classification", "Which word does not belong with the others?",
         "apple, pear, hammer, plum", chooses("hammer", "apple", "pear", "plum")),
    # --- a number
    Task("number", "What is 3 + 4?", "", number(7)),
    Task("number", "What is 10 minus 6?", "", number(4)),
    Task("number", "Multiply 5 by 6.", "", number(30)),
    Task("number", "How many days are there in a week?", "", number(7)),
    Task("number", "Anna has 2 apples and buys 3 more. How many has she now?", "", number(5)),
    Task("number", "Write the number twelve in digits.", "", number(12)),
    # --- a count of items
    Task("count of items", "How many words are in this sentence?", "Dogs bark at night.",
         number(4)),
    Task("count of items", "How many items are in this list?", "pen, book, lamp", number(3)),
    Task("count of items", "How many letters has the word 'cup'?", "", number(3)),
    Task("count of items", "Count the names.", "Emma, Paul, Lucy, Omar, Ines", number(5)),
    # --- a word to include
    Task("include a word", "Write a sentence that contains the word 'river'.", "",
         contains("river")),
    Task("include a word", "Write a sentence about winter with the word 'snow' in it.", "",
         contains("snow")),
    Task("include a word", "Use the word 'garden' in a short sentence.", "", contains("garden")),
    Task("include a word", "Write a sentence with the words 'dog' and 'ball'.", "",
         contains("dog", "ball")),
    Task("include a word", "Tell me about the moon. Use the word 'night'.", "", contains("night")),
    # --- something that stands in the text
    Task("extraction", "Which city is mentioned in the text?",
         "Last summer Maria travelled to Paris with her sister.", contains("paris")),
    Task("extraction", "What is the name of the person in the text?",
         "Thomas repaired the old clock in the tower.", contains("thomas")),
    Task("extraction", "Which colour is the car?", "They bought a green car and drove north.",
         contains("green")),
    Task("extraction", "On which day is the meeting?", "The meeting is on Tuesday at nine.",
         contains("tuesday")),
    Task("extraction", "Name the country in the text.", "She grew up on a farm in Norway.",
         contains("norway")),
    # --- upper and lower case
    Task("case", "Write this sentence in upper case letters.", "please close the door",
         upper_case("please", "close", "the", "door")),
    Task("case", "Rewrite the text in capital letters.", "good morning",
         upper_case("good", "morning")),
    Task("case", "Convert the text to lower case.", "THE TRAIN IS LATE",
         lower_case("the", "train", "is", "late")),
    Task("case", "Answer in capital letters only: say good night.", "",
         upper_case("good", "night")),
    # --- a list of N
    Task("list of N", "List three fruits.", "", list_of(3)),
    Task("list of N", "List five animals.", "", list_of(5)),
    Task("list of N", "Name four colours.", "", list_of(4)),
    Task("list of N", "Give me two tips for a healthy breakfast.", "", list_of(2)),
    Task("list of N", "Write down three things one needs for painting.", "", list_of(3)),
    # --- JSON
    Task("JSON", "Write a JSON object with the keys name and age.", "",
         json_object(name=None, age=None)),
    Task("JSON", "Return the city as JSON with the key city.", "Rome", json_object(city="Rome")),
    Task("JSON", "Give the answer as a JSON object with the key answer: what is 2 + 2?", "",
         json_object(answer=4)),
    # --- one sentence
    Task("one sentence", "Explain in one sentence what a bridge is.", "", one_sentence),
    Task("one sentence", "Describe the sea in one sentence.", "", one_sentence),
    Task("one sentence", "Say in one sentence why people sleep.", "", one_sentence),
]  # fmt: skip
