"""The prompt in which the model was taught to answer: Alpaca's template, kept in this one place.

Taori et al. 2023, "Stanford Alpaca: An Instruction-following LLaMA Model". A checkpoint carries the
template that it was trained with, so that answering never uses another.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """Two texts with the placeholders {instruction} and {input}; the answer follows them."""

    with_input: str = (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    )
    without_input: str = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    )

    def prompt(self, instruction: str, input: str = "") -> str:
        """The text before the answer.

        >>> Template(without_input="Q: {instruction} A: ").prompt("How are {you}?")
        'Q: How are {you}? A: '
        """
        # replace, not format: instructions contain braces
        if not input:
            return self.without_input.replace("{instruction}", instruction)
        before, after = self.with_input.split("{input}")
        return before.replace("{instruction}", instruction) + input + after

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
