"""Where `compress` makes what it compares: stocks cut out of the parent, and the models built of them, each a page of a notebook on
disk, so that a search that was cut off finds them again.

Only one model is in memory at a time beside the parent; of the others there are files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from llmos_cli import device
from llmos_cli.core import atomic
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.methods.prune import shape
from llmos_cli.methods.quantize import gptq, rtn
from llmos_cli.models import headers
from llmos_cli.models.load import load
from llmos_cli.models.matrices import matrices
from llmos_cli.models.quantized import unpackable, why_not, write_quantized
from llmos_cli.models.rewrite import rewrite, write_resized
from llmos_cli.models.save import stored_names
from llmos_cli.operations.compression.coded import Coded, average_bits
from llmos_cli.operations.compression.coding import coding
from llmos_cli.operations.compression.cut import answers
from llmos_cli.operations.compression.embeddings import bytes_gained, round_embeddings
from llmos_cli.operations.compression.finish import round_to_stored
from llmos_cli.operations.compression.form import Form
from llmos_cli.operations.compression.frontier import Built, Candidate, Rest, Stock
from llmos_cli.operations.compression.healing import heal_pruned, heal_quantized
from llmos_cli.operations.compression.memory import CUTTING, HEALING, whole
from llmos_cli.operations.compression.notebook import Notebook, Page
from llmos_cli.operations.compression.pace import paced
from llmos_cli.operations.compression.reshape import fitting, missed
from llmos_cli.operations.compression.resuming import calibrated
from llmos_cli.operations.compression.sensitivity import Part, mean_kl, scored, sensitivities
from llmos_cli.operations.compression.shapes import OPTIONS, STREAM, Shape, best_shape, cut, with_stream
from llmos_cli.operations.compression.subject import BATCH, Calibration, Subject, subject
from llmos_cli.operations.compression.sweep import sweep
from llmos_cli.operations.heal import Healing
from llmos_cli.operations.proof import proof_split
from llmos_cli.operations.served import beside
from llmos_cli.options.verbs import CompressConfig, CompressOptions
from llmos_cli.tasks.base import Batch, Split

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace

NEEDS = gptq.NEEDS | shape.NEEDS
SEARCH = "search"
"""The folder of the notebook, in a run's own state."""
LOGITS = "logits.safetensors"


def held(options: CompressOptions, directory: Path, *, emit: Emit = ignore) -> str:
    """What a search holds in memory; UsageError where that cannot be had."""
    return whole(options, directory, HEALING if options.heal else CUTTING, "compress", emit=emit)


@dataclass(frozen=True)
class Made:
    """A built model on disk. `logits`: what it answered in memory to the first samples that it will be proven on; `bits` of a
    weight with scales; `source`: the dense model that its matrices were taken from."""

    folder: Path
    logits: Tensor
    bits: float
    source: Path


