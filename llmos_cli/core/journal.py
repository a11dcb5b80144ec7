"""What a run writes down: every event as a line of JSON in `events.jsonl`, the same for people in `log.txt`.

Several processes may write (a run and its workers): each line is one `write` to a file opened for appending, so that
lines of different writers never mix.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from llmos_cli.core.atomic import refusals
from llmos_cli.core.endings import closed
from llmos_cli.core.listing import plainly, read_bytes
from llmos_cli.core.records import EVENTS
from llmos_cli.core.redaction import hidden, redacted
from llmos_cli.errors import LlmosError
from llmos_cli.events import Ended, Event, Kept, Layer, Metric, Note, Progress, Proven, Resumed, Saved, Started

_PROGRESS_EVERY = 5.0
"""Seconds between lines of progress in `log.txt`; `events.jsonl` has them all."""


class Journal:
    def __init__(self, directory: Path) -> None:
        self._events = directory / EVENTS
        self._log = directory / "log.txt"
        self._descriptors: dict[Path, int] = {}
        self._guard = threading.Lock()
        self._progress_said = 0.0

    def write(self, event: Event) -> None:
        text = line(event)
        self._append(self._events, closed(text, read_bytes(self._events)) if isinstance(event, Ended) else text)
        # What a command that ended well has said of itself outlives a power cut, and so does what a config is written after.
        if isinstance(event, Resumed | Kept | Saved | Ended):
            os.fsync(self._descriptor(self._events))
        if self._worth_saying(event):
            self._append(self._log, sentence(event))

    def close(self) -> None:
        with self._guard:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _worth_saying(self, event: Event) -> bool:
        if isinstance(event, Kept):
            return False
        if not isinstance(event, Progress) or (event.total and event.step >= event.total):
            return True
        if event.at - self._progress_said < _PROGRESS_EVERY:
            return False
        self._progress_said = event.at
        return True

    def _append(self, path: Path, text: str) -> None:
        data = text.encode()
        with refusals(path):
            if os.write(self._descriptor(path), data) != len(data):
                raise LlmosError(f"cannot write {path}: the disk is full", hint="free some space and try again")

    def _descriptor(self, path: Path) -> int:
        with self._guard:
            if path not in self._descriptors:
                self._descriptors[path] = plainly(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            return self._descriptors[path]


def line(event: Event) -> str:
    """One line of JSON; a number that JSON has no word for (a loss that became NaN) is written as null."""
    value = hidden(event.to_json())
    try:
        return json.dumps(value, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def sentence(event: Event) -> str:
    """One line of `log.txt`: UTC time and what happened."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.at))
    return f"{clock}  {' '.join(redacted(_words(event)).split())}\n"


def _words(event: Event) -> str:
    match event:
        case Started():
            return f"{event.operation} started on {event.base[:12] if len(event.base) == 64 else event.base} (process {event.pid} on {event.host})"
        case Resumed():
            return event.told
        case Progress():
            return f"{event.stage} {event.step}{f'/{event.total}' if event.total else ''} {event.unit} {_values(event.values)}"
        case Metric():
            return f"{event.name} {event.value:.6g} {event.split} {f'at step {event.step}' if event.step is not None else ''}"
        case Layer():
            return f"{event.name}: " + (f"left alone, {event.skipped}" if event.skipped else _values(event.values))
        case Note():
            return event.message if event.level == "info" else f"{event.level}: {event.message}"
        case Saved():
            return f"saved {event.checkpoint[:12]}" + (f", {event.moved} moved to it" if event.moved else "")
        case Proven():
            return f"proven: {event.sentence}"
        case Ended():
            return f"{event.status}{f': {event.message}' if event.message else ''}"
    return json.dumps(event.to_json(), default=str)


def _values(values: Any) -> str:
    return " ".join(f"{name} {value:.6g}" for name, value in values.items())
