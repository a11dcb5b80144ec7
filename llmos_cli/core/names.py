"""Names that can stand beside each other on any disk: some do not tell `Main` from `main`, or one form of a letter from another.

Who reads a remote refuses what breaks this, and who writes one asks the same before a byte goes: what was sent can be fetched.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

_LONGEST = 255
"""Bytes of one part of a path, on nearly every file system."""
_DEEPEST = 32
_MOST = 1_000_000


def folded(name: str) -> str:
    """The same for all names that some disk takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def wrong(names: Iterable[str]) -> str | None:
    """Why these cannot be the files of a folder, in words that follow the folder's own name; None where they can, on any disk."""
    taken: dict[str, str] = {}
    if len(found := list(names)) > _MOST:
        return f"has {len(found):,} files"
    for name in found:
        if is_odd(name):
            return f"has a file {name[:80]!r}, which not every disk can have"
        if (other := taken.setdefault(folded(name), name)) != name:
            return f"has {other!r} and {name!r}, which some disks take for one"
    for fold, name in taken.items():
        if above := next((at for at in _above(fold) if at in taken), None):
            return f"has {taken[above]!r}, and {name!r} inside of it"
    return None


def is_odd(name: str) -> bool:
    """Whether it is no plain relative path, or cannot be printed."""
    parts = name.split("/")
    return (
        not all(parts)
        or "." in parts
        or ".." in parts
        or "\\" in name
        or not name.isprintable()
        or any(len(part.encode(errors="replace")) > _LONGEST for part in parts)
        or len(parts) > _DEEPEST
    )


def plain(name: str) -> str:
    """One like it that any disk can have."""
    found = "".join(each if each.isprintable() and each not in "/\\" else "_" for each in name)
    return found if not is_odd(found) else "_"


def in_the_way(name: str, others: Iterable[str]) -> str | None:
    """One of the others that cannot stand beside it: called alike, inside of it, or with it inside."""
    return all_in_the_way([name], others).get(name)


def all_in_the_way(made: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Of names that are to be made those that cannot stand beside one of the others, and which that is."""
    taken = {folded(other): other for other in others}
    folders = {above: other for fold, other in taken.items() for above in _above(fold)}
    found = {}
    for name in made:
        own = folded(name)
        places = (taken.get(own), folders.get(own), *(taken.get(above) for above in _above(own)))
        if other := next((each for each in places if each not in (None, name)), None):
            found[name] = other
    return found


def _above(name: str) -> Iterator[str]:
    """`a` and `a/b` of `a/b/c`."""
    return (name[:at] for at, letter in enumerate(name) if letter == "/")
