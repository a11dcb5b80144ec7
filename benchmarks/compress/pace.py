"""How fast a result decodes, by its parent: one token at batch 1 after the same context, both in one process and in turn.

python -m benchmarks.compress.pace PARENT RESULT HELD_OUT.npy PACE.npz
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from llmos_cli import device
from llmos_cli.models.load import load

CONTEXT, WARM, ROUNDS = 64, 5, 100
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parent, result, held_out, out = map(Path, sys.argv[1:])
    device.use_threads()
    tokens_L = torch.from_numpy(np.load(held_out))[0]
    found: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        models = [nn.Module.to(load(path), dtype) for path in (result, parent)]
        found[f"pace_{name}_R"] = pace(models, tokens_L[:CONTEXT], tokens_L[CONTEXT:])
    np.savez(out, **found)


@torch.inference_mode()
def pace(models: list[Any], context_L: Tensor, next_L: Tensor) -> NDArray[np.float64]:
    """[R] the seconds of the first of two models by the other's, of each of R tokens."""
    caches = [DynamicCache() for _ in models]
    for model, cache in zip(models, caches, strict=True):
        model(input_ids=context_L[None], past_key_values=cache)
    rounds = []
    for turn in range(WARM + ROUNDS):
        token_11 = next_L[turn % len(next_L)].view(1, 1)
        of, against = (_seconds(model, token_11, cache) for model, cache in zip(models, caches, strict=True))
        rounds.append(of / against)
    return np.array(rounds[WARM:])


def _seconds(model: Any, token_11: Tensor, cache: DynamicCache) -> float:
    """Of one token; the cache is left as it was."""
    started = time.perf_counter()
    model(input_ids=token_11, past_key_values=cache)
    spent = time.perf_counter() - started
    cache.crop(-1)
    return spent


if __name__ == "__main__":
    main()
