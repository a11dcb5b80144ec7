"""What can go wrong, and the exit code of each.

    LlmosError                 1   failed (port in use, disk full, nothing changed...)
    ├── UsageError             2   a flag or argument that cannot be right
    │   ├── ConfigError        2   a YAML key or value that cannot be right, with its place in the file
    │   └── AmbiguousRevision  2   a prefix that names several checkpoints
    ├── GateFailed             3   a checkpoint is worse than what was required of it
    ├── NotFound               4   no such revision, workspace, run, file
    ├── Corrupt                5   bytes that are not what their hash says, a truncated file
    │   └── NotPlain           5   a link, a pipe, a folder where one of llmos's own files belongs
    ├── Untrusted              5   code, a pickle, a signature or a key that is not trusted
    ├── Conflict               6   a ref moved meanwhile
    │   └── LockTimeout        6   somebody else held the lock too long
    ├── Interrupted          130   Ctrl-C, state saved
    └── Terminated           143   SIGTERM, state saved

An error is one sentence (what, which) and a hint (the way out). `app.py` shows it and exits; nothing else catches it.
"""

from __future__ import annotations

from dataclasses import dataclass

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""What Python raises over JSON that is none, or has another shape than was agreed: a size that is infinite and a hundred thousand
brackets among them. Whoever reads what somebody else may have written catches all of these."""


class LlmosError(Exception):
    """`message`: one sentence saying what and which; `hint`: how to go on; `final`: a run that it ended would end so again, so
    that there is nothing to resume."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str, final: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.final = final


class UsageError(LlmosError):
    exit_code = 2


@dataclass(frozen=True)
class Place:
    """Where in a YAML file: `line` and `column` count from 1."""

    file: str
    line: int
    column: int
    frame: str = ""


class ConfigError(UsageError):
    def __init__(self, message: str, *, hint: str, place: Place | None = None) -> None:
        super().__init__(message, hint=hint)
        self.place = place


class AmbiguousRevision(UsageError):
    pass


class GateFailed(LlmosError):
    exit_code = 3

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint, final=True)


class NotFound(LlmosError):
    exit_code = 4


class Corrupt(LlmosError):
    exit_code = 5


class NotPlain(Corrupt):
    pass


class Untrusted(LlmosError):
    exit_code = 5


class Conflict(LlmosError):
    exit_code = 6


class LockTimeout(Conflict):
    pass


class Interrupted(LlmosError):
    exit_code = 130


def interrupted() -> Interrupted:
    """Ctrl-C where nothing more can be said of what was going on."""
    return Interrupted("interrupted", hint="nothing was left half done: run it again when you like")


class Terminated(LlmosError):
    exit_code = 143
