"""Put real transcripts into README.md, between its markers: python docs/make_readme.py demo=demo.log test=test.log figures=figures.md

`make demo 2>&1 | tee demo.log` and `make test 2>&1 | tee test.log` make them. Colours and progress lines are taken out, and the middle
of a long answer is left out with a count of its lines; nothing else is changed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]|\r")
PROGRESS = re.compile(r"^[a-z][\w ]* [\d,]+(/[\d,]+)? (step|sample|trial|block|measurement|tensor)s?\b")


LONGEST, WIDEST = 24, 160
"""Lines of one answer, columns of a line."""


def main(parts: list[str]) -> None:
    text = README.read_text(encoding="utf-8")
    for part in parts:
        name, _, file = part.partition("=")
        body = Path(file).read_text(encoding="utf-8")
        text = between(text, name, body if file.endswith(".md") else f"```\n{transcript(body)}\n```")
    README.write_text(text, encoding="utf-8")


def between(text: str, name: str, body: str) -> str:
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"README.md has no markers for {name!r}")
    return f"{before}{start}{body.rstrip()}\n{end}{after}"


def transcript(log: str) -> str:
    lines = [COLOUR.sub("", line).rstrip() for line in log.splitlines()]
    said = "\n".join(line[:WIDEST] for line in lines if not PROGRESS.match(line)).strip()
    return "\n$ ".join(shortened(answer) for answer in said.split("\n$ "))


def shortened(answer: str) -> str:
    lines = answer.splitlines()
    if len(lines) <= LONGEST:
        return answer
    return "\n".join([*lines[: LONGEST - 6], f"... {len(lines) - LONGEST + 1} lines ...", *lines[-5:], ""])


if __name__ == "__main__":
    main(sys.argv[1:])
