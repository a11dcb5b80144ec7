"""`llmos compress`: from a target alone to a proven model: what to cut out, and how many bits each layer gets, are found by measuring."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core.atomic import write_bytes
from llmos_cli.core.view import Cell, Group, Lines, Table, View, number, short, size
from llmos_cli.errors import GateFailed, UsageError
from llmos_cli.events import Emit, Note, Proven
from llmos_cli.models import headers
from llmos_cli.models.load import skeleton
from llmos_cli.models.matrices import matrices
from llmos_cli.models.quantized import why_not
from llmos_cli.models.save import stored_names
from llmos_cli.operations.compression import resuming
from llmos_cli.operations.compression.embeddings import bytes_gained, left_alone_but
from llmos_cli.operations.compression.finish import Outcome, accept, proven
from llmos_cli.operations.compression.frontier import (
    Built,
    Candidate,
    Stock,
    Unreachable,
    best_of_latency,
    best_of_size,
    proven_of_kl,
    thinned,
)
from llmos_cli.operations.compression.plot import plot
from llmos_cli.operations.compression.result import CompressResult
from llmos_cli.operations.compression.resuming import as_begun
from llmos_cli.operations.compression.sensitivity import weight_bytes
from llmos_cli.operations.compression.subject import Subject, check_dense
from llmos_cli.operations.compression.workshop import Made, Workshop
from llmos_cli.operations.compression.workshop import held as memory_of
from llmos_cli.operations.proof import Proof
from llmos_cli.options.verbs import CompressOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
OTHERWISE = {
    "size": "quantize embeddings too (compress.embeddings=true)",
    "latency": "quantize the head too (compress.embeddings=true)",
    "kl": "heal longer (--heal N)",
}
"""What else may bring a target within reach."""
SHOWN = 8
"""Points of each stock's frontier that the table lists."""


@dataclass(frozen=True)
class Target:
    """`kind`: size (bytes), latency (share of the parent's) or kl (nats a position); `asked`: in the user's words."""

    kind: str
    value: float
    asked: str


@dataclass(frozen=True)
class Point:
    """`cut`: share of the parameters that went; `bits` of a quantized weight, with its scales; `size` of all weights in bytes; `kl` to the
    parent on the probes, nats a position, predicted unless `measured`; `how` it was cut, in words; `proven`: its KL on the samples of the
    proof, for which what is committed had to be built, and what missed a KL there; `latency`: as a share of the parent's, of what was timed
    for a target of that. Of what was too slow even in the fewest bits nothing else is known: it has no size and no KL, and its bits are
    those of the codes alone."""

    cut: float
    bits: float
    size: int | None
    kl: float | None
    measured: bool = False
    chosen: bool = False
    how: str = ""
    proven: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Compressed:
    """`target` in words; `frontier`: what could be had, and what was built; `picture`: its plot, where matplotlib is there."""

    target: str
    frontier: list[Point]
    picture: str | None
    result: CompressResult

    def view(self) -> View:
        return Group([self._table(), Lines(list(self._remarks())), self.result.view()])

    def _table(self) -> Table:
        timed = any(point.latency is not None for point in self.frontier)
        rows = [self._row(point, timed) for point in self.frontier]
        heads = ["cut out", "bits", *(["latency"] if timed else []), "size", "KL to the parent", ""]
        return Table(heads, rows, align="r" * (len(heads) - 1) + "l", title=self.target)

    def _row(self, point: Point, timed: bool) -> list[Cell]:
        latency = [None if point.latency is None else f"{point.latency:.2f}x"] if timed else []
        weight = None if point.size is None else size(point.size)
        kl = None if point.kl is None else number(point.kl)
        bits = f"{point.bits:.2f}" if point.bits else None  # no format has codes for its layers
        return [f"{point.cut:.0%}", bits, *latency, weight, kl, self._mark(point)]

    def _mark(self, point: Point) -> str:
        if point.chosen:
            return "chosen"
        if point.proven is not None:
            return f"missed: {number(point.proven)} in its proof"
        if point.size is None:
            return "too slow"
        return "built" if point.measured else ""

    def _remarks(self) -> Iterable[str]:
        yield "KL of rows that were not built is predicted; all of it on validation samples, the proof below on others"
        if self.picture:
            yield f"plotted in {self.picture}"


