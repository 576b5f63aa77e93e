"""How good are generated answers? The loss is in gpt2/language_modelling.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tiktoken

from gpt2.batching import map_batches, sorted_batches
from gpt2.generation import SamplingSettings, generate
from gpt2.model import GPT2
from gpt2.support.device import autocast
from gpt2.support.distributed import sharded
from gpt2.support.flags import flag
from instruction.tasks import TASKS, words
from instruction.template import Template


@dataclass
class AnswerSettings(SamplingSettings):
    """Generation"""

    # At their likeliest token, small models go round in circles until the last token allowed; with
    # 1.2 nearly all answers end (docs/instruction-tuning.md#answers-that-end).
    repetition_penalty: float = flag(
        1.2, "above 1, tokens that stand in the answer already become less likely, so that it ends "
        "instead of going round in circles; 1 changes nothing", at_least=0.01, at_most=100,
    )  # fmt: skip


@dataclass
class Answer:
    """A generated answer: its text without <|endoftext|>, and whether it ended by itself."""

    text: str
    ended: bool


def answer_prompts(
    model: GPT2,
    encoding: tiktoken.Encoding,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    batch_size: int,
    precision: str,
    seed: int = 0,
    desc: str = "",
) -> list[Answer]:
    """An answer to each prompt (token ids), in order. Prompts of similar length share a batch;
    prompt i samples with `seed` + i, whichever batch it is in."""
    device = next(model.parameters()).device
    batches = sorted_batches([len(prompt) for prompt in prompts], batch_size)

    def answers_to(rows: list[int]) -> list[Answer]:
        with autocast(device, precision):
            generated = generate(
                model,
                [prompts[row] for row in rows],
                settings,
                encoding.eot_token,
                [seed + row for row in rows],
            )
        return [_read_answer(tokens, encoding) for tokens in generated]

    # A sharded model generates together, and answers differ in length: all answer all.
    found = map_batches(answers_to, batches, desc, together=sharded(model))
    answers = {
        row: answer
        for rows, of_batch in zip(batches, found, strict=True)
        for row, answer in zip(rows, of_batch, strict=True)
    }
    return [answers[row] for row in range(len(prompts))]


def _read_answer(tokens: list[int], encoding: tiktoken.Encoding) -> Answer:
    ended = tokens[-1:] == [encoding.eot_token]
    return Answer(encoding.decode(tokens[: len(tokens) - ended]).strip(), ended)


class _Words:
    """What ROUGE compares: words of letters and digits, in lower case, not stemmed. In English they
    are those of rouge-score's own tokenizer, which loses every letter that English does not have.
    """

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """How many words (`rouge_1`), pairs of words (`rouge_2`) and words in the same order
    (`rouge_l`) answers share with their references: the mean F1 over all, 0 to 1. Nothing, if the
    package rouge-score is not installed.

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # an extra, and slow to import
    except ImportError:
        return {}
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())
    scores = [scorer.score(*pair) for pair in zip(references, answers, strict=True)]
    keys = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    return {
        key: sum(score[theirs].fmeasure for score in scores) / len(scores)
        for key, theirs in keys.items()
    }


def first_sentences(text: str, count: int = 3) -> str:
    """The first `count` sentences of a text: in news hard to beat as a summary (Nallapati et al.
    2017, "SummaRuNNer", section 4).

    >>> first_sentences("It rained. 2.5 cm fell! Why? Nobody knows.")
    'It rained. 2.5 cm fell! Why?'
    """
    return " ".join(re.split(r"(?<=[.!?])\s+|\n+", text.strip())[:count])


# The same piece of text four times in a row or more. Pieces that begin like a drawn line ("-----",
# "____") or a table's border are none.
_REPEATED = re.compile(r"([^\s\-_=.*#~+|:].{0,59}?)\1{3,}", re.DOTALL)


def loops(text: str) -> bool:
    """Whether the text repeats itself without end: a piece of it four times in a row, 12 characters
    together or more; or fewer than 60 % distinct ones among 10 runs of three words or more.

    The bounds are such that hardly any of Alpaca's own outputs loops.

    >>> loops("and so on " * 4), loops("8" * 12), loops("one two three four")
    (True, True, False)
    """
    found = words(text)
    triples = list(zip(found, found[1:], found[2:], strict=False))
    if len(triples) >= 10 and len(set(triples)) < 0.6 * len(triples):
        return True
    return any(len(repeated[0]) >= 12 for repeated in _REPEATED.finditer(text))


def well_formed(answer: Answer, template: Template) -> bool:
    """Ends by itself, is not empty, repeats no heading of the template and does not loop."""
    return (
        answer.ended
        and bool(answer.text)
        and not any(heading in answer.text for heading in template.headings())
        and not loops(answer.text)
    )


def answer_metrics(
    answers: Sequence[Answer], references: Sequence[str], template: Template
) -> dict[str, float]:
    """Means over all answers: ROUGE, if it can be had, the share that ends by itself, the share
    that is well formed and the shares of what else can go wrong."""
    count = len(answers)
    headings = template.headings()
    return rouge([answer.text for answer in answers], references) | {
        "ends_with_eos": sum(answer.ended for answer in answers) / count,
        "empty": sum(not answer.text for answer in answers) / count,
        "repeats_template": sum(any(h in answer.text for h in headings) for answer in answers)
        / count,
        "loops": sum(loops(answer.text) for answer in answers) / count,
        "format_adherence": sum(well_formed(answer, template) for answer in answers) / count,
    }


def task_prompts(encoding: tiktoken.Encoding, template: Template) -> list[list[int]]:
    """The token ids of each of `TASKS`, in their order."""
    return [
        encoding.encode_ordinary(template.prompt(task.instruction, task.input)) for task in TASKS
    ]


def judge_tasks(answers: Sequence[Answer]) -> list[bool]:
    """Whether each of `TASKS` is solved by its answer."""
    return [task.solved_by(answer.text) for task, answer in zip(TASKS, answers, strict=True)]


def task_metrics(solved: Sequence[bool]) -> dict[str, float | dict[str, float]]:
    """The share of `TASKS` that are solved, and the share by kind."""
    by_kind: dict[str, list[bool]] = {}
    for task, success in zip(TASKS, solved, strict=True):
        by_kind.setdefault(task.kind, []).append(success)
    return {
        "task_success": sum(solved) / len(solved),
        "task_success_by_kind": {kind: sum(s) / len(s) for kind, s in by_kind.items()},
    }
