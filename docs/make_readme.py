"""Put real transcripts into README.md, between its markers: python docs/make_readme.py demo=demo.log test=test.log figures=figures.md

`make demo 2>&1 | tee demo.log` and `make test 2>&1 | tee test.log` make them. Colours and progress lines are taken out, nothing is added.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]|\r")
PROGRESS = re.compile(r"^(measure|train|heal|prune|quantize|load|tokenize|trial|proof)\b.* (eta|in) [0-9.]+\w*$")


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
    return "\n".join(line for line in lines if not PROGRESS.match(line)).strip()


if __name__ == "__main__":
    main(sys.argv[1:])