def compress(ws: Workspace, rev: str, resolved: Resolved, *, emit: Emit) -> Compressed:
    """Find, build and prove the best model that reaches the target of the config.

    Raises UsageError unless exactly one target is set, GateFailed where no model reaches it (naming the nearest) or the result is
    worse than `max_kl` or `max_drop` allow. In each case nothing is committed.
    """
    onto, parent = ws.onto(), ws.checkpoint(rev)
    target_of(resolved.config.compress, parent)
    begun = as_begun(ws, parent, resolved)
    with ws.begin("compress", config=begun, files=resolved.files, parents=[parent.id], onto=onto) as run:
        run.listen(emit)
        return carry_out(ws, run, parent, resolved)


def resume(ws: Workspace, name: str | None, *, emit: Emit) -> Compressed:
    """Go on with the run `name`, or the current branch's last interrupted one: what it made and measured is not made again."""
    return resuming.resume(ws, "compress", name, carry_out, emit=emit)


def carry_out(ws: Workspace, run: Run, parent: Checkpoint, resolved: Resolved) -> Compressed:
    """All that happens within a compressing run, whatever an earlier process of it has made already."""
    options: CompressOptions = resolved.config.compress
    target = target_of(options, parent)
    workshop = Workshop(ws, run, parent, resolved)
    seen = Seen(workshop, lambda built: proven(ws, run, *_entered(workshop, built), resolved))
    found = search(target, seen)
    proof = seen.proof(found)
    subject, outcome = _entered(workshop, found)
    with ws.stage() as staged:
        # A copy: the run may be killed once this one has gone to its place.
        shutil.copytree(outcome.folder, staged, dirs_exist_ok=True)
        outcome = replace(outcome, folder=staged)
        record = workshop.samples.record
        result = accept(ws, run, subject, resolved, outcome, record, proof, max_latency=options.target_latency)
    points = seen.points(found)
    found_out = Compressed(target.asked, points, _plotted(ws, run, points), result)
    run.emit(Proven(result.checkpoint, result.sentence, found_out))
    return found_out


def _entered(workshop: Workshop, built: Built[Made]) -> tuple[Subject, Outcome]:
    """What was built, as what a compression made of the model that its matrices were taken from."""
    made, stock, bits = built.made, built.candidate.stock, built.candidate.bits()
    subject = workshop.loaded(made.source)
    layers = {subject.matrices[name].layer_name: bits[name] for name in bits}
    rounded = workshop.options.embeddings
    ways = [*([stock.method] if stock.cut else []), *(["gptq"] if bits else [])]
    outcome = Outcome(
        made.folder,
        made.logits,
        {"bits": made.bits} if bits else {},
        method=", ".join(ways),
        reached=", ".join([_cut_out(stock), *([f"{made.bits:.2f} bits a weight with scales"] if bits else [])]),
        changed=len(bits),
        left_alone=left_alone_but(subject.left_alone, subject.model) if rounded else subject.left_alone,
        used={"chosen": {"cut": stock.cut, "method": stock.method, "how": stock.how, "layers": layers}},
    )
    return subject, outcome


def _plotted(ws: Workspace, run: Run, points: list[Point]) -> str | None:
    if (image := plot(points)) is None:
        run.emit(Note('the frontier is not plotted: pip install "llmos-cli[plot]"'))
        return None
    write_bytes(file := run.path / "frontier.png", image, scratch=ws.dot / "tmp")
    return str(file)


def _cut_out(stock: Stock) -> str:
    return f"{stock.cut:.0%} cut out" + (f" ({stock.how})" if stock.how else "")


