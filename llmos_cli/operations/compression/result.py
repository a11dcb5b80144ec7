"""What a compression tells: what was reached, what it cost against the parent, what it weighs, what was left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmos_cli.core.view import Cell, Group, Line, Lines, Span, Table, View, number, short, size
from llmos_cli.operations.proof import Proof
from llmos_cli.operations.served import Speed
from llmos_cli.tasks.scoring import Interval

SHOWN = ("bits_per_byte", "perplexity", "accuracy", "macro_f1", "entity_f1", "loss", "kl_parent", "kl_base")
"""In this order, those that the task has."""
NAMES = {"kl_parent": "KL to the parent", "kl_base": "KL to the uncompressed one"}
TIMES = {
    "token_latency": ("one token at batch 1, median", " ms"),
    "token_latency_best": ("one token at batch 1, fastest", " ms"),
    "token_throughput": ("new tokens, {} streams at once", " /s"),
    "latency_p50": ("one sample at batch 1, median", " ms"),
    "latency_best": ("one sample at batch 1, fastest", " ms"),
    "throughput": ("throughput, {} samples at once", " /s"),
    "peak_memory": ("memory to answer, {} samples at once", "bytes"),
}
"""Of a deployment: what each is called, and its unit."""
LISTED = 6
"""Layers left alone that are named; of more, `--json` and the run's events have all."""


@dataclass(frozen=True)
class CompressResult:
    """`reached` says it in words; `left_alone`: module -> reason; `notes`: what the user should know of it."""

    checkpoint: str
    parent: str
    run: str
    branch: str
    operation: str
    method: str
    reached: str
    changed: int
    left_alone: Mapping[str, str]
    healed_steps: int
    proof: Proof
    notes: Sequence[str] = ()

    def view(self) -> View:
        speed = [self._speed(self.proof.speed)] if self.proof.speed else []
        return Group([Lines(list(self._head())), self._quality(), self._weight(), *speed, Lines(list(self._remarks()))])

    def _head(self) -> Iterable[Line]:
        healed = f", healed for {self.healed_steps} steps" if self.healed_steps else ""
        yield (
            Span(short(self.checkpoint), "id"),
            f"  {self.method}: {self.reached} in {self.changed} matrices{healed}",
        )

    def _quality(self) -> Table:
        before, after = self.proof.before, self.proof.after
        rows: list[list[Cell]] = [
            [NAMES.get(name, name), _told(before[name]) if name in before else None, _told(after[name])]
            for name in SHOWN
            if name in after and not (name == "kl_base" and after[name] == after["kl_parent"])
        ]
        return Table([f"{self.proof.split}, {self.proof.samples} samples", "before", "after"], rows, align="lrr")

    def _weight(self) -> Table:
        before, after = self.proof.bytes_before, self.proof.bytes_after
        rows: list[list[Cell]] = [
            ["compressed layers", size(before.layers), size(after.layers), _ratio(after.layers, after.layers_bf16)],
            ["all weights", size(before.total), size(after.total), _ratio(after.total, after.total_bf16)],
        ]
        return Table(["on disk", "before", "after", "of bf16"], rows, align="lrrr")

    def _speed(self, speed: Speed) -> Table:
        rows: list[list[Cell]] = []
        for name, (called, unit) in TIMES.items():
            if name in speed.before:
                before, after = speed.before[name], speed.after[name]
                rows.append(
                    [called.format(speed.together), _timed(before, unit), _timed(after, unit), f"{after / before:.2f}x"]
                )
        return Table(["as served here", "before", "after", "of before"], rows, align="lrrr")

    def _remarks(self) -> Iterable[Line]:
        yield self._reloaded()
        if self.proof.speed and (slow := no_faster(self.proof.speed)):
            yield slow
        if self.proof.unmeasured:
            yield self.proof.unmeasured
        if taken := self.proof.facts.get("compressing_memory"):
            yield f"compressing took {size(taken)} of memory at most"
        if self.proof.conformance:
            yield self.proof.conformance.sentence
            if self.operation == "compress" and self.proof.conformance.runs_in_other_bits:
                yield "`-s compress.bits=[4,8]` chooses among what vLLM runs"
        yield from self.notes
        if self.left_alone:
            yield Span(f"left alone: {'; '.join(self._listed())}", "dim")

    @property
    def sentence(self) -> str:
        """Who read it back, and what it was judged on."""
        proof = self.proof
        parts = [self._reloaded(), f"{proof.samples} samples of {proof.split}", proof.unmeasured]
        return "; ".join(filter(None, parts))

    def _reloaded(self) -> str:
        parity = self.proof.parity
        how = "reloaded in a fresh process" if parity.fresh else "read back"
        return f"{how} by {parity.reader}: logits differ by at most {parity.difference:.2g}"

    def _listed(self) -> Iterable[str]:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_alone.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            yield f"{', '.join(names[:LISTED])}{more} ({reason})"


def _told(found: Interval) -> str:
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def _timed(value: float, unit: str) -> str:
    return size(value) if unit == "bytes" else f"{number(value) if value < 1000 else f'{value:,.0f}'}{unit}"


def no_faster(speed: Speed) -> str:
    """Empty where it is faster; else in so many words: who compresses for speed must not find out in production."""
    if speed.faster:
        return ""
    waited_for = "one token" if speed.headline == "token_latency_best" else "one sample"
    verdict = "slower" if speed.slower else "no faster"
    return f"{verdict} than its parent as it is served here: {1 / speed.gain:.2f} of the time for {waited_for}"


def _ratio(size: int, of: int) -> str:
    return f"{size / of:.2f}x" if of else "—"
