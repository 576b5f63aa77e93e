"""Ctrl-C and SIGTERM: a long run ends where it can go on, not in the middle of a step."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from gpt2.support import distributed

_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_before: dict[int, object] = {}  # what handled these signals before `catch_signals`
_asked: int | None = None
_resume_command = ""


class Stopped(Exception):
    """A signal asked the run to end. `exit_status` is what shells expect of a program that this
    signal has ended; the message says how to go on."""

    def __init__(self, number: int, resume_command: str) -> None:
        super().__init__(f"stopped by {_SIGNALS[number]}; go on with: {resume_command}")
        self.exit_status = 128 + number


def catch_signals(resume_command: str) -> None:
    """From here on the first Ctrl-C or SIGTERM is kept for `stop_if_asked`; a second one ends the
    program at once. `resume_command` is the command that continues the run."""
    global _resume_command
    _resume_command = resume_command
    for number in _SIGNALS:
        _before.setdefault(number, signal.signal(number, _remember))


def release_signals() -> None:
    """Undo `catch_signals`."""
    global _asked, _resume_command
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    _asked, _resume_command = None, ""


def resume_command() -> str:
    """The command that continues the run; "" before `catch_signals`."""
    return _resume_command


def stop_if_asked() -> None:
    """Raises Stopped if Ctrl-C or SIGTERM has come since `catch_signals`, on all processes if to
    one of them. Every loop that takes long calls this once a batch."""
    number = distributed.all_reduce_max(_asked or 0)
    if number:
        raise Stopped(number, _resume_command)


def _remember(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = number
    if distributed.world_size() == 1:
        # The system's own handling ends a program even in the middle of a long call into torch.
        after, advice = signal.SIG_DFL, "; once more stops at once"
    else:
        # torchrun passes on a signal that a scheduler may have sent to its processes already, and
        # kills those that have not ended half a minute later.
        after, advice = signal.SIG_IGN, ""
    for each in _SIGNALS:
        signal.signal(each, after)
    if distributed.rank() > 0:
        return
    # not print(), which fails if the signal came in the middle of another print()
    message = f"\n{_SIGNALS[number]}: stopping after this batch{advice}\n"
    try:
        os.write(sys.__stderr__.fileno(), message.encode())
    except (OSError, AttributeError):
        pass  # nobody reads it: the same Ctrl-C has ended `2>&1 | tee log`, or it was closed
