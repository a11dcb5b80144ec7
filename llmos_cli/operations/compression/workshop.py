"""Where `compress` makes what it compares: stocks cut out of the parent, and the models built of them, each in a folder of its own.

Only one model is in memory at a time; of the others there are files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from llmos_cli import device
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.methods.prune import width
from llmos_cli.methods.quantize import gptq, rtn
from llmos_cli.models import headers
from llmos_cli.models.load import load
from llmos_cli.models.matrices import matrices
from llmos_cli.models.quantized import why_not, write_quantized
from llmos_cli.models.rewrite import rewrite, write_resized
from llmos_cli.operations import quantize
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.cut import answers, heal_smaller
from llmos_cli.operations.compression.embeddings import bytes_gained, round_embeddings
from llmos_cli.operations.compression.finish import round_to_stored
from llmos_cli.operations.compression.frontier import Built, Candidate, Rest, Stock
from llmos_cli.operations.compression.memory import CUTTING, HEALING, whole
from llmos_cli.operations.compression.narrow import narrow
from llmos_cli.operations.compression.sensitivity import mean_kl, scored, sensitivities
from llmos_cli.operations.compression.subject import BATCH, Calibration, Subject, calibration, subject
from llmos_cli.operations.compression.sweep import sweep
from llmos_cli.operations.heal import Healing
from llmos_cli.operations.proof import proof_split
from llmos_cli.operations.served import beside
from llmos_cli.options.verbs import CompressConfig
from llmos_cli.tasks.base import Batch

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Checkpoint, Workspace

NEEDS = gptq.NEEDS | width.NEEDS


@dataclass(frozen=True)
class Made:
    """A built model on disk. `logits`: what it answered in memory to the first samples that it will be proven on; `bits` of a
    weight with scales; `subject` names its matrices."""

    folder: Path
    logits: Tensor
    bits: float
    subject: Subject


class Workshop:
    """`new_folder` makes folders that last as long as the search."""

    def __init__(
        self, ws: Workspace, parent: Checkpoint, resolved: Resolved, *, new_folder: Callable[[], Path], emit: Emit
    ) -> None:
        self.config: CompressConfig = resolved.config
        self.options = self.config.compress
        self.new_folder, self.emit = new_folder, emit
        self.cuts = sorted(self.options.cuts)
        whole(self.options, parent.path, HEALING if self.options.heal else CUTTING, "compress", emit=emit)
        self.subject: Subject = subject(ws, parent, resolved, self.options.ignore, emit=emit)
        self.samples: Calibration = calibration(
            self.subject,
            self.options.calibration_samples,
            NEEDS,
            seed=self.config.seed,
            source=self.options.calibration,
            cache=ws.cache,
        )
        self.probes = self._probes()
        self.dense = [scored(self.subject.model, self.subject.exam.task, batch) for batch in self.probes]
        self.sources: dict[float, Path] = {}

    @property
    def healing(self) -> Healing:
        return Healing(self.options.heal, self.config.heal, self.config.seed)

    @property
    def parent(self) -> Path:
        return self.subject.checkpoint.path

    def stocks(self) -> Iterator[Stock]:
        """The parent, then the parent with more and more of it cut out; where its structure cannot be cut, a note says why."""
        yield self._stock(0.0, self.parent, 0.0)
        for share in self.cuts:
            try:
                yield self._cut(share)
            except LlmosError as problem:
                self.emit(Note(f"nothing is cut out: {problem.message}"))
                return

    def build(self, candidate: Candidate) -> Built[Made]:
        """Quantize a stock as the candidate says, heal it, write it, and measure it on the probes."""
        here = self._loaded(self.sources[candidate.stock.cut])
        embedded = round_embeddings(here, self.options.group_size) if self.options.embeddings else {}
        coded = self._coded(here, candidate)
        if self.options.heal:
            coded = quantize.heal_quantized(here, coded, self.healing, self.emit)
        folder = self._write(here, {**coded, **embedded}, self.sources[candidate.stock.cut])
        kl = mean_kl(here.model, here.exam.task, self.probes, self.dense)
        size = sum(file.stat().st_size for file in headers.files(folder))
        made = Made(folder, answers(here), quantize.average_bits(coded), here)
        return Built(replace(candidate, size=size), kl, made)

    def latency(self, stock: Stock, bits: int) -> float:
        """How long one answer takes of what the parent takes, as a deployment would give it: one more token of a language model, a
        whole sample of a classifier. Weights are rounded to the nearest code, and the stock need not have healed: neither matters here."""
        here = self._loaded(self.sources[stock.cut])
        embedded = round_embeddings(here, self.options.group_size) if self.options.embeddings else {}
        coded: dict[str, Coded] = {}
        form = quantize.Form(bits, self.options.group_size)
        sweep(here, [], quantize.coding(here, rtn, rtn.Options(), form, coded), rtn.NEEDS, stage="round", emit=ignore)
        folder = self._write(here, {**coded, **embedded}, self.sources[stock.cut])
        prepared, task = here.exam.prepared, here.exam.task
        split = prepared.splits[proof_split(prepared)]
        speed = beside(task, self.parent, folder, split, batch_size=BATCH, waited_for=True, emit=ignore)
        told = f"{stock.cut:.0%} cut out, {bits} bits: {1 / speed.gain:.2f} of the parent's latency"
        self.emit(Note(told))
        return 1 / speed.gain

    def _probes(self) -> list[Batch]:
        """Samples that neither calibration nor the proof sees: of validation, or else training samples that were not drawn."""
        splits = self.subject.exam.prepared.splits
        split = next(splits[name] for name in ("validation", "train") if len(splits.get(name, ())))
        rows = range(len(split))[: self.options.probe_samples]
        return [
            device.move(split.batch(rows[start : start + BATCH]), self.subject.device)
            for start in range(0, len(rows), BATCH)
        ]

    def _loaded(self, source: Path) -> Subject:
        model = load(source, device=device.pick())
        return replace(self.subject, model=model, matrices=matrices(model, self.options.ignore))

    def _cut(self, share: float) -> Stock:
        here = self._loaded(self.parent)
        cut = narrow(
            here,
            width,
            width.Options(),
            sparsity=share,
            ignore=self.options.ignore,
            batches=self.samples.batches,
            emit=self.emit,
        )
        round_to_stored(cut.model, self.parent)
        folder = self.new_folder()
        write_resized(cut.model, self.parent, folder)
        rough = mean_kl(cut.model, here.exam.task, self.probes, self.dense)
        return self._stock(share, folder, rough, partial(self._healed, share) if self.options.heal else None)

    def _healed(self, share: float) -> float:
        """Heal what was cut, and the KL that is left."""
        smaller = self._loaded(self.sources[share])
        heal_smaller(smaller, self.healing, self.emit)
        round_to_stored(smaller.model, self.parent)
        self.sources[share] = self.new_folder()
        write_resized(smaller.model, self.parent, self.sources[share])
        return mean_kl(smaller.model, smaller.exam.task, self.probes, self.dense)

    def _stock(self, cut: float, source: Path, kl: float, healed: Callable[[], float] | None = None) -> Stock:
        self.sources[cut] = source
        return Stock(cut, kl, partial(self._rest, cut), healed)

    def _rest(self, cut: float) -> Rest:
        source = self.sources[cut]
        here = self._loaded(source)
        fitting = {name: matrix for name, matrix in here.matrices.items() if not why_not(here.model, matrix.layer)}
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
        entries = headers.of_directory(source)
        coded = [name for part in parts for name in part.names]
        whole = sum(file.stat().st_size for file in headers.files(source))
        gained = bytes_gained(here.model, entries, self.options.group_size) if self.options.embeddings else 0
        return Rest(
            parts,
            weights=sum(here.matrices[name].shape.numel() for name in coded),
            fixed=whole - gained - sum(entries[name].bytes for name in coded if name in entries),
        )

    def _coded(self, here: Subject, candidate: Candidate) -> dict[str, Coded]:
        layers = {here.matrices[name].layer_name: bits for name, bits in candidate.bits().items()}
        form = quantize.Form(max(self.options.bits), self.options.group_size, layers)
        coded: dict[str, Coded] = {}
        compress = quantize.coding(here, gptq, gptq.Options(), form, coded)
        sweep(here, self.samples.batches, compress, gptq.NEEDS, stage="quantize", emit=self.emit)
        return coded

    def _write(self, here: Subject, coded: dict[str, Coded], source: Path) -> Path:
        dense, folder = self.new_folder(), self.new_folder()
        round_to_stored(here.model, source, but=coded)
        rewrite(here.model, source, dense)
        write_quantized(folder, dense, {name: entry.quantized() for name, entry in coded.items()})
        return folder
