"""Nothing that has to do with printing or drawing ends a run."""

import io
import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY, refused

from gpt2.support.script import run_script as run_main

TRAIN = "classification/train_gpt.py"
PREDICT = "classification/predict.py"
TINY = ("--model", "scratch", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 8,
        "--max-steps", 1, "--max-length", 16, "--data", "cafes.csv")  # fmt: skip


@pytest.fixture(autouse=True)
def data(tmp_path):
    """Texts and labels with what ASCII does not have: é, 好 and 😀, which lies beyond 16 bits."""
    rows = [
        f"{'un café 😀' if i % 2 else 'a pub'} {i},{'é好' if i % 2 else '😀'}" for i in range(30)
    ]
    (tmp_path / "cafes.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")


@pytest.fixture
def with_stdout(call_script, monkeypatch):
    """Like `call_script`, with another standard output."""

    def call(stream, *command):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        return call_script(*command), sys.stdout  # what `run_script` has made of it

    return call


def test_a_console_without_all_characters_gets_escapes(with_stdout, tmp_path):
    def console():
        return io.TextIOWrapper(io.BytesIO(), "ascii")

    done, console_after = with_stdout(console(), TRAIN, *TINY, "--out", "run")
    assert done.returncode == 0, done.stderr
    printed = console_after.buffer.getvalue().decode("ascii")
    assert "\\u00e9\\u597d " in printed and "everything of this run" in printed
    assert (tmp_path / "run/results.json").exists()

    done, console_after = with_stdout(console(), PREDICT, "run", "un café 😀", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(console_after.buffer.getvalue())  # lines of JSON stay so
    assert answer["text"] == "un café 😀" and set(answer["probabilities"]) == {"é好", "😀"}


def test_closed_streams_end_nothing(with_stdout, call_script, tmp_path, monkeypatch):
    for name in ("stdin", "__stdin__", "stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, None)
    done, _ = with_stdout(None, TRAIN, *TINY, "--out", "run")
    assert done.returncode == 0
    assert (tmp_path / "run/results.json").exists()
    for name in ("stdin", "__stdin__"):
        monkeypatch.setattr(sys, name, None)
    done, _ = with_stdout(None, PREDICT, "run")  # would read standard input
    assert done.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_whose_name_is_not_utf8(with_stdout, tmp_path):
    """From an old archive; or, under LC_ALL=C, any name with an é. It stands in what is saved."""
    name = os.fsdecode(b"caf\xe9.csv")
    (tmp_path / "cafes.csv").rename(tmp_path / name)

    def console():
        return io.TextIOWrapper(io.BytesIO(), "utf-8")

    train = (TRAIN, *TINY[:-1], name, "--export", "out", "--pooling", "last")
    done, _ = with_stdout(console(), *train)
    refused(done, "--out runs/classification-caf\ufffd-scratch", "UTF-8; name another")
    done, _ = with_stdout(console(), *train, "--out", "run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/results.json").read_text("utf-8"))
    assert results["data"]["name"] == name[:-4]
    (tmp_path / "out").rename(tmp_path / "exported")
    done, _ = with_stdout(console(), TRAIN, "--resume", "run", "--max-steps", 2)
    assert done.returncode == 0, done.stderr


def pipe_without_reader():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


def test_a_run_goes_on_without_its_reader_and_a_filter_ends(
    with_stdout, tmp_path, monkeypatch, capsys
):
    done, _ = with_stdout(pipe_without_reader(), TRAIN, *TINY, "--out", "run")
    assert done.returncode == 0
    said = "train_gpt.py: nothing more can be printed (Broken pipe); going on without\n"
    assert done.stderr == said
    assert (tmp_path / "run/results.json").exists()

    pipe = pipe_without_reader()
    for name in ("stdout", "__stdout__"):
        monkeypatch.setattr(sys, name, pipe)
    with pytest.raises(SystemExit) as end:
        run_main(lambda: print("an answer"), is_filter=True)
    assert end.value.code == 1 and capsys.readouterr().err == ""


@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
def test_a_shell_that_closes_what_it_can(script_environment, tmp_path):
    """Files that are opened get the numbers of closed streams."""
    train = " ".join(map(str, [sys.executable, REPOSITORY / TRAIN, *TINY, "--out", "run"]))
    done = subprocess.run(
        f"({train}; echo $? > status) <&- 2>&- | head -n 1", shell=True, cwd=tmp_path,
        env=script_environment | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("data: cafes\n", "")
    assert (tmp_path / "status").read_text() == "0\n"
    assert (tmp_path / "run/results.json").exists()


def test_a_picture_that_cannot_be_drawn_is_a_warning(call_script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # an import of it fails
    done = call_script(TRAIN, *TINY, "--out", "run")
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning:")]
    for warning, name in zip(warnings, ("curves.png", "reliability.png"), strict=True):
        assert f"{name} is left out: ModuleNotFoundError" in warning
    assert "after fine-tuning" in done.stdout
    assert {"results.json", "report.md"} <= set(os.listdir(tmp_path / "run"))
    assert not (tmp_path / "run/curves.png").exists()


def test_a_backend_that_is_not_there_hinders_no_picture(script_environment, tmp_path):
    """In its terminals, too, Jupyter sets MPLBACKEND, which not every environment can follow."""
    code = """if True:
        from pathlib import Path
        from gpt2.support.tables import plot_curves
        plot_curves([{"step": 1, "loss": 2.0}], ["loss"], Path("curves.png"))
    """
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=script_environment | backend,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
