"""The key of what is encrypted: 64 hexadecimal digits, in LLMOS_KEY or in a file of the user's, never in the workspace."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.processes import scratch_name
from llmos_cli.errors import Untrusted

VARIABLE = "LLMOS_KEY"
_KEY = re.compile(r"[0-9a-fA-F]{64}")


def read_key(file: Path | None, what: str) -> bytes:
    """LLMOS_KEY where it is set, else the file's. `what` is encrypted with it; Untrusted where there is none."""
    if (text := os.environ.get(VARIABLE)) is not None:
        return _parsed(text, VARIABLE)
    if file is None:
        raise Untrusted(f"{what} is encrypted, and {VARIABLE} is not set", hint=f"{VARIABLE}=$(cat KEYFILE) llmos ...")
    return _in_file(file, what)


def _in_file(file: Path, what: str) -> bytes:
    try:
        return _parsed(file.read_text(encoding="ascii", errors="replace"), str(file))
    except OSError as error:
        raise Untrusted(
            f"the key of {what} cannot be read from {file}: {error.strerror}", hint=f"put it there, or into {VARIABLE}"
        ) from None


Ask = Callable[[str], str | None]
"""Asks for a secret on the terminal; None where there is none."""


def given_key(file: Path | None, ask: Ask, *, twice: bool = False) -> bytes:
    """That of a command line's `--key-file`; else LLMOS_KEY; else what is typed, `twice` where a slip of the hand would cost a model."""
    if file is not None:
        return _in_file(file, "it")
    if os.environ.get(VARIABLE) is not None:
        return read_key(None, "it")
    if (typed := ask("key (64 hexadecimal digits): ")) is None:
        raise Untrusted("there is no key", hint=f"--key-file FILE says where it is, or {VARIABLE} has it")
    key = _parsed(typed, "what was typed")
    if twice and _parsed(ask("the same again: ") or "", "what was typed") != key:
        raise Untrusted("the two keys that were typed differ", hint="nothing was changed; a file is safer: --key-file")
    return key


def make_key(file: Path) -> None:
    """A new one, for its owner's eyes only. It has its name once it is whole: half a key would have to be removed by hand."""
    with atomic.refusals(file):
        atomic.make_directory(file.parent)
        unfinished = file.parent / scratch_name(".file")
        try:
            _write(unfinished, os.urandom(32).hex().encode() + b"\n")
            _name(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)
        atomic.sync_directory(file.parent)


def _write(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        atomic.write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(unfinished: Path, file: Path) -> None:
    """A link never takes the place of a key that somebody else made meanwhile; where there are none (exFAT), it is moved."""
    try:
        file.hardlink_to(unfinished)
    except FileExistsError:
        raise
    except OSError:
        unfinished.rename(file)


def _parsed(text: str, where: str) -> bytes:
    if not _KEY.fullmatch(text.strip()):
        raise Untrusted(f"{where} holds no key: 64 hexadecimal digits", hint="`openssl rand -hex 32` makes one")
    return bytes.fromhex(text.strip())
