"""The only file that prints: results on stdout, everything else on stderr.

Results come as views (core/view.py) or, with `--json`, as the very dataclass; progress and notes come as events. Plain text
needs no rich: `status` and `log` answer before it would be imported. Colour only on a terminal, and never with NO_COLOR.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from llmos_cli.core.redaction import redacted
from llmos_cli.core.view import Cell, Group, Line, Lines, Span, Table, View, duration, number, short, size
from llmos_cli.errors import ConfigError, LlmosError
from llmos_cli.events import Event, Metric, Note, Progress, Resumed, Saved

_COLOURS = {"id": "33", "name": "36", "good": "32", "bad": "31", "warn": "35", "dim": "2", "bold": "1"}
_SPARSE_SECONDS = 20.0
"""Off a terminal, progress is a line every so often instead of one that moves."""


class Ui:
    def __init__(self, *, json: bool = False, quiet: bool = False, dry_run: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.dry_run = dry_run
        self._out = _Stream(sys.stdout)
        self._err = _Stream(sys.stderr)
        self._live = self._err.terminal and not quiet
        self._line = ""
        self._shown_at = 0.0
        self._stage = ""

    def show(self, result: Any) -> None:
        """Print a result: its view, or itself as JSON; of a dry run with the word that it was one."""
        self._clear()
        if self.json:
            self._out.line(to_json(result, **({"dry_run": True} if self.dry_run else {})))
            return
        self._out.text(redacted(render(result.view(), colour=self._out.colour, width=self._out.width)))
        if self.dry_run:
            self._out.line("dry run: nothing was changed")

    def write(self, text: str) -> None:
        """Print text as it is on stdout: generated tokens, a log that is followed."""
        self._clear()
        self._out.text(text)

    def emit(self, event: Event) -> None:
        """Show an event on stderr while the work goes on."""
        match event:
            case Note(level="warning"):
                self._say(_paint("warning:", "35", self._err.colour) + f" {event.message}")
            case _ if self.quiet:
                pass
            case Note():
                self._say(event.message)
            case Resumed():
                self._say(event.told)
            case Saved(checkpoint=checkpoint, moved=moved):
                self._say(f"saved {short(checkpoint)}" + (f" ({moved})" if moved else ""))
            case Metric(name=name, value=value, split=split, step=int(step)):
                self._say(f"step {step:,}  {' '.join(filter(None, (split, name)))} {number(value)}")
            case Progress():
                self._progress(event)
            case _:
                pass

    def confirm(self, question: str) -> bool:
        """Ask on the terminal; False where nobody can answer."""
        if not (sys.stdin.isatty() and self._err.terminal):
            return False
        self._clear()
        self._err.text(f"{redacted(question)} [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def secret(self, question: str) -> str | None:
        """Ask on the terminal for what must not be seen; None where nobody can answer."""
        if not (sys.stdin.isatty() and self._err.terminal):
            return None
        import getpass

        self._clear()
        return getpass.getpass(question)

    def error(self, error: LlmosError) -> None:
        self._clear()
        if self.json:
            with contextlib.suppress(OSError):  # it may be about this very disk; the exit code says it too
                self._out.line(error_json(error))
        colour = self._err.colour
        self._err.line(_paint("error:", "31", colour) + f" {error.message}")
        if isinstance(error, ConfigError) and error.place:
            place = error.place
            self._err.line(f"  {place.file}:{place.line}:{place.column}" if place.line else f"  {place.file}")
            for line in place.frame.splitlines():
                self._err.line(f"  {line}")
        if error.hint:
            self._err.line(_paint("hint:", "36", colour) + f" {error.hint}")

    def close(self) -> None:
        self._clear()
        self._out.flush()

    def _progress(self, event: Progress) -> None:
        if self._live:
            self._clear()
            self._line = progress_line(event)[: self._err.width - 1]
            self._err.text(self._line)
        elif self._due(event):
            self._err.line(progress_line(event))

    def _due(self, event: Progress) -> bool:
        """Off a terminal: the first of a stage, its last, and one every twenty seconds."""
        now = time.monotonic()
        new_stage, last = event.stage != self._stage, event.total > 0 and event.step >= event.total
        if not (new_stage or last or now - self._shown_at > _SPARSE_SECONDS):
            return False
        self._stage, self._shown_at = ("", now) if last else (event.stage, now)
        return True

    def _say(self, text: str) -> None:
        self._clear()
        self._err.line(text)

    def _clear(self) -> None:
        """Take the moving line away before anything else is printed."""
        if self._line:
            self._err.text("\r\x1b[2K")
            self._line = ""


class _Stream:
    """stdout or stderr, and what it can show."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.terminal = file.isatty()
        self.colour = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        if not self.terminal:
            return 10_000
        import shutil

        return shutil.get_terminal_size().columns

    def line(self, text: str) -> None:
        self.text(redacted(text) + "\n")

    def text(self, text: str) -> None:
        """On stderr what nobody hears (the disk of its file is full, the reader of its pipe has left) must not end the work."""
        with contextlib.suppress(*((OSError,) if self._file is sys.stderr else ())):
            self._file.write(text)
            if self.terminal or self._file is sys.stderr:
                self._file.flush()

    def flush(self) -> None:
        self._file.flush()


