"""Sparse storage of tensors: where they are not zero, and what stands there, to the last bit.

Two ways to say where, row by row (the first dimension is rows, all others are one):

    mask   a bit for each element, the lowest bit of a byte first
    n:m    of each m elements in a row, which n are stored: the pattern's place among the C(m, n) in ascending order of the number
           that the mask of the m is (lowest bit first), in ceil(log2 C(m, n)) bits. 2:4 takes .75 bits an element, 4:8 .875

The elements follow in order. A zero is an element whose bits are all 0, so that -0 and NaN come back. Codes of b bits (a quantized
weight's) are stored as code + 2^(b-1) in b bits, one after another, as compressed-tensors packs a row.

Shapes: O rows, I elements in a row, m of a pattern, P patterns (O I / m), N stored elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from llmos_cli.models import packing

PERIODS = (2, 4, 8, 16)
MOST_PATTERNS = 256
"""A pattern's place has 8 bits at most."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element: its bits as a number."""


@dataclass(frozen=True)
class Encoding:
    """How one tensor is stored. `n` of `m`; 0 of 0 is a mask. `bits`: of codes, 0 where elements are stored as they are."""

    n: int = 0
    m: int = 0
    bits: int = 0

    @property
    def place_bits(self) -> int:
        """Of a pattern's place among those there are."""
        return max(1, math.ceil(math.log2(math.comb(self.m, self.n))))


def best(value_OI: Tensor, bits: int = 0) -> Encoding | None:
    """The encoding of the fewest bytes; None where the tensor as it is has no more. `bits`: of codes, which have their zero at 0."""
    width = bits or value_OI.element_size() * 8
    filled_OI = _filled(value_OI)
    dense = value_OI.numel() * width
    found = {Encoding(bits=bits): value_OI.numel() + int(filled_OI.sum()) * width}
    for m in PERIODS:
        if value_OI.shape[1] % m == 0 and value_OI.numel():
            n = int(filled_OI.unflatten(1, (-1, m)).sum(2).max())
            if 0 < n < m and math.comb(m, n) <= MOST_PATTERNS:
                encoding = Encoding(n, m, bits)
                found[encoding] = value_OI.numel() // m * (encoding.place_bits + n * width)
    encoding, size = min(found.items(), key=lambda item: item[1])
    return encoding if size < dense else None


def encode(value_OI: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    """`places` and `values`, both of one dimension."""
    stored_OI = _filled(value_OI)
    places = _bits(stored_OI.flatten()) if not encoding.m else _places(stored_OI, encoding)
    if encoding.m:
        stored_OI = _mask(places, stored_OI.shape, encoding)
    value_N = value_OI[stored_OI]
    return {"places": places, "values": _words(value_N, encoding.bits) if encoding.bits else value_N}


def decode(parts: Mapping[str, Tensor], shape_OI: tuple[int, int], encoding: Encoding) -> Tensor:
    """The inverse of `encode`. ValueError where the parts are not what the encoding makes."""
    stored_OI = _mask(parts["places"], shape_OI, encoding)
    count = int(stored_OI.sum())
    value_N = _unwords(parts["values"], encoding.bits, count) if encoding.bits else parts["values"]
    if len(value_N) != count:
        raise ValueError(f"{count} places and {len(value_N)} values")
    value_OI = torch.zeros(shape_OI, dtype=value_N.dtype)
    value_OI[stored_OI] = value_N
    return value_OI


def _filled(value_OI: Tensor) -> Tensor:
    """Where a bit is set."""
    return value_OI.view(INTEGERS[value_OI.element_size()]) != 0


def _places(filled_OI: Tensor, encoding: Encoding) -> Tensor:
    """The place of each pattern, packed. Patterns of fewer than n take in the first zeros."""
    filled_Pm = filled_OI.reshape(-1, encoding.m)
    free_Pm = ~filled_Pm
    missing_P1 = encoding.n - filled_Pm.sum(1, keepdim=True)
    filled_Pm = filled_Pm | (free_Pm & (free_Pm.cumsum(1) <= missing_P1))
    number_P = (filled_Pm.long() << torch.arange(encoding.m)).sum(1)
    place_of, _ = _patterns(encoding.n, encoding.m)
    return _words(place_of[number_P] - (1 << (encoding.place_bits - 1)), encoding.place_bits)


def _mask(places: Tensor, shape_OI: torch.Size | tuple[int, int], encoding: Encoding) -> Tensor:
    """[O, I] bool, from the stored places."""
    elements = math.prod(shape_OI)
    if not encoding.m:
        return _unbits(places, elements).view(shape_OI)
    place_P = _unwords(places, encoding.place_bits, elements // encoding.m).long() + (1 << (encoding.place_bits - 1))
    _, masks = _patterns(encoding.n, encoding.m)
    if len(place_P) and int(place_P.max()) >= len(masks):
        raise ValueError("a pattern that is none")
    return masks[place_P].view(shape_OI)


@cache
def _patterns(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Place by number ([2^m], 0 where the number is no pattern), and mask by place ([C(m, n), m])."""
    numbers = sorted(sum(1 << index for index in chosen) for chosen in combinations(range(m), n))
    place_of = torch.zeros(1 << m, dtype=torch.long)
    place_of[torch.tensor(numbers)] = torch.arange(len(numbers))
    return place_of, (torch.tensor(numbers)[:, None] >> torch.arange(m) & 1).bool()


def _bits(flags: Tensor) -> Tensor:
    """Flags [E] as bytes."""
    eights = torch.nn.functional.pad(flags.to(torch.uint8), (0, -len(flags) % 8)).view(-1, 8)
    return (eights << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unbits(bytes_: Tensor, count: int) -> Tensor:
    if len(bytes_) != -(-count // 8):
        raise ValueError(f"{len(bytes_)} bytes for a mask of {count}")
    return (bytes_[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[:count].bool()


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes [E] as words, in runs that bound the memory that packing takes."""
    runs = [packing.pack(run[None], bits)[0] for run in codes.split(RUN)]
    return torch.cat(runs) if runs else torch.empty(0, dtype=torch.int32)


def _unwords(words: Tensor, bits: int, count: int) -> Tensor:
    if len(words) != -(-count * bits // packing.WORD):
        raise ValueError(f"{len(words)} words for {count} codes of {bits} bits")
    runs = words.split(RUN * bits // packing.WORD)
    left = [min(RUN, count - index * RUN) for index in range(len(runs))]
    found = [packing.unpack(run[None], bits, inputs)[0] for run, inputs in zip(runs, left, strict=True)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int8)


RUN = 1 << 20
"""Codes packed at once: a multiple of 32, so that runs end at words' ends."""
