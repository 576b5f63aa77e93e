"""A page with two small models for tests, and a client that asks it as programs do."""

import contextlib
import importlib
import json
import socket
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import models as models_of_page
from app.page import PageSettings, start_page
from gpt2.support.device import DeviceSettings

_SMALL = "--model scratch --n-layer 1 --n-head 2 --n-embd 16 --max-train 32 --max-validation 8 "
_TRAIN = {
    "classification/train_gpt.py": _SMALL + "--max-test 12 --max-length 64 --max-steps 2 --out c",
    "instruction/instruction_finetuning.py": _SMALL + "--max-test 2 --max-length 256 --max-steps 1 "
    "--test-answers 1 --answer-tokens 2 --out i",
}


@contextlib.contextmanager
def page_of(folder, **settings):
    """The page of two runs, trained in a second each the first time; with its address, `runs`,
    `models`, and the `folder` of its uploads."""
    runs = _trained(folder.parent / "small runs")
    loaded = models(runs / "c", runs / "i")
    with socket.socket() as free:  # gradio finds the same one for two pages that start at once
        free.bind(("127.0.0.1", 0))
        settings["port"] = free.getsockname()[1]
    chosen = PageSettings(max_characters=2000, max_file_mb=1, batch_size=4, **settings)
    files = folder / "files"
    files.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(files))
        blocks = start_page(*loaded, chosen, str(files))
        url = blocks.local_url.rstrip("/")
        yield SimpleNamespace(
            url=url, runs=runs, models=loaded, folder=files, blocks=blocks,
            predict=models_of_page.predict,
        )  # fmt: skip
        blocks.close(verbose=False)


def _trained(folder):
    if folder.exists():
        return folder
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *given, **named: None)
        for script, flags in _TRAIN.items():
            patch.setattr(sys, "argv", [script, *flags.split()])
            importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
    return folder


def models(*runs):
    return models_of_page.load_models(list(runs), DeviceSettings(device="cpu"), batch_size=4)


def send(url, name, *data):
    """Ask the function `name`; returns the number under which the answer is."""
    request = urllib.request.Request(
        f"{url}/gradio_api/call/{name}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["event_id"]


def ask(url, name, *data):
    """The last answer of the function `name`. Raises RuntimeError for an error that it tells."""
    answer_at = f"{url}/gradio_api/call/{name}/{send(url, name, *data)}"
    with urllib.request.urlopen(answer_at, timeout=60) as response:
        event, found = "", None
        for line in response.read().decode().splitlines():
            kind, _, value = line.partition(": ")
            if kind == "event":
                event = value
            elif kind == "data" and event == "error":
                raise RuntimeError(value)
            elif kind == "data" and event in ("generating", "complete"):
                found = json.loads(value) or found
    return found[0]


def upload(url, file):
    """Send a file as a browser does; returns how to name it in a call."""
    boundary = uuid.uuid4().hex
    head = f'Content-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'
    body = (
        f"--{boundary}\r\n{head}".encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    )
    request = urllib.request.Request(
        f"{url}/gradio_api/upload",
        body,
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        (path,) = json.load(response)
    return {"path": path, "orig_name": Path(file).name, "meta": {"_type": "gradio.FileData"}}


@contextlib.contextmanager
def stop_after(assistant, seconds_a_token):
    """The model takes its time for each token; yields the list to which it adds one for each."""
    tokens, forward = [], assistant.model.hidden_states

    def slow(*given, **named):
        tokens.append(1)
        time.sleep(seconds_a_token)
        return forward(*given, **named)

    assistant.model.hidden_states = slow
    try:
        yield tokens
    finally:
        assistant.model.hidden_states = forward
