"""Between visitors and models: what is too long, and how a mistake is told."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from gpt2.support.device import out_of_memory
from gpt2.support.errors import UserError


@contextmanager
def said_to_visitor(table: str | None = None) -> Iterator[None]:
    """What a visitor did wrong is shown on the page, and nowhere else; of the path of his `table`,
    the name alone. Gradio takes the message for HTML, so what the visitor wrote must not be any;
    quotes may stay, for programs get the same message."""
    try:
        yield
    except UserError as error:
        folder = f"{Path(table).parent}/" if table else "\n"  # "\n" is in no message
        message = str(error).replace(folder, "")
        raise gr.Error(html.escape(message, quote=False), print_exception=False) from None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise gr.Error("out of memory; a shorter text needs less", print_exception=False) from None


def limited(text: str, most_characters: int, may_be_empty: bool = False) -> str:
    """`text`, if it is one, has something in it, and is not too long. Raises UserError."""
    if not isinstance(text, str):
        raise UserError("the text must be a string")  # a program has called
    if not text.strip() and not may_be_empty:
        raise UserError("the text is empty")
    if len(text) > most_characters:
        raise UserError(f"the text has {len(text):,} characters; {most_characters:,} are allowed")
    return text
