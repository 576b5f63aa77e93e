"""How every script runs: bad input ends it with one line and status 2, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from gpt2.support import distributed
from gpt2.support.device import out_of_memory
from gpt2.support.errors import UserError
from gpt2.support.stopping import Stopped, release_signals, resume_command


def run_script(main: Callable[[], None]) -> None:
    """Call `main`; a UserError, or a file that cannot be read or written, becomes one line on
    standard error and exit status 2. Of many processes rank 0 prints, and the others what is
    theirs alone."""
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
        # The reader (`| head`) has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
    print(f"{os.path.basename(sys.argv[0])}: {whose}{message}", file=sys.stderr, flush=True)
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def beside(script: str, other: str) -> str:
    """How to call the script `other`, which lies beside `script`, from where the user stands."""
    return os.path.relpath(os.path.join(os.path.dirname(script), other))
