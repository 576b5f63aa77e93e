"""What the rows of instruction data mean: which columns are what, and conversations as rows.

A conversation is a list of turns in one column: OpenAI's `messages`, [{"role": "user", "content":
"..."}], or ShareGPT's `conversations`, [{"from": "human", "value": "..."}]. Each answer that is
learnt is one row: the turn before it is the instruction, and what came before that, if it is
wanted, the input:

    User: Name a colour.
    Assistant: Red.

System texts stand before the instruction, because the answer depends on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.support.errors import UserError

COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}

# Names of columns that are found by themselves, whatever their case.
_CONVERSATIONS = ("messages", "conversations", "conversation")
_INSTRUCTIONS = ("instruction", "prompt", "question", "query")
_INPUTS = ("input", "context")
_OUTPUTS = ("output", "response", "completion", "answer")

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip


@dataclass
class Turn:
    """What one side has said. `learnt` is false for answers that OpenAI's format weighs with 0."""

    role: str  # system, user, assistant or tool
    text: str
    learnt: bool = True


def find_columns(
    path: Path, known: Sequence[str], wanted: dict[str, str], notes: list[str]
) -> dict[str, str]:
    """The columns of instruction, input and output among those that the file has, `known`.

    They are `wanted`, unless these are the default names, the file lacks them and it has others
    whose meaning is clear; then `notes` tells which. Raises UserError if several could be meant.
    """
    if wanted != COLUMNS or {"instruction", "output"} <= set(known):
        return wanted
    instructions, inputs, outputs = (
        [name for name in known if name.lower() in names]
        for names in (_INSTRUCTIONS, _INPUTS, _OUTPUTS)
    )
    if not instructions or not outputs:
        return wanted
    if max(len(instructions), len(inputs), len(outputs)) > 1:
        raise UserError(
            f"{path}: the instruction may be {' or '.join(instructions)}, the input "
            f"{' or '.join(inputs) or 'none'}, the answer {' or '.join(outputs)}; say which with "
            "--instruction-column, --input-column and --output-column"
        )
    found = {"instruction": instructions[0], "input": "input", "output": outputs[0]}
    if inputs:
        found["input"] = inputs[0]
    named = [f"{name} as {column}" for column, name in found.items() if name in known]
    notes.append(f"{path}: {', '.join(named)}")
    return found


def find_conversations(known: Sequence[str], wanted: dict[str, str]) -> str | None:
    """The column with conversations, if rows are to be read from one: no column was named and
    there are none of the default names."""
    if wanted != COLUMNS or {"instruction", "output"} <= set(known):
        return None
    return next((name for name in known if name.lower() in _CONVERSATIONS), None)


def conversation_rows(
    path: Path, rows: Sequence[dict[str, Any]], column: str, turns: str, read: Counter[str]
) -> tuple[list[dict[str, str]], list[int]]:
    """Rows with `instruction`, `input` and `output` from the conversations in `column`, and for
    each the number of its conversation. `turns` says which answers become rows: the "first" of a
    conversation, without what else was said, or "all", each with what was said before.

    `read` counts what was read and what was left out. A conversation without a question and its
    answer becomes one row that lacks them. Raises UserError, with the row, for what is no
    conversation.
    """
    found: list[dict[str, str]] = []
    conversations: list[int] = []
    for number, row in enumerate(rows, start=1):
        said = _turns(f"{path}: row {number}", row.get(column))
        answers = [
            place
            for place, turn in enumerate(said)
            if turn.role == "assistant"
            and turn.learnt
            and any(before.role == "user" for before in said[:place])
        ]
        if turns == "first":
            answers = answers[:1]
        made = [_row(said, place, with_earlier=turns == "all") for place in answers]
        if not made:
            question = next((turn.text for turn in said if turn.role == "user"), "")
            made = [{"instruction": question, "input": "", "output": ""}]
        found += made
        conversations += [number] * len(made)

        read["conversations"] += 1
        if answers:
            last = answers[-1]
            spoken = [place for place, turn in enumerate(said) if turn.role != "system"]
            read["system texts put before the instruction"] += any(
                turn.role == "system" for turn in said[:last]
            )
            if turns == "first":
                read["turns left out (--turns all learns from them)"] += len(spoken) - 2
            else:
                read["turns after the last answer left out"] += sum(p > last for p in spoken)
    return found, conversations


def _row(said: list[Turn], place: int, with_earlier: bool) -> dict[str, str]:
    """The answer at `place` and what it answers, the last thing that the user said before."""
    before = said[:place]
    asked = max(number for number, turn in enumerate(before) if turn.role == "user")
    system = [turn.text for turn in before if turn.role == "system"]
    earlier = [
        f"{turn.role.capitalize()}: {turn.text}"
        for number, turn in enumerate(before)
        if number != asked and turn.role != "system" and turn.text
    ]
    return {
        "instruction": "\n\n".join([*system, before[asked].text]).strip(),
        "input": "\n".join(earlier) if with_earlier else "",
        "output": said[place].text,
    }


def _turns(where: str, conversation: Any) -> list[Turn]:
    """A conversation as it stands in a file, turn by turn. What the user says in several turns
    together is one turn."""
    if not isinstance(conversation, list | None):
        raise UserError(
            f"{where}: the conversation is {type(conversation).__name__}, not a list of turns"
        )
    said: list[Turn] = []
    for number, turn in enumerate(conversation or [], start=1):
        this = f"{where}: turn {number}"
        if not isinstance(turn, dict) or not (turn.get("role") or turn.get("from")):
            raise UserError(f"{this} has no `role` and `content`, nor `from` and `value`")
        name = turn.get("role") or turn.get("from")
        role = _ROLES.get(str(name).lower())
        if not role:
            raise UserError(f"{this} is by '{name}', but must be by {', '.join(_ROLES)}")
        text = _text(this, turn.get("content") if turn.get("role") else turn.get("value"))
        if role == "user" and said and said[-1].role == "user":
            said[-1].text += f"\n\n{text}"
        else:
            said.append(Turn(role, text, learnt=turn.get("weight") != 0))
    return said


def _text(where: str, content: Any) -> str:
    """The text of a turn: a string, or OpenAI's list of parts if all of them are text. None, as
    where the assistant only calls a tool, is empty."""
    if isinstance(content, str | None):
        return (content or "").strip()
    if not isinstance(content, list):
        raise UserError(f"{where} is {type(content).__name__}, not text")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UserError(f"{where} has a part that is '{kind}'; only text can be learnt")
        parts.append(text)
    return "\n".join(parts).strip()
