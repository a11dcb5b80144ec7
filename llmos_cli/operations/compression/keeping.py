"""The finished blocks of a compression, one file each: what the result is written from, and what a resumed run goes on with.

A block's file holds its tensors as the result will store them, codes instead of weights where it was quantized, and what was
done to each matrix. In memory the block has the same values from then on, so that the blocks after it are calibrated on what a
reader will see, and a run that was cut off goes on to the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.core import atomic
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit
from llmos_cli.methods.grid import Codes, Grid
from llmos_cli.models import headers
from llmos_cli.models.activations import Spill
from llmos_cli.models.blocks import blocks
from llmos_cli.models.calibrate import NO_HOOKS, Hooks, Keeper
from llmos_cli.models.int8 import QuantizedLinear
from llmos_cli.models.lazily import Lazily
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.rewrite import stored_dtype, usual_dtype
from llmos_cli.models.shelf import owned, tensor_of
from llmos_cli.models.statistics import Need
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.subject import Calibration, Subject
from llmos_cli.operations.compression.sweep import Change, Compress, sweep
from llmos_cli.operations.compression.witness import Witness, witnessing
from llmos_cli.tasks import scoring

CODES, SCALES, ZEROS = ":codes", ":scales", ":zeros"


Rounds = type[QuantizedLinear] | None


class Parts(Mapping[str, Tensor]):
    """The tensors of all finished blocks by name, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self.finished = 0
        while self.file(self.finished).is_file():
            self._note(self.file(self.finished))
            self.finished += 1

    def file(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"

    def keep(self, index: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """The next block, whole or not at all."""
        file = self.file(index)
        atomic.make_directory(self.folder)
        unfinished = file.with_suffix(".unfinished")
        with atomic.refusals(file):
            contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(contiguous, unfinished, metadata={"record": json.dumps(record)})
            atomic.as_made_here(unfinished)
            atomic.sync_file(unfinished)
            unfinished.replace(file)
            atomic.sync_directory(self.folder)
        self._note(file)
        self.finished = index + 1

    def record(self, index: int) -> dict[str, Any]:
        try:
            with safe_open(self.file(index), "pt") as opened:
                return dict(json.loads(opened.metadata()["record"]))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise Corrupt(f"{self.file(index)} cannot be read", hint="start again without --resume") from problem

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], "pt") as opened:
            value: Tensor = opened.get_tensor(name)
            return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def _note(self, file: Path) -> None:
        self._file_of |= dict.fromkeys(headers.of_file(file), file)


@contextmanager
def keeping(
    subject: Subject,
    folder: Path,
    coded: dict[str, Coded] | None = None,
    *,
    rounds_inputs: Rounds = None,
    unrounded: Collection[str] = (),
) -> Iterator[Keeping]:
    """While the blocks of `subject` are compressed and the result is written: `folder` is where they are kept."""
    with ExitStack() as stack:
        witness = stack.enter_context(witnessing(subject.shelf, subject.asked)) if subject.shelf else None
        coded = {} if coded is None else coded
        yield Keeping(subject, folder, coded, rounds_inputs=rounds_inputs, unrounded=unrounded, witness=witness)


