"""Transcripts: what a person types and sees, word for word. `pytest --update-golden tests/test_golden.py` rewrites them.

A file of tests/golden/ begins in an empty folder. `$ llmos ...`, `$ cd DIR`, `$ cat FILE` and `$ echo TEXT > FILE` run; what
follows is stdout, then stderr, then `[exit N]` where N is not 0. Ids, times and sizes that differ between machines are masked.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"

MASKS = [
    (re.compile(r"\b\d{8}-\d{6}-\d{6}\b"), "<backup>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{8}\b"), "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|\+00:00)?"), "<time>"),
    (re.compile(r"\b[\d.]+ k?B\b"), "<size>"),
    (re.compile(r"\b(\d+ (second|minute)s? ago|just now)\b"), "<ago>"),
]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path, llmos, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    typed = [line[2:] for line in path.read_text().splitlines() if line.startswith("$ ")]
    shown = "".join(f"$ {line}\n{_masked(_run(line, llmos), tmp_path)}" for line in typed)
    if request.config.getoption("--update-golden"):
        path.write_text(shown)
    assert shown == path.read_text()


def _run(line: str, llmos) -> str:
    match shlex.split(line):
        case ["llmos", *args]:
            ran = llmos(*args)
            return ran.out + ran.err + (f"[exit {ran.code}]\n" if ran.code else "")
        case ["cd", folder]:
            os.chdir(folder)
            return ""
        case ["cat", file]:
            return Path(file).read_text()
        case ["echo", text, ">", file]:
            Path(file).write_text(text.encode().decode("unicode_escape") + "\n")
            return ""
    raise AssertionError(f"a transcript cannot run {line!r}")


def _masked(text: str, here: Path) -> str:
    text = text.replace(str(here), "<here>")
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text
