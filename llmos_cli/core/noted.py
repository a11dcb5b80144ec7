"""What a user has seen of audit logs: the head of each as it was last verified, in the user's own folder.

Who may write to a workspace can write its whole history anew; nobody else writes here.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from llmos_cli.core.atomic import write_text
from llmos_cli.core.listing import read_text
from llmos_cli.core.locks import lock
from llmos_cli.core.places import config_home
from llmos_cli.errors import UNREADABLE, Corrupt


@dataclass(frozen=True)
class Seen:
    """The number and hash of the last record."""

    number: int
    hash: str


def file() -> Path:
    return config_home() / "audited.json"


def seen(root: Path) -> Seen | None:
    return _read().get(str(root))


def note(root: Path, head: Seen) -> bool:
    """False where this user has no folder that could remember it: a home of somebody else, a read-only one."""
    there = next(place for place in (file(), *file().parents) if os.path.exists(place))  # noqa: PTH110 - what may not be looked at is not there
    if not os.access(there, os.W_OK):
        return False
    with lock(file().with_name("audited.lock")):
        found = {**_read(), str(root): head}
        write_text(
            file(), json.dumps({each: asdict(it) for each, it in found.items()}, indent=2, sort_keys=True) + "\n"
        )
    return True


def _read() -> dict[str, Seen]:
    if not os.access(file(), os.R_OK):
        return {}
    try:
        found = json.loads(read_text(file(), linked=True))
        return {str(root): Seen(int(each["number"]), str(each["hash"])) for root, each in found.items()}
    except UNREADABLE:
        raise Corrupt(f"{file()} is not what llmos wrote", hint="remove it, and verify again what you know") from None