def progress_line(event: Progress) -> str:
    """`train 120/400 steps  loss 3.214  4,012 tokens/s  eta 1m15s  1.2 GB`"""
    count = f"{event.step:,}/{event.total:,}" if event.total else f"{event.step:,}"
    plural = "" if (event.total or event.step) == 1 or event.unit.isupper() else "s"
    parts = [f"{event.stage} {count} {event.unit}{plural}"]
    parts += [f"{name} {number(value)}" for name, value in event.values.items()]
    if event.rate:
        parts.append(
            f"{event.rate:,.0f} {event.rate_unit}/s" if event.rate >= 10 else f"{event.rate:.2g} {event.rate_unit}/s"
        )
    if event.total and event.step >= event.total:
        parts += [f"in {duration(event.elapsed)}"] if event.elapsed else []
    elif event.eta is not None:
        parts.append(f"eta {duration(event.eta)}")
    if event.memory:
        parts.append(size(event.memory))
    return "  ".join(parts)


def render(view: View, *, colour: bool = False, width: int = 10_000) -> str:
    """A view as text, ending in a newline unless it is empty."""
    match view:
        case str():
            return view if not view or view.endswith("\n") else view + "\n"
        case Lines():
            return "".join(_line(line, colour) + "\n" for line in view.lines)
        case Table():
            return _rich_table(view, width) if colour else _plain_table(view)
        case Group():
            return "\n".join(text for part in view.parts if (text := render(part, colour=colour, width=width)))


def _line(line: Line, colour: bool) -> str:
    parts: Sequence[str | Span] = [line] if isinstance(line, str | Span) else line
    return "".join(
        _paint(part.text, _COLOURS[part.style], colour) if isinstance(part, Span) else part for part in parts
    )


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text


def _plain_table(table: Table) -> str:
    """Columns two spaces apart, no trailing blanks: pleasant to read, easy for `awk`."""
    headers = [list(table.headers)] if any(table.headers) else []
    rows = [*headers, *([_cell(cell) for cell in row] for row in table.rows)]
    widths = [max(_width(row[column]) for row in rows) for column in range(len(table.headers))]
    right = [_right(table, column) for column in range(len(table.headers))]
    lines = [
        "  ".join(_pad(text, *how) for text, how in zip(row, zip(widths, right, strict=True), strict=True))
        for row in rows
    ]
    title = f"{table.title}\n" if table.title else ""
    return title + "".join(line.rstrip() + "\n" for line in lines)


def _right(table: Table, column: int) -> bool:
    if column < len(table.align):
        return table.align[column] == "r"
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and all(isinstance(cell, int | float) for cell in cells)


def _cell(cell: Cell) -> str:
    if cell is None:
        return "—"
    return number(cell) if isinstance(cell, float) else str(cell)


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if right else text + blanks


def _width(text: str) -> int:
    """Columns on a terminal: wide characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _rich_table(table: Table, width: int) -> str:
    """On a terminal rich folds what is wider than the window."""
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    styles = {"id": "yellow", "name": "cyan", "good": "green", "bad": "red", "warn": "magenta"}
    grid = Grid(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        title=table.title or None,
        title_justify="left",
        show_header=any(table.headers),
    )
    for column, header in enumerate(table.headers):
        grid.add_column(Text(header), justify="right" if _right(table, column) else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(_cell(c), style=styles.get(c.style, c.style) if isinstance(c, Span) else "") for c in row))
    out = StringIO()
    Console(file=out, force_terminal=True, width=width, highlight=False).print(grid)
    return out.getvalue()


def to_json(result: Any, **more: Any) -> str:
    """The result dataclass as one JSON object: `{"schema": "llmos.status/1", ...}`, and `more` of it."""
    import json
    from dataclasses import fields

    schema = getattr(result, "__llmos_schema__", None) or f"llmos.{_kebab(type(result).__name__)}/1"
    values = {field.name: _plain(getattr(result, field.name)) for field in fields(result)}
    return json.dumps({"schema": schema, **values, **more}, ensure_ascii=False, allow_nan=False)


def error_json(error: LlmosError) -> str:
    import json

    told: dict[str, Any] = {"code": error.exit_code, "message": error.message, "hint": error.hint}
    if isinstance(error, ConfigError) and error.place:
        told |= {"file": error.place.file, "line": error.place.line, "column": error.place.column}
    return json.dumps({"schema": "llmos.error/1", "error": told}, ensure_ascii=False)


def _kebab(name: str) -> str:
    """`StatusResult` is `status`, `ConfigShow` is `config-show`."""
    name = name.removesuffix("Result")
    return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _plain(value: Any) -> Any:
    """JSON values of a dataclass's fields; a number that JSON cannot hold becomes null."""
    from collections.abc import Mapping, Set
    from dataclasses import fields, is_dataclass

    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Set):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)
