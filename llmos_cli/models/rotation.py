"""Turning a model's residual stream, and what passes between values and outputs in each head, offline: outliers that stand in single
channels are spread over all of them, and the model computes what it did (QuaRot, arXiv:2404.00456; SpinQuant, arXiv:2405.16406: R1, R2).

Whatever writes to the stream writes Q-turned channels, whatever reads it expects them: x Q instead of x, so W Q for W that reads, Q^T W for
W that writes. A norm's length does not change; its scales are folded into the layers that read it, and are ones from then on (a norm of
equal scales keeps them), its bias b becomes (b / scale) Q. A LayerNorm subtracts the mean, so there Q leaves the vector of ones where it
is. The result is a plain checkpoint of the same architecture. A head tied to the embeddings keeps the tie only where the last norm's
scales are equal: else what one reads is no more what the other writes, and it is stored by itself.

Shapes: D channels, F features of a head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmos_cli.models.hadamard import fixing_the_mean, orthogonal
from llmos_cli.models.lazily import Lazily
from llmos_cli.models.rewrite import DTYPES, rewritten
from llmos_cli.models.shelf import Shelf
from llmos_cli.models.stream import Stream, Unfit

VANISHING = 1e-4
"""Of the largest scale of a norm: a smaller one cannot be divided out of its bias."""
TIE = "tie_word_embeddings"


class Rotation:
    """A stream's turned tensors by their names; `read` gives those that it has now, in fp32."""

    def __init__(self, stream: Stream, read: Callable[[str], Tensor], seed: int) -> None:
        self.stream, self.read = stream, read
        turn_DD = orthogonal(stream.width, seed)
        if any(norm.centers for norm in stream.norms.values()):
            turn_DD = fixing_the_mean(turn_DD)
        self.turn_DD = turn_DD.float()
        self.turn_FF = {size: orthogonal(size, seed + 1).float() for size in {h.size for h in stream.heads.values()}}

    def of(self, name: str) -> Tensor:
        value = self.read(name)
        owner, _, part = name.rpartition(".")
        if owner in self.stream.norms:
            return self._of_norm(owner, part, value)
        if along := self.stream.along.get(name):
            folded = self.folded(along.norm)
            moved = value.movedim(along.axis, -1)
            value = ((moved if folded is None else moved * folded) @ self.turn_DD).movedim(-1, along.axis)
        if heads := self.stream.heads.get(name):
            moved = value.movedim(heads.axis, -1)
            kept, features = moved[..., : heads.start], moved[..., heads.start :].unflatten(-1, (-1, heads.size))
            value = torch.cat([kept, (features @ self.turn_FF[heads.size]).flatten(-2)], -1).movedim(-1, heads.axis)
        return value.contiguous()

    def changes(self, name: str) -> bool:
        stream = self.stream
        return name.rpartition(".")[0] in stream.norms or name in stream.along or name in stream.heads

    def folded(self, norm: str) -> Tensor | None:
        """[D] the scales that go into the readers of a norm; None where they are equal and stay."""
        if not norm:
            return None
        scale_D = self.read(f"{norm}.weight") + self.stream.norms[norm].offset
        return None if bool((scale_D == scale_D[0]).all()) else scale_D

    def _of_norm(self, norm: str, part: str, value: Tensor) -> Tensor:
        scale_D = self.folded(norm)
        if part == "weight":
            return value if scale_D is None else torch.full_like(value, 1 - self.stream.norms[norm].offset)
        if scale_D is None:
            return value @ self.turn_DD
        if bool(((scale_D.abs() < VANISHING * scale_D.abs().max()) & (value != 0)).any()):
            raise Unfit(f"{norm} scales a channel by nothing and then adds to it")
        return torch.where(value != 0, value / scale_D, 0) @ self.turn_DD


@dataclass(frozen=True)
class Written:
    """What became of a head that was tied: its name, and the bytes that it takes by itself; "" and 0 where the tie holds."""

    untied: str = ""
    bytes: int = 0


def turned(model: nn.Module, stream: Stream, seed: int) -> dict[str, Tensor]:
    """The whole state dict of a model in memory whose head is not tied, turned."""
    state = model.state_dict()
    rotation = Rotation(stream, lambda name: state[name].float(), seed)
    return {name: rotation.of(name) if rotation.changes(name) else value for name, value in state.items()}


def write(shelf: Shelf, directory: Path, stream: Stream, seed: int) -> Written:
    """Write the checkpoint of `shelf` turned, one shard in memory at a time, in the types that it is stored in. Raises Unfit."""
    if shelf.lost:
        raise Unfit(f"its files hold {shelf.lost[0]} in another form")
    rotation = Rotation(stream, shelf.read, seed)
    slots = list(dict.fromkeys(shelf.slots.values()))
    changed = Lazily({slot.stored: slot.names[0] for slot in slots if rotation.changes(slot.names[0])}, rotation.of)
    added: dict[str, Tensor] = {}
    for slot in slots:
        first, *others = slot.names
        for name in others:
            if not torch.equal(rotation.of(first), rotation.of(name)):
                added[name] = rotation.of(name).to(DTYPES[shelf.entries[slot.stored].dtype])
    rewritten(changed, shelf.path, directory, added)
    if not added:
        return Written()
    _untie(directory / "config.json")
    (name,) = added
    return Written(name, added[name].nbytes)


def _untie(file: Path) -> None:
    config: dict[str, Any] = json.loads(file.read_bytes())
    file.write_text(json.dumps(config | {TIE: False}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def holds(small: nn.Module, stream: Stream, batch: Mapping[str, Tensor], seed: int, tolerance: float) -> bool:
    """Whether the twin answers as it did when its tensors are turned."""
    inputs = {name: value[:2].cpu() for name, value in batch.items()}
    with torch.no_grad():
        before: Tensor = small(**inputs).logits
        after: Tensor = torch.func.functional_call(small, turned(small, stream, seed), (), inputs).logits
    return bool((before - after).abs().max() <= tolerance * before.abs().max())
