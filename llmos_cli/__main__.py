"""The entry point, `llmos` or `python -m llmos_cli`: from the first import to the last line, Ctrl-C is a sentence."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command that the command line says, and leave with its exit code."""
    try:
        from llmos_cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before `run` could hear it
        from llmos_cli.errors import interrupted
        from llmos_cli.ui import Ui

        Ui(json="--json" in sys.argv).error(interrupted())
        code = interrupted().exit_code
    # All is said and done: while Python takes itself down, Ctrl-C would only be a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
