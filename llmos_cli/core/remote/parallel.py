"""Many transfers at once, how far they are, and the end of all of them when one fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from llmos_cli.core.remote.store import Heard
from llmos_cli.events import Emit, Progress

AT_ONCE = 8
_MEGA = 1_000_000
_OFTEN = 0.5
"""Seconds between two words on how far it is."""

T = TypeVar("T")
R = TypeVar("R")


class Stopped(Exception):
    """Another transfer failed: that one's error is told."""


def in_parallel(work: Callable[[T], R], items: Sequence[T], meter: Meter | None = None) -> list[R]:
    """`work` of each item, in order. The first failure, or Ctrl-C, ends the others at their next chunk."""
    if len(items) < 2:
        return [work(item) for item in items]
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failures = [error for each in futures if each.done() and (error := each.exception()) is not None]
            if failures:
                raise next((error for error in failures if not isinstance(error, Stopped)), failures[0])
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if meter is not None:
                meter.stop()
            raise


class Meter:
    """Counts the bytes of all transfers and says so now and then. `stage`: push, fetch."""

    def __init__(self, stage: str, total: int, emit: Emit) -> None:
        self._stage, self._total, self._emit = stage, total, emit
        self._guard = threading.Lock()
        self._done = 0
        self._began = self._told = time.monotonic()
        self._stopped = False

    @property
    def heard(self) -> Heard:
        return self._add

    @property
    def done(self) -> int:
        return self._done

    def stop(self) -> None:
        self._stopped = True

    def _add(self, count: int) -> None:
        if self._stopped:
            raise Stopped
        with self._guard:
            self._done += count
            now = time.monotonic()
            if now - self._told > _OFTEN and 0 < self._done // _MEGA < self._total // _MEGA:
                self._told = now
                self._say(now)

    def end(self) -> None:
        if self._total >= _MEGA:
            self._done = self._total
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        elapsed = max(now - self._began, 1e-9)
        rate = self._done / elapsed
        left = (self._total - self._done) / rate if rate else None
        self._emit(
            Progress(
                self._stage,
                self._done // _MEGA,
                max(self._total // _MEGA, 1),
                "MB",
                rate=rate / 1e6,
                rate_unit="MB",
                elapsed=elapsed,
                eta=left,
            )
        )
