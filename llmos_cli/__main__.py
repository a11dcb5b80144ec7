"""The entry point, `llmos` or `python -m llmos_cli`: from the first import to the last line, Ctrl-C is a sentence."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Run the command that the command line says, and leave with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # what was to be ignored (`nohup`) stays so
        signal.signal(signal.SIGINT, interrupt)
    try:
        from llmos_cli.app import forget_output, run

        code = run(sys.argv[1:])
        try:
            sys.stdout.flush()
        except OSError:  # an error, which has been told
            forget_output()
    except KeyboardInterrupt:  # before `run` could hear it
        from llmos_cli.errors import interrupted
        from llmos_cli.ui import Ui

        Ui(json="--json" in sys.argv).error(interrupted())
        code = interrupted().exit_code
    # All is said and done: while Python takes itself down, Ctrl-C would only be a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def interrupt(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, but never in the middle of an import: an extension that is half loaded either swallows it, so that
    Ctrl-C is lost, or aborts the process. Where no run is open there is nothing to tidy up, and the process ends at once;
    otherwise it is asked for again a moment later."""
    if not _importing(frame):
        raise KeyboardInterrupt
    # An open run hears SIGTERM; and the words to leave with have to be loaded themselves.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and hasattr(sys.modules.get("llmos_cli.app"), "run"):
        _leave()
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02)


def _leave() -> NoReturn:
    from llmos_cli.errors import interrupted
    from llmos_cli.ui import Ui

    Ui(json="--json" in sys.argv).error(interrupted())
    sys.stdout.flush()
    os._exit(interrupted().exit_code)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