def target_of(options: CompressOptions, parent: Checkpoint) -> Target:
    given = {
        "size": options.target_size,
        "ratio": options.target_ratio,
        "latency": options.target_latency,
        "kl": options.target_kl,
    }
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) != 1:
        told = " and ".join(f"--target-{kind}" for kind in asked) or "none"
        raise UsageError(
            f"compress wants exactly one target, not {told}", hint="such as --target-ratio 0.3 or --target-kl 0.01"
        )
    if options.target_size is not None:
        return Target("size", _bytes(options.target_size), f"at most {options.target_size}")
    if options.target_ratio is not None:
        share = options.target_ratio * weight_of(parent.path)
        return Target("size", share, f"at most {size(share)}, {options.target_ratio:g} of the parent's")
    if options.target_latency is not None:
        if not options.latency:
            raise UsageError(
                "a target latency cannot be proven with compress.latency off", hint="leave compress.latency out"
            )
        return Target("latency", options.target_latency, f"{options.target_latency:g} of the parent's latency")
    assert options.target_kl is not None
    return Target("kl", options.target_kl, f"KL at most {options.target_kl:g}")


def _bytes(text: str) -> float:
    unit = next(unit for unit in ("kB", "MB", "GB", "B") if text.endswith(unit))
    return float(text.removesuffix(unit)) * UNITS[unit]


def weight_of(path: Path) -> int:
    return sum(file.stat().st_size for file in headers.files(path))


class Seen:
    """A workshop that remembers what it made, for a search that begins again, for the table and the plot; `prove` what was built."""

    def __init__(self, workshop: Workshop, prove: Callable[[Built[Made]], Proof]) -> None:
        self.workshop, self.prove = workshop, prove
        self.coming = workshop.stocks()
        self.stocked: list[Stock] = []
        self.built: dict[Candidate, Built[Made]] = {}
        self.proofs: dict[Candidate, Proof] = {}
        self.timed: dict[Stock | Candidate, float] = {}

    def stocks(self) -> Iterator[Stock]:
        """Those that were looked at before, then more."""
        yield from tuple(self.stocked)
        for stock in self.coming:
            self.stocked.append(stock)
            yield stock

    def latency(self, of: Stock | Candidate) -> float:
        """As a share of the parent's; of a stock, all layers in the fewest bits."""
        self.timed[of] = self.workshop.latency(of)
        return self.timed[of]

    def build(self, candidate: Candidate) -> Built[Made]:
        if candidate not in self.built:
            self.built[candidate] = self.workshop.build(candidate)
        return self.built[candidate]

    def proof(self, built: Built[Made]) -> Proof:
        if built.candidate not in self.proofs:
            self.proofs[built.candidate] = self.prove(built)
        return self.proofs[built.candidate]

    def proven(self, built: Built[Made], bound: float) -> float:
        """The KL to the parent that the proof found; said where it is above the bound."""
        kl = self.proof(built).after["kl_parent"].value
        if not kl <= bound:
            told = f"its proof, on other samples, has a KL of {number(kl)}, not {number(built.kl)}"
            self.workshop.emit(Note(f"{size(built.candidate.size)}: {told}: looking for a larger one"))
        return kl

    def points(self, best: Built[Made]) -> list[Point]:
        """What could be had of each stock, and what was built, by size; of a latency what was timed."""
        predicted = [self._predicted(one) for one in self._possible()]
        slow = [self._slow(one) for one in self.timed if isinstance(one, Stock) and not one.looked_at]
        measured = [self._measured(candidate, built, chosen=built is best) for candidate, built in self.built.items()]
        return sorted([*predicted, *slow, *measured], key=lambda point: (point.cut, point.size or 0, point.bits))

    def _possible(self) -> list[Candidate]:
        if self.timed:
            return [one for one in self.timed if isinstance(one, Candidate) and one not in self.built]
        stocks = (stock for stock in self.stocked if stock.looked_at)
        return [candidate for stock in stocks for candidate in thinned(stock.candidates(), SHOWN)]

    def _predicted(self, candidate: Candidate) -> Point:
        stock, latency = candidate.stock, self.timed.get(candidate)
        return Point(stock.cut, self._bits(candidate), candidate.size, candidate.kl, how=stock.how, latency=latency)

    def _slow(self, stock: Stock) -> Point:
        fewest = min(self.workshop.options.bits)
        return Point(stock.cut, fewest, None, None, how=stock.how, latency=self.timed[stock])

    def _measured(self, candidate: Candidate, built: Built[Made], *, chosen: bool) -> Point:
        proof, stock = self.proofs.get(built.candidate), candidate.stock
        return Point(
            stock.cut,
            built.made.bits,
            built.candidate.size,
            built.kl,
            measured=True,
            chosen=chosen,
            how=stock.how,
            proven=None if proof is None else proof.after["kl_parent"].value,
            latency=self.timed.get(candidate),
        )

    def _bits(self, candidate: Candidate) -> float:
        """Of a weight with its scales, over all that would be quantized."""
        return 8 * (candidate.size - candidate.stock.rest.fixed) / max(1, candidate.stock.rest.weights)


