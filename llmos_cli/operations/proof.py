"""The proof that ends every compression: the directory, loaded in a fresh process, answers as the result in memory did, and
this is what it cost in quality and gained in bytes.

It is taken of the staged directory, before anything is committed, so that a result that does not reload, or is worse than the
guards allow, leaves no trace.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli import device
from llmos_cli.core.atomic import refusal, system_error
from llmos_cli.core.view import size
from llmos_cli.errors import GateFailed, LlmosError, NotFound
from llmos_cli.events import Emit, Metric, Progress
from llmos_cli.models import conformance, headers
from llmos_cli.models.activations import Spill
from llmos_cli.models.conformance import Conformance
from llmos_cli.models.load import load, skeleton
from llmos_cli.models.save import stored_names
from llmos_cli.operations import fresh, served
from llmos_cli.operations.abreast import abreast
from llmos_cli.operations.beside import Judged, judged
from llmos_cli.operations.served import Speed
from llmos_cli.tasks import scoring
from llmos_cli.tasks.base import Batch, Outcome, Prepared, Split, Task
from llmos_cli.tasks.scoring import Interval

PROOF_SPLITS = ("test", "validation")
"""Where a result is judged: the first of these that the data has."""
PARITY_SAMPLES = 4
PARITY_LOGITS = 2**23
"""Of a large vocabulary fewer samples are enough, and their logits are in memory three times over (32 MB in fp32, or one sample's)."""
PARITY_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit: fp32 sums in another order, and nothing more."""
BF16_BYTES = 2


@dataclass(frozen=True)
class Parity:
    """`difference` is the largest between two logits of the batch, `largest` the largest logit; `reader` loaded the directory,
    as a whole in a fresh process unless `fresh` is False: then block by block in this one."""

    difference: float
    largest: float
    reader: str
    fresh: bool = True

    @property
    def holds(self) -> bool:
        return math.isfinite(self.difference) and self.difference <= PARITY_TOLERANCE * max(1.0, self.largest)


@dataclass(frozen=True)
class Bytes:
    """`layers`: the weights of compressible layers, scales included; `total`: all safetensors; `..._bf16`: the same parameters
    at 2 bytes each."""

    layers: int
    layers_bf16: int
    total: int
    total_bf16: int


@dataclass(frozen=True)
class Proof:
    """`before` and `after` hold the task's metrics of parent and result, `after` the KL to each ancestor too, all on `samples` of
    `split`; `conformance` is what the rules of a quantized checkpoint's format say of it, None where it is dense."""

    parity: Parity
    split: str
    samples: int
    before: Mapping[str, Interval]
    after: Mapping[str, Interval]
    bytes_before: Bytes
    bytes_after: Bytes
    facts: Mapping[str, float] = field(default_factory=dict)
    conformance: Conformance | None = None
    unmeasured: str = ""
    """What was not measured, and why: a model that streams is never in memory as a whole."""
    speed: Speed | None = None
    """How fast parent and result answer as a deployment holds them; None where `unmeasured` says why not."""
    rows: str = ""
    """Which rows of the split those samples are of, as SHA-256."""

    def emit(self, emit: Emit, checkpoint: str, parent: str) -> None:
        """As the measured numbers of `checkpoint`; how fast the `parent` was beside it, as its own."""
        for name, found in self.after.items():
            value, low, high = found.value, found.low, found.high
            emit(Metric(name, value, self.split, checkpoint=checkpoint, low=low, high=high, samples=self.rows))
        if self.speed:
            for of, values in ((parent, self.speed.before), (checkpoint, self.speed.after)):
                for name, value in values.items():
                    emit(Metric(name, value, self.split, checkpoint=of))
        sizes = {"size": self.bytes_after.total, "layers_size": self.bytes_after.layers}
        for name, value in {**sizes, **self.facts, "parity": self.parity.difference}.items():
            emit(Metric(name, float(value), checkpoint=checkpoint))


@dataclass(frozen=True)
class Exhibits:
    """What a proof needs: what the result in memory answered (`logits`) to the samples `asked`, the result on disk, and
    whom it is compared with. `standard`: an architecture that stock transformers has; `ancestors`: `kl_parent` and the like ->
    directory."""

    asked: Batch
    logits: Tensor
    standard: bool
    staged: Path
    parent: Path
    ancestors: Mapping[str, Path]
    task: Task
    prepared: Prepared
    split: str
    batch_size: int
    compressible_before: frozenset[str]
    compressible_after: frozenset[str]
    """The matrices of parent and result that are weighed, by their names in each."""
    memory: Memory | None = None
    """Set where the models do not fit into memory side by side."""
    untimed: str = ""
    """Why latency is not to be measured."""

    @property
    def teachers(self) -> list[Path]:
        return list(dict.fromkeys(self.ancestors.values()))

    @property
    def fitting(self) -> int:
        """Samples in a batch."""
        return scoring.within(self.batch_size, self.logits[0].numel())


@dataclass(frozen=True)
class Memory:
    """What a proof block by block may take: `spill` for what lies between two blocks; `reload`: whether the result by itself fits
    as a whole; `needed` and `allowed` say it in bytes."""

    spill: Spill
    reload: bool
    needed: int
    allowed: int

    @property
    def told(self) -> str:
        missing = "latency was" if self.reload else "latency, and loading it as a whole in a fresh process, were"
        return f"{missing} not measured: {size(self.needed)} of weights do not fit into {size(self.allowed)} of memory"


def proof_split(prepared: Prepared) -> str:
    """NotFound where the data has nothing held out."""
    found = next((name for name in PROOF_SPLITS if len(prepared.splits.get(name, ()))), None)
    if found is None:
        raise NotFound("the data has no held-out samples to prove the result on", hint="set data.splits")
    return found


def prove(exhibits: Exhibits, *, seed: int, emit: Emit) -> Proof:
    """Reload in a fresh process, meanwhile evaluate; LlmosError where the reloaded logits are not the ones in memory, or the
    files are not the format that their config claims."""
    conforms = _conforming(exhibits.staged)
    split = exhibits.prepared.splits[exhibits.split]
    if exhibits.memory:
        found, logits = _block_by_block(exhibits, split, exhibits.memory, emit=emit)
        parity = _compared(exhibits, logits, "llmos, block by block", fresh=False)
        _check(parity)
        if exhibits.memory.reload:
            with reloading(exhibits) as answer:
                parity = answer()
    else:
        with reloading(exhibits) as answer:
            found = _side_by_side(exhibits, split, emit=emit)
            parity = answer()
    _check(parity)
    speed, unmeasured = _timed(exhibits, split, emit=emit)
    facts = exhibits.prepared.facts
    before, after = (
        scoring.intervals(exhibits.task, outcome, facts, seed=seed) for outcome in _outcomes(exhibits, found)
    )
    return Proof(
        parity=parity,
        split=exhibits.split,
        samples=len(split),
        before=before,
        after=after,
        unmeasured=unmeasured,
        speed=speed,
        bytes_before=weigh(exhibits.parent, exhibits.compressible_before),
        bytes_after=weigh(exhibits.staged, exhibits.compressible_after),
        conformance=conforms,
        rows=exhibits.prepared.rows(exhibits.split),
    )


def _conforming(staged: Path) -> Conformance | None:
    found = conformance.check(staged)
    if found and found.broken:
        raise LlmosError(
            f"what was written is {found.sentence}: nothing was committed",
            hint="this is a defect of llmos: please report the model's config.json",
            final=True,
        )
    return found


def _check(parity: Parity) -> None:
    if not parity.holds:
        raise LlmosError(
            f"reloaded by {parity.reader}, the result's logits differ by {parity.difference:.3g} (largest {parity.largest:.3g}): "
            "nothing was committed",
            hint="this is a defect of llmos: please report the model's config.json",
            final=True,
        )


@contextmanager
def reloading(exhibits: Exhibits) -> Iterator[Callable[[], Parity]]:
    """Start the fresh process at once, so that its imports run beside the evaluation; what is yielded waits for its answer."""
    with TemporaryDirectory() as folder:
        given, answered = Path(folder) / "inputs.safetensors", Path(folder) / "outputs.safetensors"
        save_file({name: value.contiguous() for name, value in exhibits.asked.items()}, given)
        command = [sys.executable, "-P", fresh.__file__, str(exhibits.staged), str(given), str(answered)]
        ours = [] if exhibits.standard else ["--ours"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(device.threads())}
        with subprocess.Popen(
            [*command, *ours], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield lambda: _parity(exhibits, process, answered)
            finally:
                process.kill()


def parity_inputs(split: Split, model: PreTrainedModel) -> Batch:
    """The held-out samples that the result in memory and the one read back are compared on."""
    most = scoring.within(PARITY_SAMPLES, scoring.logits_of_one(model, split), PARITY_LOGITS)
    rows = range(min(most, len(split)))
    return {name: value for name, value in split.batch(rows).items() if name != "labels"}


def is_standard(model: PreTrainedModel) -> bool:
    return type(model).__module__.startswith("transformers.")


def _parity(exhibits: Exhibits, process: subprocess.Popen[str], answered: Path) -> Parity:
    _, complaint = process.communicate()
    if process.returncode != 0:
        last = complaint.strip().splitlines()[-1] if complaint.strip() else f"exit {process.returncode}"
        if (system := system_error(RuntimeError(last))) and (refused := refusal(system, answered)):
            raise refused
        # Some of transformers' models look for the weights that packing replaced (ModernBERT's initialisation does).
        hint = "nothing was committed; `--method w8a8` stores weights that more of transformers' models can read"
        raise LlmosError(f"the result does not load in a fresh process: {last}", hint=hint, final=True)
    reader = f"transformers {transformers.__version__}"
    return _compared(
        exhibits,
        load_file(answered)["logits"],
        reader if exhibits.standard else f"{reader} and llmos_cli.models",
        fresh=True,
    )


def _compared(exhibits: Exhibits, logits: Tensor, reader: str, *, fresh: bool) -> Parity:
    difference = (logits - exhibits.logits).abs().max()
    return Parity(float(difference), float(exhibits.logits.abs().max()), reader, fresh)


def _block_by_block(exhibits: Exhibits, split: Split, memory: Memory, *, emit: Emit) -> tuple[Judged, Tensor]:
    """The same outcomes with one block in memory at a time, and what the result's files answer to the samples asked."""
    # Logits of both models, and what is made of them, are in memory at once: an eighth of it each.
    fitting = memory.allowed // (8 * exhibits.logits[0].nbytes)
    found = abreast(
        exhibits.task,
        split,
        result=exhibits.staged,
        parent=exhibits.parent,
        teachers=exhibits.teachers,
        asked=exhibits.asked,
        batch_size=max(1, min(exhibits.fitting, fitting)),
        spill=memory.spill,
        emit=emit,
    )
    return found.outcomes, found.logits


def _side_by_side(exhibits: Exhibits, split: Split, *, emit: Emit) -> Judged:
    """What the parent answers, and the result as its files say it, with all models in memory."""
    emit(Progress("evaluate parent and result", 0, len(split), "sample"))
    on = device.pick()
    paths = dict.fromkeys((exhibits.parent, exhibits.staged, *exhibits.teachers))
    models = {path: load(path, device=on) for path in paths}

    def answers(number: int, batch: Batch) -> dict[Path, Tensor]:
        with torch.inference_mode():
            return {path: scoring.forward(model, batch) for path, model in models.items()}

    return judged(
        exhibits.task,
        split,
        list(scoring.batches(len(split), exhibits.fitting)),
        answers,
        result=exhibits.staged,
        parent=exhibits.parent,
        teachers=exhibits.teachers,
        emit=emit,
    )


def _outcomes(exhibits: Exhibits, found: Judged) -> tuple[Outcome, Outcome]:
    """Before and after; after with a column for the KL to each ancestor."""
    columns = {name: found.after[path].extra["kl"] for name, path in exhibits.ancestors.items()}
    return found.before, replace(found.after[exhibits.parent], extra=columns)


def _timed(exhibits: Exhibits, split: Split, *, emit: Emit) -> tuple[Speed | None, str]:
    """How fast parent and result are, or why that was not measured; what nobody could serve here is no reason to have no result."""
    if exhibits.memory or exhibits.untimed:
        return None, exhibits.memory.told if exhibits.memory else exhibits.untimed
    try:
        return served.beside(
            exhibits.task, exhibits.parent, exhibits.staged, split, batch_size=exhibits.batch_size, emit=emit
        ), ""
    except LlmosError as problem:
        return None, f"latency was not measured: {problem.message}"


def weigh(directory: Path, compressible: frozenset[str]) -> Bytes:
    """Real bytes of a checkpoint directory, from the headers of its files."""
    entries = headers.of_directory(directory)
    shapes = headers.dense_shapes(entries)
    stored = stored_names(skeleton(directory), shapes)
    compressible = frozenset(stored.get(name, name) for name in compressible)
    parts = {name + suffix for name in compressible for suffix in ("", "_packed", "_scale", "_shape", "_zero_point")}
    return Bytes(
        layers=sum(entry.bytes for name, entry in entries.items() if name in parts),
        layers_bf16=BF16_BYTES * sum(math.prod(shapes[name]) for name in compressible if name in shapes),
        total=sum(file.stat().st_size for file in headers.files(directory)),
        total_bf16=BF16_BYTES * sum(math.prod(shape) for shape in shapes.values()),
    )


def guard(
    proof: Proof, task: Task, *, max_kl: float | None, max_drop: float | None, max_latency: float | None = None
) -> None:
    """GateFailed where the result is further from its parent than allowed."""
    kl = proof.after["kl_parent"].value
    if max_kl is not None and not kl <= max_kl:
        raise GateFailed(f"KL to the parent is {kl:.4g}, above --max-kl {max_kl:g}: nothing was committed", hint=MILDER)
    if not math.isfinite(kl):
        raise LlmosError(
            f"KL to the parent is {kl}: parent or result answers what is not finite; nothing was committed",
            hint="evaluate the parent first: `llmos eval`",
            final=True,
        )
    drop = dropped(proof, task)
    if max_drop is not None and not drop <= max_drop:
        raise GateFailed(
            f"{task.metric} is {drop:.4g} worse than the parent's, more than --max-drop {max_drop:g}: nothing was committed",
            hint=MILDER,
        )
    if max_latency is not None:
        _check_latency(proof, max_latency)


def _check_latency(proof: Proof, most: float) -> None:
    """What was not measured keeps no promise either."""
    if proof.speed is None:
        raise GateFailed(f"{proof.unmeasured}: nothing was committed", hint="ask for a size or a KL instead")
    if not (share := 1 / proof.speed.gain) <= served.NOISE * most:
        raise GateFailed(
            f"the proof measured {share:.2f} of the parent's latency, not {most:g}: nothing was committed",
            hint="ask for less, or try again when the machine has nothing else to do",
        )


MILDER = "compress less, or heal longer (--heal N)"


def dropped(proof: Proof, task: Task) -> float:
    """How much worse the task's own metric became, in its own unit; negative where it improved."""
    change = proof.after[task.metric].value - proof.before[task.metric].value
    return change if task.lower_is_better else -change
