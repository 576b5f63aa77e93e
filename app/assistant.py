"""What the page has for instruction models: a conversation, before and after fine-tuning."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.models import Assistant, Log
from app.safely import limited, said_to_visitor
from gpt2.support.errors import UserError
from instruction.evaluation import AnswerSettings

Conversation = list[dict[str, Any]]  # {"role": "user" or "assistant", "content": text}


def assistant_page(assistants: list[Assistant], log: Log, most_characters: int) -> None:
    """Add the components and what they do to the gr.Blocks that is open."""
    most_tokens = min(assistant.model.config.n_positions for assistant in assistants)

    def converse(
        instruction: str, text: str, before: bool, temperature: float, top_p: float, length: float,
        seed: float, *conversations: Conversation,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """The box emptied once, Send off, and every conversation with one more turn that grows."""
        with said_to_visitor():
            limited(instruction, most_characters)
            limited(text, most_characters, may_be_empty=True)
            models = [*assistants, *(one.before() for one in assistants if before)]
            talks = [list(talk) for talk in conversations]
            sampling = _sampling(temperature, top_p, length, seed, most_tokens)
            answers = [
                _next_answer(model, talk, instruction.strip(), text.strip(), sampling, int(seed))
                for model, talk in zip(models, talks, strict=False)
            ]
            for talk in talks[: len(models)]:
                asked = f"{instruction.strip()}\n\n{text.strip()}".strip()
                talk += [_turn("user", asked), _turn("assistant", "")]
            yield ["", gr.Button(interactive=False), *talks]
            try:
                for pieces in itertools.zip_longest(*answers, fillvalue=""):
                    for talk, piece in zip(talks, pieces, strict=False):
                        talk[-1]["content"] += html.escape(piece)
                    # What is typed meanwhile stays.
                    yield [gr.skip(), gr.skip(), *talks]
            finally:
                for answer in answers:
                    answer.close()
                for model, talk in zip(models, talks, strict=False):
                    said = _text(talk[-1])
                    log.write(model.name, instruction=instruction, input=text, output=said)

    def respond(
        instruction: str, input: str = "", temperature: float = 0.0, top_p: float = 1.0,
        max_new_tokens: int = 128, seed: int = 1,
    ) -> Iterator[list[dict[str, str]]]:  # fmt: skip
        """The answer of each model to an instruction, longer each time."""
        with said_to_visitor():
            limited(instruction, most_characters)
            limited(input, most_characters, may_be_empty=True)
            sampling = _sampling(temperature, top_p, max_new_tokens, seed, most_tokens)
            found = [{"run": one.name, "answer": ""} for one in assistants]
            answers = [
                one.answer(one.prompt(instruction.strip(), input.strip()), sampling, int(seed))
                for one in assistants
            ]
            try:
                for pieces in itertools.zip_longest(*answers, fillvalue=""):
                    for one, piece in zip(found, pieces, strict=True):
                        one["answer"] += piece
                    yield found
            finally:
                for answer in answers:
                    answer.close()
                for one in found:
                    log.write(
                        one["run"], instruction=instruction, input=input, output=one["answer"]
                    )

    with gr.Row():
        talks = [_talk(assistant.name) for assistant in assistants]
        with gr.Column(visible=False) as beside:
            talks += [_talk(f"{assistant.name}, before fine-tuning") for assistant in assistants]
    instruction = gr.Textbox(
        "",
        label="Instruction",
        lines=2,
        max_lines=8,
        max_length=most_characters,
        elem_id="instruction",
    )
    with gr.Row():
        send = gr.Button("Send", variant="primary", elem_id="send", min_width=90)
        stop = gr.Button("Stop", elem_id="stop", min_width=90)
        clear = gr.Button("Clear", elem_id="clear", min_width=90)
    before = gr.Checkbox(
        label="The model before fine-tuning beside it", elem_id="before", container=False
    )
    with gr.Accordion("Input, and how an answer is chosen", open=False):
        text = gr.Textbox(
            "", label="Input: what the instruction is about, where it needs something", lines=2,
            max_length=most_characters,
        )  # fmt: skip
        temperature = gr.Slider(
            0, 2, value=0, step=0.1,
            label="Temperature: 0 takes the likeliest token each time; more is wilder",
        )  # fmt: skip
        top_p = gr.Slider(
            0.05, 1, value=1, step=0.05,
            label="Top-p: sample among the likeliest tokens with this probability together",
        )  # fmt: skip
        length = gr.Slider(
            1, most_tokens, value=min(128, most_tokens), step=1, label="Tokens of an answer at most"
        )
        seed = gr.Number(1, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
    with gr.Accordion("The template that the model sees", open=False):
        for assistant in assistants:
            template = assistant.template
            gr.Textbox(
                f"{template.without_input}\n\n---- or, with an input\n\n{template.with_input}",
                label=assistant.name, interactive=False, lines=6,
            )  # fmt: skip

    inputs = [instruction, text, before, temperature, top_p, length, seed, *talks]
    said = gr.on(
        [send.click, instruction.submit], converse, inputs, [instruction, send, *talks],
        api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    # Also after an error. An answer that is stopped has no `then`.
    said.then(_send_again, None, [send], api_visibility="private", show_progress="hidden")
    stop.click(_send_again, None, [send], cancels=[said], api_visibility="private")
    clear.click(
        lambda: [_send_again(), *([] for _ in talks)], None, [send, *talks], cancels=[said],
        api_visibility="private",
    )  # fmt: skip
    before.change(
        lambda on: gr.Column(visible=on), [before], [beside], api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip
    gr.api(respond, api_name="respond")


def _send_again() -> gr.Button:
    return gr.Button(interactive=True)


def _talk(name: str) -> gr.Chatbot:
    return gr.Chatbot(
        label=name, render_markdown=False, elem_classes="talk", height=380, min_width=260,
        feedback_options=None, buttons=[], layout="bubble",
    )  # fmt: skip


def _turn(role: str, text: str) -> dict[str, str]:
    # Gradio takes it for HTML; neither what a visitor nor what a model writes is markup.
    return {"role": role, "content": html.escape(text)}


def _next_answer(
    assistant: Assistant, talk: Conversation, instruction: str, text: str,
    sampling: AnswerSettings, seed: int,
) -> Iterator[str]:  # fmt: skip
    """The answer to the next instruction of a conversation, with the seed that respond.py has for
    it. Instructions stand for themselves, but where the run learnt from whole conversations: there
    what was said before is the input, as in training."""
    number = sum(turn["role"] == "user" for turn in talk)
    if assistant.recipe.settings["turns"] == "all" and not text:
        text = "\n".join(f"{turn['role'].capitalize()}: {_text(turn)}" for turn in talk)
    return assistant.answer(assistant.prompt(instruction, text), sampling, seed + number)


def _text(turn: dict[str, Any]) -> str:
    """What was said in a turn, of which Gradio sends back a list of parts, or a text."""
    content = turn["content"]
    parts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return html.unescape("".join(parts))


def _sampling(
    temperature: float, top_p: float, length: float, seed: float, most: int
) -> AnswerSettings:
    """Raises UserError for what the sliders do not allow; the API has none."""
    numbers = (temperature, top_p, length, seed)
    if not all(isinstance(number, int | float) for number in numbers):
        raise UserError("temperature, top-p, the length and the seed must be numbers")
    if not (0 <= temperature <= 2 and 0 < top_p <= 1 and 1 <= length <= most):
        raise UserError(
            f"temperature must be 0 to 2, top-p above 0 and at most 1, the length 1 to {most}"
        )
    if not 0 <= seed < 2**32:
        raise UserError("the seed must be 0 to 4,294,967,295")
    return AnswerSettings(int(length), float(temperature), top_p=float(top_p))
