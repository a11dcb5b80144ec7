"""How fast a result answers one sequence, by its parent: both in one process, in turn, in fp32.

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
from torch import Tensor

from llmos_cli import device
from llmos_cli.models.load import load

WARM, ROUNDS = 3, 60


def main() -> None:
    parent, result, held_out, out = map(Path, sys.argv[1:])
    device.use_threads()
    np.savez(out, pace_R=pace(load(parent), load(result), torch.from_numpy(np.load(held_out))))


def pace(parent: Any, result: Any, tokens_SL: Tensor) -> NDArray[np.float64]:
    """[R] the result's seconds by the parent's, of a pass at batch 1 over each of R sequences."""
    rounds = []
    with torch.inference_mode():
        for turn in range(WARM + ROUNDS):
            tokens_BL = tokens_SL[turn % len(tokens_SL)][None]
            rounds.append(_seconds(result, tokens_BL) / _seconds(parent, tokens_BL))
    return np.array(rounds[WARM:])


def _seconds(model: Any, tokens_BL: Tensor) -> float:
    started = time.perf_counter()
    model(input_ids=tokens_BL, use_cache=False)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