def search(target: Target, seen: Seen) -> Built[Made]:
    """GateFailed where nothing reaches the target, naming what comes nearest."""
    try:
        if target.kind == "size":
            return best_of_size(seen.stocks(), int(target.value), seen.build)
        if target.kind == "kl":
            return proven_of_kl(seen.stocks, target.value, seen.build, partial(seen.proven, bound=target.value))
        return best_of_latency(seen.stocks(), target.value, seen.latency, seen.build)
    except Unreachable as failure:
        raise GateFailed(
            f"no model reaches {target.asked}: the nearest that was found has {_nearest(failure)} "
            f"({failure.cut:.0%} cut out): nothing was committed",
            hint=f"ask for less, allow fewer bits or deeper cuts (compress.bits, compress.cuts), or {OTHERWISE[target.kind]}",
        ) from None


def _nearest(failure: Unreachable) -> str:
    if failure.nearest is None:
        return failure.told
    weight = size(failure.nearest.size)
    if failure.proven is not None:
        return f"{weight} with a KL of {number(failure.proven)} in its proof"
    if failure.measured is not None:
        return f"{weight} with a KL of {number(failure.measured)}"
    return f"{weight} with a KL of about {number(failure.nearest.kl)}"


@dataclass(frozen=True)
class Plan:
    """`sizes`: of each share that may be cut out, the smallest and largest size in bytes that bits alone then reach, roughly; `memory`:
    what would be in it at once, in words."""

    checkpoint: str
    target: str
    size: int
    sizes: list[tuple[float, int, int]]
    memory: str

    def view(self) -> View:
        head = f"compress {short(self.checkpoint)} ({size(self.size)} of weights) to {self.target}"
        rows: list[list[Cell]] = [[f"{cut:.0%}", size(low), size(high)] for cut, low, high in self.sizes]
        return Group([Lines([head, self.memory]), Table(["cut out", "from", "to"], rows, align="rrr")])


def plan(ws: Workspace, rev: str, resolved: Resolved) -> Plan:
    """What `compress` would choose from, from the headers alone."""
    options: CompressOptions = resolved.config.compress
    parent = ws.checkpoint(rev)
    check_dense(parent)
    target, whole = target_of(options, parent), weight_of(parent.path)
    model, entries = skeleton(parent.path), headers.of_directory(parent.path)
    stored = stored_names(model, entries)
    held = {
        stored[name]: matrix
        for name, matrix in matrices(model, options.ignore).items()
        if not why_not(model, matrix.layer) and stored.get(name) in entries
    }
    fixed = whole - sum(entries[name].bytes for name in held)
    if options.embeddings:
        fixed -= bytes_gained(model, entries, options.group_size)
    low, high = (
        fixed + sum(weight_bytes(matrix, bits, options.group_size) for matrix in held.values())
        for bits in (min(options.bits), max(options.bits))
    )
    sizes = [(cut, int(low * (1 - cut)), int(high * (1 - cut))) for cut in (0.0, *sorted(options.cuts))]
    return Plan(parent.id, target.asked, whole, sizes, memory_of(options, parent.path))
