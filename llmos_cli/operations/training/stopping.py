"""Ctrl-C and SIGTERM during training: finish the step, save the state, then stop.

A signal in the middle of an optimizer step would leave half of the weights updated, so the first one only asks; the second one
stops at once, and what was saved last stays.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from llmos_cli.errors import Terminated


class Stopping:
    """A context manager whose `asked` tells which signal came, if one did; signals reach the main thread only."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # what was to be ignored (`nohup`, a trial) stays so
                    self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            self.stop(saved=False)
        self.asked = signal.Signals(number)

    def stop(self, *, saved: bool) -> None:
        """Leave, as the signal would have made us; `saved`: whether there is a state to resume from."""
        if self.asked == signal.SIGTERM:
            raise Terminated(
                "training was terminated",
                hint="`llmos train --resume` goes on where it stopped"
                if saved
                else "nothing was saved of it: run it again",
            )
        raise KeyboardInterrupt
