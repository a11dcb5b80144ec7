"""Peak memory: weights and activations that live at once while one batch is answered.

On an accelerator its allocator says. On a CPU the tensors are counted as they come and go, which, unlike the size of the
process, is the same on every run; what a kernel allocates and frees within itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmos_cli.methods.eval import Subject
from llmos_cli.tasks.base import Batch
from llmos_cli.tasks.scoring import forward

UNITS = {"peak_memory": "bytes"}
TIMED = True


def measure(subject: Subject) -> dict[str, float]:
    batch = subject.batch(subject.rows)
    if subject.model.device.type == "cpu":
        return {"peak_memory": float(peak_of_tensors(subject, batch))}
    torch.accelerator.reset_peak_memory_stats()
    with torch.inference_mode():
        forward(subject.model, batch)
    return {"peak_memory": float(torch.accelerator.max_memory_allocated())}


def compare(subjects: Sequence[Subject]) -> list[dict[str, float]]:
    """Of each by itself: what one takes does not depend on the others."""
    return [measure(subject) for subject in subjects]


def peak_of_tensors(subject: Subject, batch: Batch) -> int:
    """Bytes of the largest set of tensors alive at once during one forward pass, weights included."""
    with torch.inference_mode(), _Counted() as counted:
        counted.see([*subject.model.parameters(), *subject.model.buffers(), *batch.values()])
        forward(subject.model, batch)
    peak: int = counted.peak
    return peak


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that operators return until they are freed; views share one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.see(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def see(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
