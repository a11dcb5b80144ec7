"""The root of the command line: commands found by their files and imported one at a time, and the one error boundary.

    llmos COMMAND --help        imports that command's file alone
    llmos --help                imports none of them

Whatever goes wrong ends here: an LlmosError is a sentence and a hint, a full disk one sentence, and anything unforeseen one
sentence whose traceback is kept in a file.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from llmos_cli import __version__
from llmos_cli.catalog import commands, did_you_mean
from llmos_cli.core import access
from llmos_cli.core.atomic import system_error, write_bytes
from llmos_cli.core.places import cache_home
from llmos_cli.errors import Interrupted, LlmosError, NotFound, UsageError, interrupted
from llmos_cli.lazy import Commands
from llmos_cli.ui import Ui

app = typer.Typer(
    name="llmos",
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Git for the life of a model: train, prune, quantize, tune, evaluate and deploy from one workspace, with proof.",
    epilog="`llmos COMMAND --help` explains a command; `llmos completion` sets up the shell.",
)


def _version(wanted: bool) -> None:
    if wanted:
        Ui().write(f"llmos {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    directory: Annotated[str | None, typer.Option("-C", metavar="DIR", help="Work as if started in DIR.")] = None,
    wait: Annotated[
        str | None, typer.Option("--wait", metavar="SECONDS", help="Wait this long for a lock (60).")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Change no byte of the workspace (LLMOS_READ_ONLY=1).")
    ] = False,
) -> None:
    if directory is not None:
        _enter(directory)
    if wait is not None:
        _wait(wait)
    if read_only:  # through the environment too
        os.environ[access.VARIABLE] = "1"


def _enter(directory: str) -> None:
    if not Path(directory).is_dir():
        raise UsageError(f"-C: there is no folder {directory!r}", hint=f"it is looked for from {Path.cwd()}")
    os.chdir(directory)


def _wait(seconds: str) -> None:
    """Passed on through the environment, so that a run's child processes wait as long."""
    if not seconds.replace(".", "", 1).isdigit():
        raise UsageError(f"--wait takes a number of seconds, not {seconds!r}", hint="for example --wait 5")
    os.environ["LLMOS_WAIT"] = seconds


def run(args: Sequence[str]) -> int:
    """The error boundary: run `args`, show what went wrong, return the exit code."""
    ui = Ui(json="--json" in args)
    try:
        _stand_somewhere()
        app(list(args) or ["--help"], prog_name="llmos")
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        return _reader_left()
    except LlmosError as error:
        ui.error(error)
        return error.exit_code
    except TyperException as error:
        ui.error(_as_usage(error, args))
        return UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        ui.error(interrupted())
        return Interrupted.exit_code
    except Exception as error:  # noqa: BLE001 - the one boundary
        ui.error(_plainly(error))
        return 1
    return 0


def _stand_somewhere() -> None:
    """A shell may stand in a folder that has been removed, where no path means anything."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise NotFound("the folder you are in has been removed", hint="`cd` into one that is there") from None


def _as_usage(error: TyperException, args: Sequence[str]) -> UsageError:
    """typer's usage errors in our words: one sentence, the nearest name, and where help is."""
    context = getattr(error, "ctx", None)
    help_ = f"`{context.command_path if context else _command_of(args)} --help` lists what it takes"
    if close := getattr(error, "possibilities", None):
        option = getattr(error, "option_name", "")
        return UsageError(f"no such option: {option}", hint=f"{did_you_mean(option, close)} {help_}")
    message = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
    return UsageError(message[:1].lower() + message[1:], hint=help_)


def _command_of(args: Sequence[str]) -> str:
    """For errors that do not say where they arose: the command is the first word that names one."""
    return next((f"llmos {word}" for word in args if word in commands()), "llmos")


def _reader_left() -> int:
    """`llmos log | head`: the reader has what it wanted."""
    forget_output()
    return 0


def forget_output() -> None:
    """What could not be written: Python would complain again, and change the exit code, when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plainly(error: Exception) -> LlmosError:
    """Anything else in one sentence: the disk's troubles as they are, the unforeseen with its traceback in a file."""
    refused = system_error(error)
    if refused is not None and refused.errno in _DISK:
        message, hint = _DISK[refused.errno]
        where = f": {refused.filename}" if refused.filename else ""
        return LlmosError(f"{message}{where}", hint=hint)
    from llmos_cli.core.redaction import redacted

    said = redacted(" ".join(str(error).split()))[:300]
    kept = _keep_traceback(error)
    return LlmosError(
        f"llmos failed unexpectedly: {type(error).__name__}: {said}"
        if said
        else f"llmos failed unexpectedly: {type(error).__name__}",
        hint=f"the traceback is in {kept}" if kept else "the traceback could not be written anywhere",
    )


_DISK = {
    errno.ENOSPC: ("the disk is full", "free some space (`llmos gc`, `llmos du`) and try again: nothing was lost"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space (`llmos gc`, `llmos du`) and try again: nothing was lost",
    ),
    errno.EROFS: ("the file system is read-only", "work on a writable copy of the workspace"),
    errno.EACCES: ("permission denied", "check the owner and mode of the file or folder"),
    errno.EPERM: ("operation not permitted", "check the owner and mode of the file or folder"),
    errno.EIO: ("the disk reports an error", "save what you can: the disk may be failing (`dmesg` says more)"),
    errno.EFBIG: ("the file would be larger than this process may write", "`ulimit -f` says how large it may be"),
    errno.EISDIR: ("a folder stands where a file is needed", "name a file"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "name a folder"),
    errno.ENAMETOOLONG: ("a name is too long for the file system", "give it a shorter one"),
    errno.ELOOP: ("links lead in a circle", "name the file that is meant"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n`"),
}


def _keep_traceback(error: Exception) -> Path | None:
    """Write the traceback into the workspace, else the user's cache folder; None where neither can be written."""
    import traceback
    from time import strftime

    from llmos_cli.core.redaction import redacted

    for folder in (*_crash_folder_here(), cache_home() / "crash"):
        path = folder / f"{strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        try:
            write_bytes(path, redacted("".join(traceback.format_exception(error))).encode(errors="replace"))
        except (LlmosError, OSError):
            continue
        return path
    return None


def _crash_folder_here() -> list[Path]:
    try:
        here = Path.cwd()
    except OSError:
        return []  # it went while the command ran
    found = [folder / ".llmos" for folder in (here, *here.parents) if (folder / ".llmos").is_dir()][:1]
    return [folder / "crash" for folder in found if access.writable(folder)]
