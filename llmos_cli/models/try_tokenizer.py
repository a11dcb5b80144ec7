"""A tokenizer tried on a short text: run as a program of its own (`bounded`), for regular expressions, normalizers and ids can take
any memory and time, and what the tokenizers library does not survive, it does not survive as a process.

    python -I try_tokenizer.py tokenizer.json

Exit status 0; 4 where it is none, or no text comes through, with one line of reason on stdout.
"""

from __future__ import annotations

import sys

from tokenizers import Tokenizer

UNREADABLE = 4
TEXT = "A short text, for all of it: 0123456789 \t\n(x + y) * 2 != 'Zürich' — 日本語 🙂 " + "".join(
    map(chr, range(32, 127))
)
BEYOND = 1_000_000
"""Ids that may be left out below the largest one: what is kept by id has a place for each of them."""


def main(file: str) -> int:
    try:
        tokenizer = Tokenizer.from_file(file)
        tokenizer.decode(tokenizer.encode(TEXT).ids)
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
    except BaseException as problem:  # noqa: BLE001 - the library raises plain Exceptions, and its panics are BaseExceptions
        lines = str(problem).splitlines() or [type(problem).__name__]
        return _said(lines[0][:200])
    if not ids:
        return _said("it has no tokens")
    if max(ids) > 2 * len(ids) + BEYOND:
        return _said(f"one of its {len(ids)} tokens has the id {max(ids)}")
    return 0


def _said(reason: str) -> int:
    print(reason)  # noqa: T201 - a program's own output
    return UNREADABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
