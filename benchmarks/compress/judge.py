"""The one judge of every cell, in fp32: at each position of the held-out tokens, the KL of the dense parent to the result and the
result's negative log-likelihood of the next token.

    python -m benchmarks.compress.judge PARENT RESULT HELD_OUT.npy JUDGED.npz

Shapes: S sequences, L positions, D the width of the head's input, V the vocabulary. The parent's inputs to its output head are kept
beside the tokens (D numbers a position instead of V), so that it runs once for all cells.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llmos_cli import device
from llmos_cli.models.load import load

BATCH = 8


def main() -> None:
    parent, result, held_out, out = map(Path, sys.argv[1:])
    device.use_threads()
    kl_SL, nll_SL = judge(parent, result, held_out)
    np.savez(out, kl_SL=kl_SL, nll_SL=nll_SL)


def judge(parent: Path, result: Path, held_out: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[S, L] KL and [S, L-1] negative log-likelihood, nats."""
    tokens_SL = torch.from_numpy(np.load(held_out))
    dense, judged = load(parent), load(result)
    hidden_SLD = _hidden(dense, tokens_SL, held_out.with_suffix(".hidden.npy"))
    head = dense.get_output_embeddings()
    found = []
    with torch.inference_mode():
        for start in range(0, len(tokens_SL), BATCH):
            rows = slice(start, start + BATCH)
            teacher_BLV = head(torch.from_numpy(hidden_SLD[rows].copy()))
            found.append(_scores(teacher_BLV, _logits(judged, tokens_SL[rows]), tokens_SL[rows]))
    kl_SL, nll_SL = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return kl_SL, nll_SL


def _hidden(dense: Any, tokens_SL: Tensor, kept: Path) -> NDArray[np.float32]:
    """[S, L, D] what the parent's head is given."""
    if not kept.exists():
        with torch.inference_mode():
            found = [_given(dense, tokens_SL[start : start + BATCH]) for start in range(0, len(tokens_SL), BATCH)]
        np.save(kept, torch.cat(found).numpy())
    hidden_SLD: NDArray[np.float32] = np.load(kept, mmap_mode="r")
    return hidden_SLD


def _given(dense: Any, tokens_BL: Tensor) -> Tensor:
    seen: list[Tensor] = []
    head = dense.get_output_embeddings()
    with head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        logits_BLV = _logits(dense, tokens_BL)
    if not torch.allclose(logits_BLV, head(seen[0]), rtol=1e-4, atol=1e-4):
        raise SystemExit(
            "this model does more to its logits than its head does: it cannot be judged from the head's inputs"
        )
    return seen[0]


def _logits(model: Any, tokens_BL: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens_BL, use_cache=False).logits
    return logits.float()


def _scores(teacher_BLV: Tensor, student_BLV: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
    teacher, student = F.log_softmax(teacher_BLV, -1), F.log_softmax(student_BLV, -1)
    kl_BL = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    return kl_BL, -student[:, :-1].gather(-1, tokens_BL[:, 1:, None])[..., 0]


if __name__ == "__main__":
    main()
