"""What the page is made of, without a page: whose turn it is, which tables are old, what a
conversation becomes. Asked over HTTP: test_page.py."""

import os
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.models import Turns
from app.page import PageSettings, remove_old
from app.safely import limited
from gpt2.support.errors import UserError
from instruction.formats import conversation_rows

pytest.importorskip("gradio", reason="the page needs gradio")
from app.assistant import _next_answer, _turn
from app.classifier import _keep_young

# of its own use of pandas
pytestmark = pytest.mark.filterwarnings("ignore:.*keyword is deprecated", "ignore:.*downcasting")


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    turns, came = Turns(), []

    def wait(number):
        with turns.one():
            came.append(number)

    for number in range(20):
        with turns.one():
            thread = threading.Thread(target=wait, args=(number,))
            thread.start()
            time.sleep(0.01)
        with turns.one():  # who has just had it comes after who was waiting; not so with a Lock
            assert came == list(range(number + 1))
        thread.join()
    with pytest.raises(ZeroDivisionError), turns.one():
        1 / 0  # noqa: B018
    with turns.one():  # an error has given it back
        pass


def test_old_tables_go(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/old.csv", "new.csv"):
        (tmp_path / name).write_text("text\n")
    os.utime(tmp_path / "a/old.csv", (0, 0))
    remove_old(str(tmp_path))
    assert not (tmp_path / "a/old.csv").exists() and (tmp_path / "new.csv").exists()


def test_a_table_that_is_being_labelled_is_not_old(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("new.csv", "out/new-labelled.csv.new-1", "other.csv"):
        (tmp_path / name).write_text("text\n")
        os.utime(tmp_path / name, (0, 0))
    _keep_young(tmp_path / "new.csv", tmp_path / "out/new-labelled.csv")
    _keep_young(tmp_path / "gone.csv", tmp_path / "out/new-labelled.csv")
    remove_old(str(tmp_path))
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == [
        "new-labelled.csv.new-1", "new.csv",
    ]  # fmt: skip


def test_limits():
    assert limited(" a ", 3) == " a "
    with pytest.raises(UserError, match="4 characters; 3 are"):
        limited("abcd", 3)
    assert PageSettings().host == "127.0.0.1"


def test_a_run_that_learnt_from_conversations_sees_what_was_said():
    """As training's rows have it; the others get each instruction for itself, as respond.py."""
    asked = []
    as_trained = SimpleNamespace(
        recipe=SimpleNamespace(settings={"turns": "all"}),
        prompt=lambda *given: asked.append(given),
        answer=lambda prompt, sampling, seed: asked.append(seed),
    )
    said = [("user", "Is 1 < 2?"), ("assistant", "It is.")]
    talk = [_turn(role, text) for role, text in said]
    _next_answer(as_trained, talk, "And 3?", "", None, 7)
    chat = [{"role": role, "content": text} for role, text in [*said, ("user", "And 3?"), said[1]]]
    rows, _ = conversation_rows(Path("x"), [{"messages": chat}], "messages", "all", Counter())
    assert asked == [(rows[-1]["instruction"], rows[-1]["input"]), 8]
    as_trained.recipe.settings["turns"] = "first"
    _next_answer(as_trained, talk, "And 3?", "", None, 7)
    assert asked[2:] == [("And 3?", ""), 8]
