"""Orthogonal matrices that spread what stands in one channel over all of them: Hadamard's, of as many orders as are built here.

A Hadamard matrix holds +1 and -1 alone and its rows are orthogonal. The Kronecker product of two is another, so the orders reached are
products of 2 (Sylvester) and of Paley's (1933): q + 1 for a prime q = 3 mod 4, 2 (q + 1) for a prime q = 1 mod 4. What an order has beyond
that (an odd factor left over) is filled by a random orthogonal matrix: as spread out on average, of values that differ.

Shapes: D channels.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def orthogonal(order: int, seed: int) -> Tensor:
    """[D, D] in fp64 with rows and columns of length 1: the Hadamard matrix nearest to that order, its rows' signs drawn by `seed`
    (QuaRot's randomized Hadamard, arXiv:2404.00456), times a random orthogonal one for the factor that is left over."""
    generator = torch.Generator().manual_seed(seed)
    found = largest(order)
    spread_DD = torch.kron(hadamard(found), _random(order // found, generator)) / found**0.5
    signs_D = torch.randint(0, 2, (order,), generator=generator).double() * 2 - 1
    turned_DD: Tensor = signs_D[:, None] * spread_DD
    return turned_DD


def fixing_the_mean(turn_DD: Tensor) -> Tensor:
    """The same with one reflection more, after which the vector of ones stays where it is: so each row's mean does too, which a
    LayerNorm subtracts."""
    ones_D = torch.full_like(turn_DD[0], len(turn_DD) ** -0.5)
    off_D = ones_D @ turn_DD - ones_D
    if float(off_D.norm()) < 1e-12:
        return turn_DD
    mirror_D = off_D / off_D.norm()
    return turn_DD - 2 * torch.outer(turn_DD @ mirror_D, mirror_D)


def largest(order: int) -> int:
    """The largest order of a Hadamard matrix built here that divides `order`; 1 divides all."""
    return max(known for known in range(1, order + 1) if order % known == 0 and _factors(known) is not None)


def hadamard(order: int) -> Tensor:
    """[D, D] of +1 and -1 in fp64; `order` is one that `largest` gives."""
    factors = _factors(order)
    assert factors is not None, "no construction of that order"
    found = torch.ones(1, 1, dtype=torch.float64)
    for factor in factors:
        found = torch.kron(found, _paley(factor) if factor > 2 else torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double())
    return found


@cache
def _factors(order: int) -> tuple[int, ...] | None:
    """Orders of matrices whose Kronecker product has this one; None where there are none. Powers of two need no more than twos."""
    if order == 1:
        return ()
    if order % 4 and order != 2:
        return None
    if order & (order - 1) == 0:
        return (2, *(_factors(order // 2) or ()))
    for size in range(4, order + 1, 4):
        if (
            size & (size - 1)
            and order % size == 0
            and _prime_of(size)
            and (rest := _factors(order // size)) is not None
        ):
            return (size, *rest)
    return None


def _prime_of(order: int) -> int:
    """The prime of Paley's construction of that order; 0 where it has none."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return order - 1
    half = order // 2 - 1
    return half if order % 2 == 0 and _is_prime(half) and half % 4 == 1 else 0


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _paley(order: int) -> Tensor:
    """From quadratic residues: Q[i, j] = 1 where i - j is a square modulo q, 0 on the diagonal, else -1."""
    prime = _prime_of(order)
    places = torch.arange(prime)
    squares = torch.full((prime,), -1.0, dtype=torch.float64)
    squares[places * places % prime] = 1.0
    squares[0] = 0.0
    residues = squares[(places[:, None] - places[None, :]) % prime]
    bordered = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    bordered[0, 1:] = 1.0
    bordered[1:, 1:] = residues
    if order == prime + 1:
        bordered[1:, 0] = -1.0
        return bordered + torch.eye(order, dtype=torch.float64)
    bordered[1:, 0] = 1.0
    whole, zero = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double()
    return torch.kron(bordered, whole) + torch.kron(torch.eye(prime + 1, dtype=torch.float64), zero)


def _random(size: int, generator: torch.Generator) -> Tensor:
    """Evenly drawn from all orthogonal matrices: Q of a Gaussian matrix with the signs of R's diagonal."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    # Contiguous: `kron` views what it is given.
    turned: Tensor = (q * r.diagonal().sign()).contiguous()
    return turned