class Keeping(Keeper):
    """Holds a subject's blocks at their turn and keeps what became of them.

    `coded`: the quantized matrices, filled by the method and here, by what an earlier process finished; `rounds_inputs`: what their
    layers become where they round their inputs in the result, all but the `unrounded`; `witness` follows a model that streams.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        coded: dict[str, Coded],
        *,
        rounds_inputs: Rounds = None,
        unrounded: Collection[str] = (),
        witness: Witness | None,
    ) -> None:
        self.subject, self.coded, self.rounds_inputs, self.witness = subject, coded, rounds_inputs, witness
        self.unrounded = unrounded
        self.parts = Parts(folder)
        self.finished = self.parts.finished
        self.changes: dict[str, Change] = {}
        self.zeros: dict[str, int] = {}
        """Exact zeros of each matrix that holds no codes."""
        stack = blocks(subject.model)
        self._names = owned(subject.model, stack)
        inside = {name for index in range(len(stack)) for name in self._names.get(index, ())}
        self._names[len(stack)] = [name for name in subject.matrices if name not in inside]
        self._entries = headers.of_directory(subject.checkpoint.path)
        self._usual = usual_dtype(self._entries)

    def sweep(
        self,
        compress: Compress,
        samples: Calibration,
        needs: Collection[Need],
        *,
        hooks: Hooks = NO_HOOKS,
        spill: Spill,
        stage: str,
        emit: Emit,
    ) -> None:
        """Compress every matrix, from the first block that an earlier process has not finished."""
        sweep(
            self.subject,
            samples.batches,
            compress,
            needs,
            hooks=hooks,
            keeper=self,
            changes=self.changes,
            spill=spill,
            dtype=samples.dtype,
            stage=stage,
            emit=emit,
        )

    @property
    def skipped(self) -> dict[str, str]:
        """Matrix -> why it was left alone."""
        return {name: change.skipped for name, change in self.changes.items() if change.skipped}

    def held(self, index: int) -> AbstractContextManager[None]:
        return self.subject.shelf.held(index) if self.subject.shelf else nullcontext()

    def settle(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.coded:
                self._rounded(name)
            elif self.rounds_inputs is not None and self._rounds(self.subject.matrices[name]):
                # The very object that others refer to, with another forward.
                self.subject.matrices[name].layer.__class__ = self.rounds_inputs

    def _rounds(self, matrix: Matrix) -> bool:
        linear = isinstance(matrix.layer, nn.Linear) and not isinstance(matrix.layer, QuantizedLinear)
        return linear and matrix.layer_name not in self.unrounded

    def keep(self, index: int) -> None:
        tensors: dict[str, Tensor] = {}
        for name in self._names.get(index, ()):
            tensors |= self._coded(name) if name in self.coded else {name: self._rounded(name)}
        here = [name for name in self._names.get(index, ()) if name in self.subject.matrices]
        for name in here:
            if name not in self.coded:
                self.zeros[name] = int((tensors[name] == 0).sum())
        record = {
            "changes": {name: [dict(self.changes[name].values), self.changes[name].skipped] for name in here},
            "zeros": {name: self.zeros[name] for name in here if name in self.zeros},
            "grids": {
                name: [self.coded[name].grid.bits, self.coded[name].grid.group] for name in here if name in self.coded
            },
        }
        self.parts.keep(index, tensors, record)
        self._leave(index, here)

    def restore(self, index: int) -> None:
        record = self.parts.record(index)
        self.changes |= {name: Change(values, skipped) for name, (values, skipped) in record["changes"].items()}
        self.zeros |= record["zeros"]
        for name in self._names.get(index, ()):
            if name in record["grids"]:
                self._recode(name, *record["grids"][name])
                self.coded[name].matrix.write(self.coded[name].codes.dequantized())
            else:
                self._overwrite(name, self.parts[name])
        self._leave(index, list(record["changes"]))

    def logits(self) -> Tensor:
        """What the result, as it was computed, answers to the samples asked."""
        if self.witness:
            return self.witness.logits()
        model = self.subject.model
        with torch.inference_mode():
            return scoring.forward(model.eval(), device.move(self.subject.asked, model.device)).float().cpu()

    def stored(self) -> Mapping[str, Tensor]:
        """The tensors of finished blocks that hold no codes, by their names in the files; of a model that streams."""
        assert self.subject.shelf is not None
        slots = self.subject.shelf.slots
        return Lazily({slots[name].stored: name for name in self.parts if name in slots}, self.parts.__getitem__)

    def _coded(self, name: str) -> dict[str, Tensor]:
        codes = self.coded[name].codes
        zeros = {} if codes.zero_OG is None else {name + ZEROS: codes.zero_OG}
        return {name + CODES: codes.codes_OI, name + SCALES: codes.scale_OG, **zeros}

    def _rounded(self, name: str) -> Tensor:
        """The tensor as the result will store it, and in memory the same value."""
        value = tensor_of(self.subject.model, name).detach()
        if value.is_floating_point():
            rounded = value.to(stored_dtype(name, self._entries, self._usual))
            self._overwrite(name, rounded)
            return rounded
        return value

    def _overwrite(self, name: str, value: Tensor) -> None:
        with torch.no_grad():
            tensor_of(self.subject.model, name).copy_(value)

    def _leave(self, index: int, matrices: list[str]) -> None:
        """The block is as the result has it: of a model that streams, its codes are on disk from now on."""
        for name in matrices:
            if name in self.coded and self.subject.shelf:
                self._recode(name, self.coded[name].grid.bits, self.coded[name].grid.group)
        self.settle(matrices)
        if self.witness:
            self.witness.follow(index)

    def _recode(self, name: str, bits: int, group: int) -> None:
        """The codes in the block's file stand for the matrix."""

        def read() -> Codes:
            zero_OG = self.parts.get(name + ZEROS)
            return Codes(self.parts[name + CODES], self.parts[name + SCALES], zero_OG)

        now = read()
        grid = Grid(bits, group, now.scale_OG.dtype, now.zero_OG is None, now.floats)
        self.coded[name] = Coded(self.subject.matrices[name], read, grid)
