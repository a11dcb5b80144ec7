"""What cutting one width alone does to a model's answers: the error of its readers' outputs does not tell, for the same error in
what heads give weighs many times what it does in what an MLP gives.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from llmos_cli.models.matrices import Matrix
from llmos_cli.models.narrow import Width
from llmos_cli.tasks.base import Batch

SAMPLES = 4
BATCHES = 4
"""So many samples of so many batches: widths differ by much more than these leave open."""

Probe = tuple[Width, int]
"""A width, and the count of its units that would stay."""
Probes = Mapping[Probe, Mapping[str, Tensor]]
"""For each, what the width's readers would be: matrix -> [O, I]."""


def divergences(
    model: PreTrainedModel, matrices: Mapping[str, Matrix], probes: Probes, batches: Sequence[Batch]
) -> dict[Probe, float]:
    """The KL (nats per position) of the model to the one with a probe in its place."""
    looked = few(batches)
    found = dict.fromkeys(probes, 0.0)
    for batch in looked:
        wanted = said(model, batch)
        for probe, weights in probes.items():
            before = {name: matrices[name].read() for name in weights}
            for name, weight_OI in weights.items():
                matrices[name].write(weight_OI)
            found[probe] += _kl(wanted, said(model, batch), batch) / len(looked)
            for name, weight_OI in before.items():
                matrices[name].write(weight_OI)
    return found


def few(batches: Sequence[Batch]) -> list[Batch]:
    return [{name: value[:SAMPLES] for name, value in batch.items()} for batch in batches[:BATCHES]]


def mean_divergence(wanted: Sequence[Tensor], model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """The KL (nats per position) to `model` of what was said of each of `batches`."""
    return sum(_kl(logp, said(model, batch), batch) for logp, batch in zip(wanted, batches, strict=True)) / len(batches)


@torch.no_grad()
def said(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logarithms of the probabilities of all classes at each position."""
    return F.log_softmax(model.eval()(**batch).logits.float(), -1)


def _kl(wanted: Tensor, said: Tensor, batch: Batch) -> float:
    """KL(wanted || said), averaged over what is no padding."""
    kl = F.kl_div(said, wanted, log_target=True, reduction="none").sum(-1)
    real = batch.get("attention_mask")
    return float(kl[real.bool()].mean() if real is not None and real.shape == kl.shape else kl.mean())