class Workshop:
    """`run` keeps what was made."""

    def __init__(self, ws: Workspace, run: Run, parent: Checkpoint, resolved: Resolved) -> None:
        self.config: CompressConfig = resolved.config
        self.options = self.config.compress
        self.stage, self.emit = ws.stage, run.emit
        self.notes = Notebook(run.state / SEARCH, ws.stage)
        self.cuts = sorted(self.options.cuts)
        held(self.options, parent.path, emit=run.emit)
        self.subject: Subject = subject(ws, parent, resolved, self.options.ignore, emit=run.emit)
        self.samples: Calibration = calibrated(ws, run, self.subject, resolved, NEEDS)
        self.probes = self._probes()
        self.dense = [scored(self.subject.model, self.subject.exam.task, batch) for batch in self.probes]
        self.sources: dict[float, Path] = {}
        self.least = 0

    @property
    def parent(self) -> Path:
        return self.subject.checkpoint.path

    def stocks(self) -> Iterator[Stock]:
        """The parent, then the parent with more and more of it cut out; where its structure cannot be cut, a note says why."""
        yield self._stock(0.0, self.parent, 0.0)
        for share in self.cuts:
            try:
                found = self._cut(share)
            except LlmosError as problem:
                self.emit(Note(f"nothing is cut out: {problem.message}"))
                return
            healed = partial(self._healed, share) if self.options.heal else None
            stock = self._stock(share, found.folder, found.kl, healed)
            yield replace(stock, method=found.method, how=", ".join(found.told))

    def build(self, candidate: Candidate) -> Built[Made]:
        """Quantize a stock as the candidate says, heal it, write it, and measure it on the probes."""
        source = self.sources[candidate.stock.cut]
        name = f"built-{candidate.stock.cut:g}-{_digest(candidate.bits())}"
        page = self.notes.once(name, partial(self._built, candidate, self.notes.unfinished(name)))
        logits = load_file(page.folder / LOGITS)["logits"]
        made = Made(page.model, logits, page.facts["bits"], source)
        return Built(replace(candidate, size=page.facts["size"]), page.facts["kl"], made)

    def latency(self, of: Stock | Candidate) -> float:
        """How long one answer takes of what the parent takes, as a deployment would give it: one more token of a language model, a
        whole sample of a classifier. Weights are rounded to the nearest code, and a stock, all of whose layers then have the fewest
        bits, need not have healed: neither matters here."""
        stock, bits = (of, {}) if isinstance(of, Stock) else (of.stock, of.bits())
        page = self.notes.once(f"timed-{stock.cut:g}-{_digest(bits)}", partial(self._timed, stock, bits))
        share = float(page.facts["share"])
        widths = set(bits.values()) or {min(self.options.bits)}
        told = " to ".join(map(str, sorted({min(widths), max(widths)})))
        self.emit(Note(f"{stock.cut:.0%} cut out, {told} bits: {share:.2f} of the parent's latency"))
        return share

    def loaded(self, source: Path) -> Subject:
        model = load(source, device=device.pick())
        return replace(self.subject, model=model, matrices=matrices(model, self.options.ignore))

    def _probes(self) -> list[Batch]:
        """Samples that neither calibration nor the proof sees: of validation, or else training samples that were not drawn."""
        splits = self.subject.exam.prepared.splits
        split = next(splits[name] for name in ("validation", "train") if len(splits.get(name, ())))
        rows = range(len(split))[: self.options.probe_samples]
        return [
            device.move(split.batch(rows[start : start + BATCH]), self.subject.device)
            for start in range(0, len(rows), BATCH)
        ]

    def _healing(self, state: Path) -> Healing:
        return Healing(self.options.heal, self.config.heal, self.config.seed, state)

    @cached_property
    def _missed(self) -> list[str]:
        """The blocks that may go, the first to go first; none where they cannot be left out."""

        def measure(_: Page) -> dict[str, Any]:
            model, most = self.subject.model, max(self.cuts)
            try:
                return {"names": missed(model, self.samples.batches, self.options.ignore, most)}
            except UsageError:
                return {"names": []}

        found: list[str] = self.notes.once("missed", measure).facts["names"]
        return found

    def _cut(self, share: float) -> Shape:
        """In whichever shape answers best. One that has more cut out does not keep more blocks."""
        gone = fitting(self.subject.model, self._missed, share)

        def look(name: str, gone: Sequence[str], own: shape.Options) -> Shape:
            page = self.notes.once(f"cut-{share:g}-{name}", partial(self._shaped, share, gone, own))
            found = Shape(len(gone), folder=page.model, **page.facts)
            told = found.refused or f"{', '.join(found.told)}: KL {found.kl:.3g}"
            self.emit(Note(f"{share:.0%} cut out: {told}"))
            return found

        least = min(self.least, len(gone))
        best = best_shape(least, len(gone), lambda count: look(str(count), gone[:count], OPTIONS))
        self.least = best.gone
        return with_stream(best, lambda: look("stream", (), STREAM))

    def _shaped(self, share: float, gone: Sequence[str], own: shape.Options, page: Page) -> dict[str, Any]:
        fresh = partial(self.loaded, self.parent)
        try:
            found = cut(
                self.subject,
                fresh,
                gone,
                own,
                sparsity=share,
                ignore=self.options.ignore,
                batches=self.samples.batches,
                emit=self.emit,
            )
        except UsageError as problem:
            return {"refused": problem.message}
        round_to_stored(found.model, self.parent)
        write_resized(found.model, self.parent, page.model)
        kl = mean_kl(found.model, self.subject.exam.task, self.probes, self.dense)
        return {"kl": kl, "told": list(found.told)}

    def _healed(self, share: float) -> float:
        """Heal what was cut, and the KL that is left."""

        def make(page: Page) -> dict[str, Any]:
            smaller = self.loaded(self.sources[share])
            heal_pruned(smaller, self._healing(self.notes.unfinished(name)), self.emit)
            round_to_stored(smaller.model, self.parent)
            write_resized(smaller.model, self.parent, page.model)
            return {"kl": mean_kl(smaller.model, smaller.exam.task, self.probes, self.dense)}

        name = f"healed-{share:g}"
        page = self.notes.once(name, make)
        self.sources[share] = page.model
        return float(page.facts["kl"])

    def _stock(self, cut: float, source: Path, kl: float, healed: Callable[[], float] | None = None) -> Stock:
        self.sources[cut] = source
        return Stock(cut, kl, partial(self._rest, cut), healed)

    def _rest(self, cut: float) -> Rest:
        facts = self.notes.once(f"measured-{cut:g}", partial(self._measured, self.sources[cut])).facts
        parts = [Part(tuple(names), *map(_by_bits, found)) for names, *found in facts["parts"]]
        return Rest(parts, facts["weights"], facts["fixed"])

    def _measured(self, source: Path, _: Page) -> dict[str, Any]:
        here = self.loaded(source)
        fitting = {name: matrix for name, matrix in here.matrices.items() if not why_not(here.model, matrix.layer)}
        if reason := unpackable(here.model):
            self.emit(Note(f"no bits are saved: {reason}"))
            fitting = {}
        parts = sensitivities(
            here.model,
            here.exam.task,
            fitting,
            self.samples.batches,
            self.probes,
            bits=self.options.bits,
            group_size=self.options.group_size,
            emit=self.emit,
        )
        if self.options.target_latency:
            parts = paced(here, self.split, parts, self.options.group_size)
        entries = headers.of_directory(source)
        stored = stored_names(here.model, entries)
        coded = [name for part in parts for name in part.names]
        whole = sum(file.stat().st_size for file in headers.files(source))
        gained = bytes_gained(here.model, entries, self.options.group_size) if self.options.embeddings else 0
        return {
            "parts": [
                [part.names, dict(part.bits_bytes), dict(part.bits_kl), dict(part.bits_seconds)] for part in parts
            ],
            "weights": sum(here.matrices[name].shape.numel() for name in coded),
            "fixed": whole - gained - sum(entries[stored[name]].bytes for name in coded if stored.get(name) in entries),
        }

    def _built(self, candidate: Candidate, state: Path, page: Page) -> dict[str, Any]:
        source = self.sources[candidate.stock.cut]
        here = self.loaded(source)
        embedded = round_embeddings(here, self.options.group_size) if self.options.embeddings else {}
        coded = self._coded(here, candidate)
        if self.options.heal and coded:
            coded = heal_quantized(here, coded, self._healing(state), self.emit)
        self._write(here, {**coded, **embedded}, source, page.model)
        save_file({"logits": answers(here).contiguous()}, page.folder / LOGITS)
        atomic.as_made_here(page.folder / LOGITS)
        return {
            "kl": mean_kl(here.model, here.exam.task, self.probes, self.dense),
            "size": sum(file.stat().st_size for file in headers.files(page.model)),
            "bits": average_bits(coded) if coded else 0.0,
        }

    def _timed(self, stock: Stock, bits: Mapping[str, int], page: Page) -> dict[str, Any]:
        here = self.loaded(self.sources[stock.cut])
        embedded = round_embeddings(here, self.options.group_size) if self.options.embeddings else {}
        coded: dict[str, Coded] = {}
        form = self._form(here, bits, otherwise=min(self.options.bits))
        sweep(here, [], coding(here, rtn, rtn.Options(), form, coded), rtn.NEEDS, stage="round", emit=ignore)
        with self.stage() as folder:
            self._write(here, {**coded, **embedded}, self.sources[stock.cut], folder)
            task, split = here.exam.task, self.split
            speed = beside(task, self.parent, folder, split, batch_size=BATCH, waited_for=True, emit=ignore)
        return {"share": 1 / speed.gain}

    @property
    def split(self) -> Split:
        """Whose samples are answered where answers are timed: as in the proof."""
        prepared = self.subject.exam.prepared
        return prepared.splits[proof_split(prepared)]

    def _form(self, here: Subject, bits: Mapping[str, int], otherwise: int) -> Form:
        layers = {here.matrices[name].layer_name: width for name, width in bits.items()}
        return Form(otherwise, self.options.group_size, layers)

    def _coded(self, here: Subject, candidate: Candidate) -> dict[str, Coded]:
        coded: dict[str, Coded] = {}
        if not candidate.bits():  # no format holds its layers as codes: what was cut out is all
            return coded
        form = self._form(here, candidate.bits(), otherwise=max(self.options.bits))
        compress = coding(here, gptq, gptq.Options(), form, coded)
        dtype = self.samples.dtype
        sweep(here, self.samples.batches, compress, gptq.NEEDS, dtype=dtype, stage="quantize", emit=self.emit)
        return coded

    def _write(self, here: Subject, coded: Mapping[str, Coded], source: Path, folder: Path) -> None:
        with self.stage() as dense:
            round_to_stored(here.model, source, but=coded)
            rewrite(here.model, source, dense)
            write_quantized(folder, dense, {name: entry.quantized() for name, entry in coded.items()})


def _by_bits(found: Mapping[str, Any]) -> dict[int, Any]:
    """JSON has no whole numbers for keys."""
    return {int(bits): value for bits, value in found.items()}


def _digest(bits: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(dict(bits), sort_keys=True).encode()).hexdigest()[:16]
