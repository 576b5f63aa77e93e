"""A page to try fine-tuned models, and an address to call them.

    python app/page.py RUN
    python app/page.py RUN RUN               # the same input through both, side by side
    python app/page.py RUN --log requests.jsonl

A classifier gets texts and tables, an instruction model a conversation. The page is for this
machine alone unless --host says otherwise, needs no network, and keeps nothing that is typed unless
--log says where. Ctrl-C ends it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import html
import signal
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.models import Assistant, Classifier, Log, load_models
from gpt2.support.device import DeviceSettings
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script

_AT_ONCE = 8  # requests that are worked on together, in turns; the others wait

# One column on a telephone, as many as fit elsewhere. Colours come from Gradio's theme, which
# follows the browser's light or dark.
_STYLE = """
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)) }
.cards section { border: 1px solid var(--border-color-primary); border-radius: .5rem;
    padding: .75rem 1rem; overflow-wrap: anywhere; min-width: 0 }
.cards h3 { margin: 0 0 .5rem; font-size: 1.1rem }
.cards p { margin: .5rem 0 }
.cards .note { font-size: .9rem; opacity: .8 }
.cards .words { line-height: 1.8 }
.cards .words span { border-radius: .2rem; padding: .1rem 0 }
.cards table, .cards tr, .cards th, .cards td { border: none !important; background: none }
.cards table { width: 100%; table-layout: auto; margin: 0 }
.cards th, .cards td { padding: .15rem .6rem .15rem 0; font-weight: normal; text-align: left }
.cards th { white-space: nowrap; max-width: 9rem; overflow: hidden; text-overflow: ellipsis }
.cards td:nth-child(2) { width: 100% }
.cards td:last-child { text-align: right; white-space: nowrap; padding-right: 0 }
.cards .chosen th, .cards .chosen td { font-weight: bold }
.bar { height: .9rem; min-width: 2px; border-radius: .2rem; background: var(--color-accent) }
#labelled .empty { min-height: 5rem !important }
footer .divider { display: none !important }
"""


@dataclass
class PageSettings:
    """Page"""

    host: str = flag(
        "127.0.0.1", "address that the page is at; 0.0.0.0 lets everybody in who reaches this "
        "machine: there is no password",
    )  # fmt: skip
    port: int = flag(0, "left out, the first free one from 7860 on", at_least=1, at_most=65535)
    log: str = flag("", "append every input and its answer to this file, as JSON Lines")
    max_characters: int = flag(10_000, "length of a text at most", at_least=1)
    max_file_mb: int = flag(20, "megabytes of a table at most", at_least=1)
    waiting: int = flag(
        64, "requests that may wait; who comes after them is asked to try again", at_least=1
    )
    batch_size: int = flag(
        16, "texts at once; somebody else's text waits for one batch of a table", at_least=1
    )


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "runs", metavar="RUN", nargs="+", type=Path,
            help="run folders of train_gpt.py and instruction_finetuning.py",
        )  # fmt: skip

    settings, on, arguments = parse_flags(
        [PageSettings, DeviceSettings],
        "A page to try fine-tuned models, and an address to call them.",
        add_arguments=add_arguments,
    )
    classifiers, assistants = load_models(arguments.runs, on, settings.batch_size)
    with tempfile.TemporaryDirectory(prefix="gpt2-page-") as folder:
        # Ctrl-C, `kill` and a closed terminal alike end the block, and what was uploaded goes with
        # the folder.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # Windows has no SIGHUP, and under nohup it is ignored.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        page = start_page(classifiers, assistants, settings, folder)
        who = "this machine alone; --host lets others in"
        if settings.host not in ("127.0.0.1", "localhost", "::1"):
            who = "everybody who reaches this machine; there is no password"
        kept = f"appended to {settings.log}" if settings.log else "not kept; --log keeps it"
        print(f"the page: {page.local_url}\n  who may see it: {who}\n  what is typed: {kept}")
        print("  Ctrl-C ends it")
        with suppress(KeyboardInterrupt):
            wait(folder)
        page.close(verbose=False)


def wait(folder: str) -> None:
    """Until a signal comes; meanwhile old tables go."""
    while True:
        time.sleep(60)
        remove_old(folder)


def remove_old(folder: str, seconds: float = 900) -> None:
    """Remove what nobody has written to for so long: uploads and labelled tables."""
    for file in Path(folder).rglob("*"):
        with suppress(OSError):  # gone in this moment
            if file.is_file() and time.time() - file.stat().st_mtime > seconds:
                file.unlink()


def start_page(
    classifiers: list[Classifier],
    assistants: list[Assistant],
    settings: PageSettings,
    folder: str,
) -> Any:
    """Serve the page from threads of its own; returns the gr.Blocks. Uploads and labelled tables
    lie in `folder`. Raises UserError if gradio is not installed or the address
    cannot be used."""
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        import gradio as gr
    except ModuleNotFoundError:
        raise UserError("the page needs gradio: pip install -e '.[app]'") from None
    from app.assistant import assistant_page
    from app.classifier import classifier_page

    log = Log(Path(settings.log) if settings.log else None)
    names = ", ".join(one.name for one in (*classifiers, *assistants))
    with gr.Blocks(title=names, analytics_enabled=False) as page:
        gr.HTML(_about(classifiers, assistants, settings))
        with gr.Tabs():
            if classifiers:
                with gr.Tab("Classify"):
                    classifier_page(classifiers, log, settings.max_characters)
            if assistants:
                with gr.Tab("Converse"):
                    assistant_page(assistants, log, settings.max_characters)
    page.queue(max_size=settings.waiting, default_concurrency_limit=_AT_ONCE, api_open=False)
    _check_address(settings.host, settings.port)
    system = ["system-ui", "sans-serif"]  # Gradio's own fonts come from Google
    page.launch(
        # in brackets, as in an address of the web
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
        server_port=settings.port or None, share=False,
        prevent_thread_lock=True, quiet=True, show_error=True, run_history=False, ssr_mode=False,
        footer_links=["api"], max_file_size=f"{settings.max_file_mb}mb", css=_STYLE,
        theme=gr.themes.Default(primary_hue="blue", font=system, font_mono=["monospace"]),
    )  # fmt: skip
    return page


def _about(
    classifiers: list[Classifier], assistants: list[Assistant], settings: PageSettings
) -> str:
    names = ", ".join(one.name for one in (*classifiers, *assistants))
    kept = "Inputs and answers are logged." if settings.log else "Nothing that you type is kept."
    alone = ""
    if any(one.recipe.settings["turns"] == "first" for one in assistants):
        alone = " Each instruction stands for itself, as in training."
    return f"<h2>{html.escape(names)}</h2><p>{kept}{alone}</p>"


def _check_address(host: str, port: int) -> None:
    """Raises UserError unless the page can be at `host` and `port`; 0 is any free one."""
    named = f"--host {host} --port {port}" if port else f"--host {host}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a machine, such as "a..b"
        reason = getattr(error, "strerror", None) or "no such name"
        raise UserError(f"{named}: cannot be used ({reason}); name another") from None


if __name__ == "__main__":
    run_script(main)
