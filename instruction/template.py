"""The prompt in which the model was taught to answer: Alpaca's template, kept in this one place.

Taori et al. 2023, "Stanford Alpaca: An Instruction-following LLaMA Model". A checkpoint carries the
template that it was trained with, so that answering never uses another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """Two texts with the placeholders {instruction} and {input}; the answer follows them.

    Raises ValueError if a placeholder is missing.
    """

    with_input: str = (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    )
    without_input: str = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    )

    def __post_init__(self) -> None:
        for text, names in ((self.with_input, ("instruction", "input")),
                            (self.without_input, ("instruction",))):  # fmt: skip
            for name in names:
                if f"{{{name}}}" not in text:
                    raise ValueError(f"the template lacks {{{name}}}: {text!r}")

    def prompt(self, instruction: str, input: str = "") -> str:
        """The text before the answer.

        >>> Template(without_input="Q: {instruction} A: ").prompt("How are {you}?")
        'Q: How are {you}? A: '
        """
        values = {"{instruction}": instruction, "{input}": input}
        # Both in one pass, and not by str.format: instructions contain braces themselves.
        return re.sub(
            r"\{instruction\}|\{input\}",
            lambda placeholder: values[placeholder[0]],
            self.with_input if input else self.without_input,
        )

    def headings(self) -> list[str]:
        """The lines that an answer must not repeat."""
        return sorted(
            {
                line
                for text in (self.with_input, self.without_input)
                for line in text.splitlines()
                if line.startswith("#")
            }
        )
