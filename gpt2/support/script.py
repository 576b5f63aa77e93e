"""How every script runs: bad input ends it with one line and status 2, without a traceback, and
nothing that has to do with printing ends a training."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from gpt2.support import distributed
from gpt2.support.device import out_of_memory
from gpt2.support.errors import UserError
from gpt2.support.stopping import Stopped, release_signals, resume_command


def run_script(main: Callable[[], None], is_filter: bool = False) -> None:
    """Call `main`; a UserError, or a file that cannot be read or written, becomes one line on
    standard error and exit status 2. Of many processes rank 0 prints, and the others what is
    theirs alone.

    When nobody reads standard output any more (`| head`), a filter ends, for its answers are all
    that it makes; any other script goes on, for its work lies in files.
    """
    _prepare_streams(is_filter)
    distributed.quiet_other_ranks()
    try:
        main()
        sys.stdout.flush()
        distributed.destroy_processes()
    except UserError as error:
        _end(str(error))
    except Stopped as stop:
        if distributed.rank() == 0:
            _say_last(f"{os.path.basename(sys.argv[0])}: {stop}")
        sys.exit(stop.exit_status)
    except KeyboardInterrupt:
        if distributed.rank() == 0:
            _say_last("\ninterrupted")
        sys.exit(130)
    except BrokenPipeError:
        _to_nowhere(sys.stdout)  # or Python would complain once more when it flushes at exit
        sys.exit(1)
    except (RuntimeError, MemoryError) as error:
        if distributed.connection_lost(error):
            _end_without_the_others()
        if not out_of_memory(error):
            raise
        _end(
            "out of memory; a smaller --batch-size, --micro-batch-size or --max-length, or a "
            "smaller --model, needs less"
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror or error}")
    finally:
        release_signals()


def _prepare_streams(is_filter: bool) -> None:
    """Let printing fail as seldom as possible: where a shell has closed a stream (`>&-`), which is
    None then; where a console has not all characters; where the reader of a pipe goes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode, errors="replace")  # takes the closed one's number, too
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if sys.stdout is not sys.__stdout__:  # a notebook's, or a test's
        return
    codecs.register_error("escape as JSON", _escape_as_json)
    sys.stdout.reconfigure(errors="escape as JSON")
    if not is_filter:
        sys.stdout = _Output(
            sys.stdout.buffer, sys.stdout.encoding, sys.stdout.errors, line_buffering=True
        )


class _Output(io.TextIOWrapper):
    """Standard output of what goes on without it: when the reader of a pipe has gone, or a pager or
    terminal was closed, or the disk of a log is full. Lines are out at once, in a pipe too."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._go_on_without(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._go_on_without(error)

    def _go_on_without(self, error: OSError) -> None:
        _to_nowhere(self)
        _say_last(
            f"{os.path.basename(sys.argv[0])}: nothing more can be printed ({error.strerror}); "
            "going on without"
        )


def _escape_as_json(error: UnicodeError) -> tuple[str, int]:
    """What a console cannot show it gets as an escape, such as \\u00e9; as JSON writes it, so that
    a line of JSON is one still."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _to_nowhere(stream: io.TextIOBase) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end_without_the_others() -> NoReturn:
    if distributed.rank() <= 1:  # 1, because it may be rank 0 that has ended
        command = resume_command()
        _say_last(
            f"{os.path.basename(sys.argv[0])}: another process of this run has ended; what it or "
            "torchrun says tells why. What was saved is intact"
            + (f"; go on with: {command}" if command else "")
        )
    os._exit(1)  # at once: torch would wait for the others


def _end(message: str) -> NoReturn:
    """Print why the program ends, and end it with status 2."""
    release_signals()  # from here on the system's own handling: there is nothing left to save
    whose = distributed.let_rank_0_speak_first()
    _say_last(f"{os.path.basename(sys.argv[0])}: {whose}{message}")
    if distributed.world_size() > 1:
        os._exit(2)  # torch would wait for the others, which may be waiting for this one
    sys.exit(2)


def _say_last(message: str) -> None:
    """Print `message` on standard error, and what still waits for standard output. A reader that
    has gone, as `tee` at Ctrl-C, changes nothing: Python's exit status for it would hide ours."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, message + "\n")):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:
            _to_nowhere(stream)


def beside(script: str, other: str) -> str:
    """How to call the script `other`, which lies beside `script`, from where the user stands."""
    return os.path.relpath(os.path.join(os.path.dirname(script), other))
