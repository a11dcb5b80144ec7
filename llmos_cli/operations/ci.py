"""What a CI server is given to read: JUnit XML and Markdown, well formed whatever the text in them is.

What a command printed last stands there too, with the colours of a terminal and what else no XML can hold: characters that are
for a terminal go, and what Markdown or HTML would take for markup is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

_TERMINAL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]?")
"""Its control sequences: ECMA-48's CSI, the titles and links of xterm (OSC), and shorter ones."""
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What XML 1.0 has no way to say, and the control characters that it has but discourages."""
_MARKUP = re.compile(r"[\\`*_~\[\]<>&|]")


def plain(text: str) -> str:
    return _UNFIT.sub("", _TERMINAL.sub("", text))


def junit(suite: ElementTree.Element) -> str:
    """A file of one suite; all text in it is made `plain`."""
    root = ElementTree.Element("testsuites")
    root.append(suite)
    for element in root.iter():
        element.attrib = {name: plain(value) for name, value in element.attrib.items()}
        element.text = plain(element.text) if element.text else None
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def text(said: str) -> str:
    """For Markdown, read as it stands, in one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(plain(said).split()))


def row(cells: Iterable[str]) -> str:
    """Of a table; cells are Markdown already: a `text`, a name in backticks."""
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"
